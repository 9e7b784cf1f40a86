"""From what was asked for to a guest that runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Unpack

from vmtest.errors import UsageError
from vmtest.guest import Guest
from vmtest.model.spec import GuestSpec, Said
from vmtest.progress import SILENT, Progress
from vmtest.resolve import plan
from vmtest.workdir import sweep

__all__ = ["boot"]

_swept = False


def boot(
    guest: str | GuestSpec | None = None,
    *,
    wait: bool = True,
    logs: str | Path | None = None,
    progress: Progress = SILENT,
    **said: Unpack[Said],
) -> Guest:
    """Boot a guest and wait until it answers; use it as a context manager.

    ``guest`` is the name of an image ("linux-x86_64" by default), the path of a folder with an image.toml, or a
    GuestSpec; the keyword arguments are GuestSpec's fields and are laid over it. With ``wait=False`` the guest is
    handed over as soon as QEMU runs: drive its console, then ``run`` waits for it. ``logs`` is a directory for the
    console log and QEMU's stderr, kept afterwards.

        with vmtest.boot("linux-aarch64", memory=512) as guest:
            guest.run("uname -m").check()

    Raises UsageError for what cannot be asked for, HostError where the host cannot do it (AcceleratorUnavailable,
    ImageError, QemuDied), GuestError where the guest does not come up (BootTimeout, GuestPanicked).
    """
    below = guest if isinstance(guest, GuestSpec) else GuestSpec(image=guest)
    spec = GuestSpec.parse(said, where="boot()").over(below)
    _sweep_once()
    machine, qemu, image = plan(spec, progress=progress)
    directory = None
    if logs is not None:
        directory = Path(logs)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the directory {directory} for logs cannot be made: {error.strerror}") from error
    ours = image is not None and image.has_initramfs and spec.initrd is None
    name = image.name if image else f"{machine.arch} guest"
    progress.step(f"booting {name} under {machine.accel}")
    started = Guest(
        machine,
        qemu,
        name=name,
        logs=directory,
        expects_agent=ours and image is not None and image.agent,
        announces=ours,
        stamped=True if ours and spec.kernel is None else None,  # Debian's kernels have printk.time on
        timeout=spec.timeout or 60.0,
        boot_timeout=spec.boot_timeout or 120.0,
        timeout_scale=spec.timeout_scale or _scale_of_environment(),
    )
    if wait:
        try:
            started.wait_up()
        except BaseException:
            started.close()
            raise
    return started


def _scale_of_environment() -> float:
    value = os.environ.get("VMTEST_TIMEOUT_SCALE", "1")
    return GuestSpec.parse({"timeout_scale": value}, where="VMTEST_TIMEOUT_SCALE").timeout_scale or 1.0


def _sweep_once() -> None:
    global _swept
    if not _swept:
        _swept = True
        sweep()
