"""From what was asked for to a guest that runs: a clone of a template where that can be, else booted."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Unpack

from vmtest import cloning, identity, resolve
from vmtest.deadline import Deadline
from vmtest.errors import ColdBootWarning, HostError, SnapshotError, UsageError, VmtestError
from vmtest.guest import Guest
from vmtest.host import Qemu, choose, find_qemu, memory
from vmtest.life import Life
from vmtest.model.accel import AUTO
from vmtest.model.image import Image
from vmtest.model.machine import Machine
from vmtest.model.manner import Manner
from vmtest.model.snapshot import crossing, obstacle, poolable
from vmtest.model.spec import BESIDE_SNAPSHOT, GuestSpec, Said
from vmtest.pool import Pool
from vmtest.progress import SILENT, Progress
from vmtest.snapshots import Snapshot, facts, key_of, store
from vmtest.workdir import sweep

__all__ = ["boot", "check", "foresee", "make_template", "use_pool"]

_swept = False
_pool = Pool(0)
_templates: dict[str, Snapshot] = {}
"""Snapshots that are open, by the key of the machine whose clones they serve."""
_made: dict[str, Snapshot] = {}
"""As _templates, made by a user of a guest that was prepared: they go before."""
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""Held by who looks for the template with that key, or makes it."""
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
    with _host_errors():
        return _booted(spec, wait, logs, progress, started)


def _booted(
    spec: GuestSpec, wait: bool, logs: str | Path | None, progress: Progress, started: Callable[[Guest], object]
) -> Guest:
    _sweep_once()
    directory = _directory(logs)
    if spec.snapshot is not None:
        return _ready(_from_snapshot(spec, directory), spec, wait, started)
    machine, qemu, image = resolve.plan(spec, progress=progress)
    manner = _manner(spec, machine, image)
    if wait and not spec.cold:
        life = _cloned(machine, qemu, manner, directory, progress)
        if life is not None:
            return _ready(life, spec, wait, started)
    progress.step(f"booting {manner.name} under {machine.accel}")
    memory.require(machine.memory, memory.BOOT)
    return _ready(Life(machine, qemu, manner, logs=directory), spec, wait, started)


@contextmanager
def _host_errors() -> Iterator[None]:
    """Too many open files, a full disk and the like as one clear error."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise HostError(f"the guest could not be started: {error.strerror or error}{where}") from error


def check(spec: GuestSpec) -> None:
    """Raise what ``boot`` would raise for a spec that cannot be; builds and starts nothing of it."""
    if spec.snapshot is None:
        resolve.check(spec)
    else:
        _check_said(spec, store.peek(spec.snapshot))


def foresee(spec: GuestSpec) -> str:
    """In a few words: what a spec will get, if that is known. Starts nothing. Raises as ``check``."""
    if spec.snapshot is None:
        return resolve.foresee(spec)
    found = store.peek(spec.snapshot)
    return f"from the snapshot {spec.snapshot} of {found.manner.name}, accelerator {spec.accel or found.machine.accel}"


def use_pool(size: int) -> Pool:
    """Have ``size`` clones made ahead from here on; ``close()`` of what is returned ends that."""
    global _pool
    _pool.close()
    _pool = Pool(size, remember=True)
    return _pool


def make_template(guest: Guest, directory: Path) -> Snapshot:
    """Keep a guest as it is now, in ``directory``, and make each guest of the same machine, or from the same named
    snapshot, that is booted by this process from here on a clone of it. Raises SnapshotError.
    """
    snapshot = cloning.save(guest._life, directory, name="", origin="prepared by a test's set-up")
    _made[key_of(facts(guest.machine, guest._life.qemu))] = snapshot
    if guest._life.parent is not None and guest._life.parent.name:
        _made[f"from {guest._life.parent.name}"] = snapshot
    return snapshot


def forget_templates() -> None:
    """Undo each make_template."""
    _made.clear()


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
        if life.running.paused:
            life.uplink.wake(life.running.resume, Deadline(guest.boot_timeout * guest.timeout_scale))
        if wait:
            guest.wait_up()
            if commands := identity.script(life.machine, spec.hostname):
                guest.run(commands).check()
    except BaseException:
        guest.close()
        raise
    return guest


# -- clones ----------------------------------------------------------------------------------------------------------


def _cloned(machine: Machine, qemu: Qemu, manner: Manner, logs: Path | None, progress: Progress) -> Life | None:
    """A clone of that machine, paused; None, with a warning, where there can be none."""
    why = obstacle(machine, qemu.version, expects_agent=manner.expects_agent)
    key = "" if why else key_of(facts(machine, qemu))
    if key in _made:
        return _clone(_made[key], machine, qemu, manner, logs)
    if why := why or _hopeless.get(key, ""):
        _warn(manner, why)
        return None
    tried: Snapshot | None = None
    while True:
        try:
            snapshot = _template(key, tried, machine, qemu, manner, logs, progress)
        except SnapshotError as error:
            _no_clone(key, manner, error)
            return None
        try:
            return _clone(snapshot, machine, qemu, manner, logs)
        except SnapshotError as error:  # changed since it was opened, or QEMU cannot restore what it saved
            if tried is not None:
                _no_clone(key, manner, error)
                return None
            progress.step(f"{error.message}; making the template again")
            tried = snapshot


def _no_clone(key: str, manner: Manner, error: SnapshotError) -> None:
    lasting = not isinstance(error, store.NoRoom)  # what QEMU cannot save it never can
    if lasting:
        _hopeless[key] = error.message
    _warn(manner, error.message, lasting=lasting)


def _template(
    key: str,
    refused: Snapshot | None,
    machine: Machine,
    qemu: Qemu,
    manner: Manner,
    logs: Path | None,
    progress: Progress,
) -> Snapshot:
    """The template, opened once; anew where it was changed since, or where it is the one that QEMU has ``refused``."""
    with _locks[key]:
        found = _templates.get(key)
        if found is not None and found is refused and found.untouched:
            store.remove_template(found)
        if found is None or found is refused or not found.untouched:
            _templates.pop(key, None)  # others may be making a clone of it: it is closed with the last of them
            _templates[key] = cloning.template(machine, qemu, manner, logs=logs, progress=progress)
        return _templates[key]


def _clone(snapshot: Snapshot, machine: Machine, qemu: Qemu, manner: Manner, logs: Path | None) -> Life:
    life = _pool.take(snapshot, qemu, manner) if poolable(machine) else None
    if life is None or not _goes_on(life):
        return cloning.clone(snapshot, qemu, manner, logs=logs, remember=True)
    if logs is not None:
        try:
            life.move_logs(logs)
        except BaseException:
            life.close()
            raise
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


def _warn(manner: Manner, why: str, *, lasting: bool = True) -> None:
    advice = ". With cold=True (or --cold, --vm-cold) this warning is not given" if lasting else ""
    warnings.warn(
        ColdBootWarning(f"{manner.name} is booted anew for each use, since it cannot be cloned: {why}{advice}"),
        stacklevel=4,
    )


def _from_snapshot(spec: GuestSpec, logs: Path | None) -> Life:
    """A clone of a snapshot that people have named, paused."""
    assert spec.snapshot is not None
    snapshot = _made.get(f"from {spec.snapshot}") or store.named(spec.snapshot)
    machine = snapshot.machine
    _check_said(spec, snapshot)
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


def _check_said(spec: GuestSpec, snapshot: Snapshot) -> None:
    """Raise UsageError for what a snapshot's guest cannot be any more, unless that is what it is."""
    is_already = {"image": snapshot.manner.name, "arch": snapshot.machine.arch}
    for field in fields(spec):
        said = getattr(spec, field.name)
        if said is None or (field.name, said) == ("cold", False) or field.name in BESIDE_SNAPSHOT:
            continue
        if said == is_already.get(field.name):
            continue
        raise UsageError(
            f"{field.name} = {said} cannot be had of a guest that begins in the snapshot {spec.snapshot}: "
            f"{is_already.get(field.name, 'that was settled when it was saved')}",
            hint="leave it out, or make another snapshot: vmtest snapshot create",
        )


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
        store.sweep()
