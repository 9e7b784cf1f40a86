"""Guests out of snapshots, and snapshots out of guests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from vmtest import cache
from vmtest.deadline import Deadline
from vmtest.errors import GuestError, SnapshotError, UsageError
from vmtest.host import Qemu, memory
from vmtest.life import Life
from vmtest.model.machine import Machine
from vmtest.model.manner import Manner
from vmtest.model.snapshot import unsavable
from vmtest.progress import SILENT, Progress
from vmtest.qemu.argv import Ram
from vmtest.qemu.qcow2 import set_backing
from vmtest.snapshots import Disk, Snapshot, facts, key_of, store, unfit
from vmtest.snapshots.digest import write
from vmtest.snapshots.snapshot import CONSOLE, RAM, STATE

__all__ = ["clone", "save", "template"]

READONLY = (9, 0, 0)
"""The first QEMU that maps a file which it has opened read-only as memory that can be written (rom=off)."""
SECONDS = 60.0
"""What saving or restoring may take, before the time scale; usual are 10 ms, and a second a GiB of memory moved."""
QUIET = 0.1
QUIET_CPU = 0.05
"""A guest has come to rest when QEMU used so small a part of so many seconds, and the console was silent."""
HOLD = 10.0
"""Seconds that a guest may take to hold its programs; usual are 5 ms."""
RESTLESS = 10.0
"""Seconds after which a guest that does not come to rest is taken as it is: some work always."""


# -- out of snapshots ------------------------------------------------------------------------------------------------


def clone(
    snapshot: Snapshot,
    qemu: Qemu,
    manner: Manner,
    *,
    machine: Machine | None = None,
    logs: Path | None = None,
    remember: bool = False,
) -> Life:
    """A new machine in the snapshot's state, paused. What it writes, to memory and disks, is its own.

    ``machine`` is the snapshot's own, but for the accelerator. With ``remember`` its console begins with what was
    printed until the snapshot, as that of a guest that was booted. Raises SnapshotError with QEMU's own words.
    """
    memory.require(snapshot.machine.memory, memory.CLONE)
    if not snapshot.untouched:
        raise SnapshotError(f"the snapshot {snapshot.path} was changed or removed while it was in use")
    if why := unfit(snapshot.facts, snapshot.machine, machine.accel if machine else snapshot.machine.accel):
        raise SnapshotError(f"the snapshot {snapshot.label} does not fit any more: {why}")
    ram = Ram(
        path=f"/proc/self/fd/{snapshot.ram}",  # which stays the file that was checked, whatever becomes of its name
        shared=False,
        readonly=qemu.version >= READONLY,
        block=snapshot.ram_block,
    )
    state = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        os.write(state, snapshot.state)
        os.lseek(state, 0, os.SEEK_SET)
        life = Life(
            machine or snapshot.machine,
            qemu,
            manner,
            logs=logs,
            parent=snapshot,
            ram=ram,
            incoming=True,
            inherited=(snapshot.ram, state),
        )
        try:
            if remember:
                life.running.remember(snapshot.transcript)
            life.running.migration.load(state, Deadline(SECONDS * manner.timeout_scale))
        except BaseException as error:
            if isinstance(error, SnapshotError):
                error.evidence |= {title: text for title, text in life.running.evidence().items() if text}
            life.close()
            raise
    finally:
        os.close(state)
    return life


# -- out of guests ---------------------------------------------------------------------------------------------------


def template(
    machine: Machine, qemu: Qemu, manner: Manner, *, logs: Path | None = None, progress: Progress = SILENT
) -> Snapshot:
    """The snapshot of that machine as it has just booted: out of the cache, or made now and kept there.

    Two processes that want the same one make it once: the second waits. Raises what a boot raises, and SnapshotError
    where the state cannot be saved.
    """
    known = facts(machine, qemu)
    key = key_of(known)
    path = store.template_path(key)
    found = _opened(path)
    if found is not None:
        return found

    def waiting() -> None:
        progress.step(f"waiting for another process that boots {manner.name} for its template")

    with _disk_errors(path), cache.lock(store.locked(path), waiting=waiting):
        found = _opened(path, telling=True)
        if found is None:
            memory.require(machine.memory, memory.BOOT)
            with cache.building(path, key) as work:
                work.chmod(0o700)  # a guest's memory is nobody else's business
                store.room(work, min(machine.memory, memory.BOOT) << 20)  # a boot for nothing takes long
                progress.step(f"booting {manner.name} under {machine.accel}, for the template of its clones")
                _boot_into(work, machine, qemu, manner, logs, known, key)
                if logs is not None:  # they are told only if that fails; a clone begins with what was printed
                    (logs / CONSOLE).unlink(missing_ok=True)
            found = Snapshot(path)
            store.prune(store.limit())
    return found


def _opened(path: Path, *, telling: bool = False) -> Snapshot | None:
    """The template, None where there is none that is whole; ``telling`` says so of one that is damaged."""
    try:
        return Snapshot(path)
    except FileNotFoundError:
        return None
    except SnapshotError as error:
        if telling:
            import logging

            logging.getLogger("vmtest").warning("%s; it is made again", error.message)
        return None


def _boot_into(
    work: Path, machine: Machine, qemu: Qemu, manner: Manner, logs: Path | None, known: dict[str, object], key: str
) -> None:
    with _memory(machine) as memory_file:
        ram = Ram(path=f"/proc/self/fd/{memory_file}", shared=True)
        life = Life(machine, qemu, manner, logs=logs, disks=work, ram=ram, inherited=(memory_file,))
        try:
            life.connect(Deadline(manner.boot_timeout * manner.timeout_scale))
            _check_renewal(life)
            _come_to_rest(life)
            with _held(life):
                life.running.pause()
                life.running.migration.save(work / STATE, Deadline(SECONDS * manner.timeout_scale))
            (work / CONSOLE).write_bytes(life.running.console.transcript())
            disks = tuple(Disk(number=number, files=(path.name,)) for number, path in life.disks.items())
            resolved = _resolved_type(life)
        except BaseException as error:
            if isinstance(error, (SnapshotError, GuestError)):
                error.evidence |= {t: text for t, text in life.running.evidence().items() if t not in error.evidence}
            raise
        finally:
            life.close()  # also what its disks hold is complete then
        _write(memory_file, work)
    Snapshot.write(
        work,
        name="",
        origin=f"{manner.name} as it has just booted",
        machine=machine,
        manner=manner,
        known={**known, "machine_type": resolved},
        key=key,
        disks=disks,
        ram_block="",
        qemu_version=qemu.version,
    )


@contextmanager
def _memory(machine: Machine) -> Iterator[int]:
    """A file of the machine's memory that is itself in memory: a disk's would be written page by page, while the guest
    waits, and a full disk is a signal that kills QEMU.
    """
    descriptor = os.memfd_create("ram", os.MFD_CLOEXEC)
    try:
        os.truncate(descriptor, machine.memory << 20)
        yield descriptor
    finally:
        os.close(descriptor)


def _check_renewal(life: Life) -> None:
    """Raise SnapshotError for a guest whose clones would all draw the same random numbers."""
    why = "vmtest's agent does not run in it"
    if life.uplink.agent is not None:
        try:
            life.uplink.wake(lambda: None, Deadline(10 * life.manner.timeout_scale))
        except GuestError as error:
            why = error.message
        else:
            return
    raise SnapshotError(f"its clones would all draw the same random numbers: {why}")


def _come_to_rest(life: Life) -> None:
    """Wait until the guest has nothing left to do: each clone would do it again."""
    most = Deadline(RESTLESS * life.manner.timeout_scale)
    while not most.expired:
        printed, used = life.running.console.total, life.running.process.cpu_seconds()
        if life.running.verdict.wait(QUIET):
            life.running.verdict.check()
        if life.running.process.cpu_seconds() - used < QUIET * QUIET_CPU and life.running.console.total == printed:
            return


def save(life: Life, path: Path, *, name: str, origin: str) -> Snapshot:
    """The snapshot of a running guest, written to the directory ``path``; the guest goes on. Raises SnapshotError, and
    UsageError where there is one already.

    Its memory is its own, so QEMU moves the state to another QEMU, whose memory is the file; that one's devices are
    saved then.
    """
    if why := unsavable(life.machine, life.qemu.version):
        raise SnapshotError(f"{life.manner.name} cannot be saved: {why}")
    memory.require(life.machine.memory, life.running.process.resident)  # all that it has is copied
    deadline = Deadline(SECONDS * life.manner.timeout_scale)
    key = key_of(known := facts(life.machine, life.qemu))
    alone = cache.lock(store.locked(path)) if name else nullcontext()  # a directory of its own needs no lock
    with _disk_errors(path), alone:
        if path.exists():
            raise UsageError(
                f"there is a snapshot named {name!r} already", hint=f"another name, or: vmtest snapshot rm {name}"
            )
        with cache.building(path, path.name) as work:
            work.chmod(0o700)
            with _memory(life.machine) as memory_file:
                block = _ram_block(life)
                ram = Ram(path=f"/proc/self/fd/{memory_file}", shared=True, block=block)
                # Its disks are never used.
                other = Life(life.machine, life.qemu, life.manner, ram=ram, incoming=True, inherited=(memory_file,))
                try:
                    disks = _send(life, other, work, deadline)
                    other.running.migration.save(work / STATE, deadline)
                finally:
                    other.close()
                _write(memory_file, work)
            known["machine_type"] = _resolved_type(life)
            Snapshot.write(
                work,
                name=name,
                origin=origin,
                machine=life.machine,
                manner=replace(life.manner, expects_agent=life.uplink.agent is not None),
                known=known,
                key=key,
                disks=disks,
                ram_block=block,
                qemu_version=life.qemu.version,
            )
    return Snapshot(path)


def _send(life: Life, other: Life, work: Path, deadline: Deadline) -> tuple[Disk, ...]:
    """Move a guest's state to the other QEMU and copy its disks and what it printed; it stands still meanwhile."""
    running, paused = life.running, life.running.paused
    with nullcontext() if paused else _held(life):
        if not paused:
            running.pause()
        try:
            running.migration.send(other.running.migration, deadline)
            (work / CONSOLE).write_bytes(running.console.transcript())
            return _copy_disks(life, work)  # now: QEMU has let go of them, so that they are complete
        finally:
            running.resume()
            if paused:  # QEMU sends no state of a machine that stands still since it was sent before
                running.pause()


@contextmanager
def _held(life: Life) -> Iterator[None]:
    """While it lasts none of the guest's programs runs: its clones are woken before they do. One that has crashed, or
    whose agent does not answer, is taken as it is.
    """
    agent = life.uplink.agent
    with ExitStack() as stack:
        if agent is not None and not life.running.verdict.is_set:
            with suppress(TimeoutError):
                try:
                    stack.enter_context(agent.held(Deadline(HOLD * life.manner.timeout_scale)))
                except GuestError as error:
                    raise SnapshotError(error.message) from error
        yield


def _write(memory_file: int, work: Path) -> None:
    """Write the memory into the snapshot, where there is room for as much of it as is used."""
    store.room(work, os.fstat(memory_file).st_blocks * 512)
    write(memory_file, work / RAM)


def _copy_disks(life: Life, work: Path) -> tuple[Disk, ...]:
    """The overlays of a machine that is stopped, each with all that it lies over down to the user's own disk."""
    below = {disk.number: disk.files for disk in life.parent.disks} if life.parent else {}
    disks = []
    for number, overlay in life.disks.items():
        files = below.get(number, ())
        if files and not (life.parent and life.parent.untouched):  # others may lie there now under the same names
            raise SnapshotError("the snapshot that the guest is a clone of was changed or removed while it ran")
        for file in files:
            assert life.parent is not None
            try:
                (work / file).hardlink_to(life.parent.path / file)
            except OSError:  # another file system
                shutil.copyfile(life.parent.path / file, work / file)
        top = f"disk{number}.{len(files)}.qcow2"
        shutil.copyfile(overlay, work / top)
        if files:
            set_backing(work / top, files[-1])
        disks.append(Disk(number=number, files=(*files, top)))
    return tuple(disks)


def _ram_block(life: Life) -> str:
    """QEMU's name of the machine's memory, "" where it is the file that we gave it: the state holds the name."""
    if life.running.ram is not None:
        return life.running.ram.block
    kind = _resolved_type(life)
    machines = life.running.execute("query-machines")
    assert isinstance(machines, list)
    row = next(row for row in machines if kind in (row["name"], row.get("alias")))
    return str(row.get("default-ram-id", ""))


def _resolved_type(life: Life) -> str:
    """The machine type with its version, which an alias such as q35 stands for."""
    return str(life.running.execute("qom-get", path="/machine", property="type")).removesuffix("-machine")


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """A full disk and the like as one clear error."""
    try:
        yield
    except OSError as error:
        raise store.NoRoom(f"the snapshot {path} cannot be saved: {error}") from error
