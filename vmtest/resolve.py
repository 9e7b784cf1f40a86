"""What a request for a guest comes down to on this host: image, QEMU and accelerator found, files looked at."""

from __future__ import annotations

from vmtest import images
from vmtest.errors import UsageError
from vmtest.host import AccelStatus, NotKnownYet, Qemu, choose, find_qemu, known_only, require_linux
from vmtest.inspect import check_initrd, check_kernel, disk_format
from vmtest.model.accel import AUTO
from vmtest.model.arch import Arch, arch
from vmtest.model.image import Image
from vmtest.model.machine import Channel, Drive, Machine, Nic
from vmtest.model.spec import DEFAULT_GUEST, GuestSpec
from vmtest.progress import SILENT, Progress

__all__ = ["check", "foresee", "plan"]


def plan(spec: GuestSpec, *, progress: Progress = SILENT) -> tuple[Machine, Qemu, Image | None]:
    """The machine that a spec asks for, the QEMU that runs it, and its image; builds the image if need be.

    Nothing is started. Raises UsageError, HostError.
    """
    row, image, qemu, status = _resolve(spec, progress)
    return _machine(spec, row, image, qemu, status, progress), qemu, image


def check(spec: GuestSpec) -> None:
    """Raise what ``boot`` would raise for a spec that cannot be; builds and starts nothing of it."""
    _resolve(spec, SILENT)


def foresee(spec: GuestSpec) -> str:
    """In a few words: the QEMU and the accelerator that a spec will get, if that is known. Starts nothing.

    Raises as ``check``.
    """
    try:
        with known_only():
            _, _, qemu, status = _resolve(spec, SILENT)
    except NotKnownYet as error:
        return f"accelerator {spec.accel or AUTO}, {error.message}"
    choice = f"{AUTO}: " if (spec.accel or AUTO) == AUTO else ""
    speed = f" ({choice}{status.mips:.0f} million instructions/s)" if status.mips else ""
    return f"QEMU {'.'.join(map(str, qemu.version))}, accelerator {status.accel}{speed}"


def _resolve(spec: GuestSpec, progress: Progress) -> tuple[Arch, Image | None, Qemu, AccelStatus]:
    """What a spec comes down to on this host. A disk, or kernel and initrd, without an image's name need none."""
    require_linux()
    whole = (spec.kernel and spec.initrd) or spec.disk
    image = None if spec.image is None and whole else images.load(spec.image or default_image(spec))
    row = arch(spec.arch or (image.arch if image else "x86_64"))
    if image is not None and row.name != image.arch:
        raise UsageError(
            f"the image {image.name} is for {image.arch}, and {row.name} was asked for",
            hint=f"leave out the architecture, or choose an image for {row.name}: vmtest list",
        )
    _check_files(spec, row, image)
    qemu = find_qemu(spec.qemu or row.qemu, row.name)
    return row, image, qemu, choose(spec.accel or AUTO, row.name, qemu, progress=progress)


def default_image(spec: GuestSpec) -> str:
    """The image of a spec that names none: the default one, or the one of the architecture asked for."""
    return f"linux-{arch(spec.arch).name}" if spec.arch else DEFAULT_GUEST


def _check_files(spec: GuestSpec, row: Arch, image: Image | None) -> None:
    if spec.kernel is not None:
        check_kernel(spec.kernel, row)
    if spec.initrd is not None:
        check_initrd(spec.initrd, spec.append or "")
    if image is not None and spec.memory is not None and spec.memory < image.min_memory:
        raise UsageError(
            f"{image.name} does not boot with {spec.memory} MiB of memory",
            hint=f"it needs at least {image.min_memory} MiB; the default is {image.memory}",
        )


def _machine(
    spec: GuestSpec, row: Arch, image: Image | None, qemu: Qemu, status: AccelStatus, progress: Progress
) -> Machine:
    built = images.prepare(image, progress=progress) if image and not (spec.kernel and spec.initrd) else None
    disk = spec.disk or (built.disk if built else None)
    trim = image.trim if image and spec.trim is not False else ""
    append = (image.append if image else "", trim, spec.append or "")
    return Machine(
        arch=row.name,
        accel=status.accel,
        machine=spec.machine or "",
        cpu=spec.cpu or status.cpu,
        memory=spec.memory or (image.memory if image else 256),
        smp=spec.smp or 1,
        kernel=spec.kernel or (built.kernel if built else None),
        initrd=spec.initrd or (built.initrd if built else None),
        append=" ".join(filter(None, append)),
        drives=() if disk is None else (Drive(path=disk, format=disk_format(disk)),),
        nics=() if spec.nic is None else (Nic(backend=spec.nic),),
        channel=spec.channel or (image.channel if image else Channel.AUTO),
        qemu=str(qemu.path),
        extra=spec.qemu_args or (),
    )
