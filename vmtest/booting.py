"""From what was asked for to a guest that runs: a clone of a template where that can be, else booted."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Unpack

from vmtest import cloning, identity
from vmtest.deadline import Deadline
from vmtest.errors import ColdBootWarning, SnapshotError, UsageError, VmtestError
from vmtest.guest import Guest
from vmtest.host import Qemu, choose, find_qemu, memory
from vmtest.life import Life
from vmtest.model.accel import AUTO
from vmtest.model.image import Image
from vmtest.model.machine import Machine
from vmtest.model.manner import Manner
from vmtest.model.snapshot import crossing, obstacle, poolable
from vmtest.model.spec import GuestSpec, Said
from vmtest.pool import Pool
from vmtest.progress import SILENT, Progress
from vmtest.resolve import plan
from vmtest.snapshots import Snapshot, facts, key_of, store
from vmtest.workdir import sweep

__all__ = ["boot", "make_template", "use_pool"]

_swept = False
_pool = Pool(0)
_templates: dict[str, Snapshot] = {}
"""Snapshots that are open, by the key of the machine whose clones they serve."""
_made: dict[str, Snapshot] = {}
"""As _templates, made by a user of a guest that was prepared: they go before."""
_hopeless: dict[str, str] = {}
"""Keys of machines that turned out not to be savable, and why."""


def boot(
    guest: str | GuestSpec | None = None,
    *,
    wait: bool = True,
    logs: str | Path | None = None,
    progress: Progress = SILENT,
    started: Callable[[Guest], object] = lambda guest: None,
    **said: Unpack[Said],
) -> Guest:
    """A guest that has just booted and answers; use it as a context manager.

    ``guest`` is the name of an image ("linux-x86_64" by default), the path of a folder with an image.toml, or a
    GuestSpec; the keyword arguments are GuestSpec's fields and are laid over it. The machine is booted once and kept
    as a template, of which each guest is a clone, in a tenth of a second; with ``cold=True`` it is booted here and
    now. With ``snapshot`` it is a clone of that one. With ``wait=False`` it is handed over as soon as QEMU runs, and
    always cold: drive its console, then ``run`` waits for it. ``logs`` is a directory for the console log and QEMU's
    stderr, kept afterwards. ``started`` is called with the guest before it is waited for.

        with vmtest.boot("linux-aarch64", memory=512) as guest:
            guest.run("uname -m").check()

    A guest that cannot be cloned is booted, with a ColdBootWarning that says why.

    Raises UsageError for what cannot be asked for, HostError where the host cannot do it (AcceleratorUnavailable,
    ImageError, QemuDied, SnapshotError), GuestError where the guest does not come up (BootTimeout, GuestPanicked).
    """
    below = guest if isinstance(guest, GuestSpec) else GuestSpec(image=guest)
    spec = GuestSpec.parse(said, where="boot()").over(below)
    _sweep_once()
    directory = _directory(logs)
    if spec.snapshot is not None:
        return _ready(_from_snapshot(spec, directory), spec, wait, started)
    machine, qemu, image = plan(spec, progress=progress)
    manner = _manner(spec, machine, image)
    if wait and not spec.cold:
        life = _cloned(machine, qemu, manner, directory, progress)
        if life is not None:
            return _ready(life, spec, wait, started)
    progress.step(f"booting {manner.name} under {machine.accel}")
    memory.require(machine.memory, memory.BOOT)
    return _ready(Life(machine, qemu, manner, logs=directory), spec, wait, started)


def use_pool(size: int) -> Pool:
    """Have ``size`` clones made ahead from here on; ``close()`` of what is returned ends that."""
    global _pool
    _pool.close()
    _pool = Pool(size, remember=True)
    return _pool


def make_template(guest: Guest, directory: Path) -> Snapshot:
    """Keep a guest as it is now, in ``directory``, and make each guest of the same machine that is booted by this
    process from here on a clone of it. Raises SnapshotError.
    """
    snapshot = cloning.save(guest._life, directory, name="", origin="prepared by a test's set-up")
    _made[key_of(facts(guest.machine, guest._life.qemu))] = snapshot
    return snapshot


def forget_templates() -> None:
    """Undo each make_template."""
    while _made:
        _made.popitem()[1].close()


def _directory(logs: str | Path | None) -> Path | None:
    if logs is None:
        return None
    directory = Path(logs)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the directory {directory} for logs cannot be made: {error.strerror}") from error
    return directory


def _manner(spec: GuestSpec, machine: Machine, image: Image | None) -> Manner:
    ours = image is not None and image.has_initramfs and spec.initrd is None
    return Manner(
        name=image.name if image else f"{machine.arch} guest",
        expects_agent=ours and image is not None and image.agent,
        announces=ours,
        stamped=True if ours and spec.kernel is None else None,  # Debian's kernels have printk.time on
        timeout=spec.timeout or 60.0,
        boot_timeout=spec.boot_timeout or 120.0,
        timeout_scale=spec.timeout_scale or _scale_of_environment(),
    )


def _ready(life: Life, spec: GuestSpec, wait: bool, started: Callable[[Guest], object]) -> Guest:
    """The guest of that life, up if it is to be waited for, and with a name of its own if it is to have one."""
    guest = Guest(life)
    try:
        started(guest)
        if wait:
            if life.running.paused:
                life.uplink.wake(life.running.resume, Deadline(guest.boot_timeout * guest.timeout_scale))
            guest.wait_up()
            if commands := identity.script(life.machine, spec.hostname):
                guest.run(commands).check()
        elif life.running.paused:
            life.running.resume()
    except BaseException:
        guest.close()
        raise
    return guest


# -- clones ----------------------------------------------------------------------------------------------------------


def _cloned(machine: Machine, qemu: Qemu, manner: Manner, logs: Path | None, progress: Progress) -> Life | None:
    """A clone of that machine, paused; None, with a warning, where there can be none."""
    why = obstacle(machine, qemu.version)
    key = "" if why else key_of(facts(machine, qemu))
    why = why or _hopeless.get(key, "")
    if why:
        _warn(manner, why)
        return None
    if key in _made:
        return _clone(_made[key], machine, qemu, manner, logs)
    try:
        return _clone(_template(key, machine, qemu, manner, logs, progress), machine, qemu, manner, logs)
    except SnapshotError as error:
        # Of a damaged template no guest is made: it is removed, and made once more.
        if key not in _templates:
            _hopeless[key] = error.message
            _warn(manner, error.message)
            return None
        progress.step(f"{error.message}; making the template again")
        _templates.pop(key).close()
        store.remove(store.template_path(key))
    try:
        return _clone(_template(key, machine, qemu, manner, logs, progress), machine, qemu, manner, logs)
    except SnapshotError as error:  # QEMU saves a state that it cannot restore
        _hopeless[key] = error.message
        _warn(manner, error.message)
        return None


def _template(
    key: str, machine: Machine, qemu: Qemu, manner: Manner, logs: Path | None, progress: Progress
) -> Snapshot:
    if key not in _templates:
        _templates[key] = cloning.template(machine, qemu, manner, logs=logs, progress=progress)
    return _templates[key]


def _clone(snapshot: Snapshot, machine: Machine, qemu: Qemu, manner: Manner, logs: Path | None) -> Life:
    life = _pool.take(snapshot, qemu, manner) if poolable(machine) else None
    if life is None or not _goes_on(life):
        return cloning.clone(snapshot, qemu, manner, logs=logs, remember=True)
    if logs is not None:
        life.move_logs(logs)
    return life


def _goes_on(life: Life) -> bool:
    """Let a clone out of the pool run; whether it answers. Its QEMU may have been killed a moment ago."""
    life.started = time.monotonic()
    try:
        life.uplink.wake(life.running.resume, Deadline(life.manner.boot_timeout * life.manner.timeout_scale))
    except BaseException as error:
        life.close()
        if not isinstance(error, VmtestError):
            raise
        return False
    return True


def _warn(manner: Manner, why: str) -> None:
    warnings.warn(
        ColdBootWarning(
            f"{manner.name} is booted anew for each use, since it cannot be cloned: {why}. With cold=True (or --cold, "
            "--vm-cold) this warning is not given"
        ),
        stacklevel=4,
    )


def _from_snapshot(spec: GuestSpec, logs: Path | None) -> Life:
    """A clone of a snapshot that people have named, paused."""
    assert spec.snapshot is not None
    snapshot = store.named(spec.snapshot)
    machine, wanted = snapshot.machine, {"accel", "image", "snapshot", "qemu", "hostname", "arch", "cold", "trim"}
    wanted |= {"timeout", "boot_timeout", "timeout_scale"}
    for field in fields(spec):
        if field.name not in wanted and getattr(spec, field.name) is not None:
            raise UsageError(
                f"{field.name} cannot be chosen for a guest that begins in a snapshot ({spec.snapshot}): it is saved",
                hint="make another snapshot: vmtest snapshot create",
            )
    qemu = find_qemu(spec.qemu or machine.qemu, machine.arch)
    machine = _for_qemu(snapshot, qemu)
    if spec.accel not in (None, AUTO, machine.accel):
        crossing(machine, spec.accel or AUTO)
        machine = replace(machine, accel=spec.accel or AUTO)
    choose(machine.accel, machine.arch, qemu)
    manner = replace(
        snapshot.manner,
        timeout=spec.timeout or 60.0,
        boot_timeout=spec.boot_timeout or 120.0,
        timeout_scale=spec.timeout_scale or _scale_of_environment(),
    )
    return cloning.clone(snapshot, qemu, manner, machine=machine, logs=logs)


def _for_qemu(snapshot: Snapshot, qemu: Qemu) -> Machine:
    """The snapshot's machine for that QEMU, which may be newer than the one that saved it but not older."""
    machine = replace(snapshot.machine, qemu=str(qemu.path))
    if qemu.version < snapshot.qemu_version:
        raise UsageError(
            f"the snapshot {snapshot.name} was saved by QEMU {_dotted(snapshot.qemu_version)}, and {qemu.path} is "
            f"{_dotted(qemu.version)}: an older QEMU cannot restore what a newer one saved"
        )
    if qemu.version != snapshot.qemu_version:  # what an alias such as q35 stands for has changed with the version
        _, _, properties = machine.machine.partition(",")
        machine = replace(machine, machine=",".join(filter(None, [snapshot.facts["machine_type"], properties])))
    return machine


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _scale_of_environment() -> float:
    value = os.environ.get("VMTEST_TIMEOUT_SCALE", "1")
    return GuestSpec.parse({"timeout_scale": value}, where="VMTEST_TIMEOUT_SCALE").timeout_scale or 1.0


def _sweep_once() -> None:
    global _swept
    if not _swept:
        _swept = True
        sweep()
