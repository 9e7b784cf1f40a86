"""Back to one snapshot, again and again: by loadvm in the same QEMU, or by a clone in another one, as is faster."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from vmtest.cloning import clone
from vmtest.deadline import Deadline
from vmtest.errors import GuestError, HostError, QmpError, SnapshotError
from vmtest.host import memory
from vmtest.life import Life
from vmtest.model.snapshot import poolable
from vmtest.pool import Pool
from vmtest.qemu.qcow2 import create_empty
from vmtest.snapshots import Snapshot, store

__all__ = ["Resetter", "Way"]

Way = Literal["loadvm", "clone"]

ENOUGH = 3
"""Resets by each way that are measured before one is chosen. The first one of each is not counted: it warms up."""
NEWEST = 5
"""Resets of a way whose median is compared."""
SECONDS = 60.0
"""What saving or loading may take, before the time scale; usual are 5 ms, and a second a GiB that is not zero."""
NODE, TAG = "vmtest-state", "vmtest"
TSC_GOES_ON = 10.0
"""Seconds after which an x86 gets another QEMU, since the TSC of one never goes back: under TCG by cpu_get_ticks (its
cpu_ticks_prev is in no state), and KVM takes a TSC that is written soon after another for a synchronisation of the two.
A kernel whose TSC has jumped by 20 seconds reports a soft lockup."""


class Resetter:
    """Takes one guest back to snapshots. ``way`` is the one that was measured to be faster, None before; it is
    measured anew for another snapshot. ``close`` ends the clones made ahead.
    """

    def __init__(self) -> None:
        self.way: Way | None = None
        self._snapshot: Snapshot | None = None
        self._times: dict[Way, deque[float]] = {}
        self._swaps = 0
        self._saved: _Saved | None = None
        self._pool: Pool | None = None

    def reset(self, life: Life, snapshot: Snapshot, become: Callable[[Life], None], *, way: Way | None = None) -> None:
        """Make of ``life`` one that stands still in the snapshot's state, perhaps itself; ``become`` lets it run.

        ``way`` forces one. Raises what ``clone`` raises, and SnapshotError where loadvm is forced and cannot be.
        """
        if snapshot is not self._snapshot:
            self._begin(snapshot, life)
        chosen: Way = way or self.way or ("clone" if len(self._times["clone"]) < ENOUGH else "loadvm")
        began = time.monotonic()
        if chosen == "clone":
            counts, lost = self._swap(life, snapshot, become), False
        else:
            counts, lost = self._load(life, snapshot, become, way is not None)
        if counts:
            self._times[chosen].append(time.monotonic() - began)
        if lost or (self.way is None and all(len(times) >= ENOUGH for times in self._times.values())):
            self._choose()

    def _begin(self, snapshot: Snapshot, life: Life) -> None:
        self._snapshot, self._saved, self._swaps = snapshot, None, 0
        self._times = {way: deque(maxlen=NEWEST) for way in ("loadvm", "clone")}
        # With its TSC the clock of a kernel would jump: only for those who ask for it.
        has_kernel = life.machine.kernel is not None or life.uplink.channel is not None or life.uplink.agent is not None
        self.way = "clone" if has_kernel and _has_tsc(life) else None

    def _choose(self) -> None:
        if all(self._times.values()):
            medians = {way: statistics.median(times) for way, times in self._times.items()}
            self.way = "loadvm" if medians["loadvm"] < medians["clone"] else "clone"
        if self.way == "loadvm":
            self.close()

    def _swap(self, life: Life, snapshot: Snapshot, become: Callable[[Life], None]) -> bool:
        """By another QEMU; whether its time counts."""
        if self._pool is None:
            self._pool = Pool(1)
        made = self._pool.take(snapshot, life.qemu, life.manner) if poolable(life.machine) else None
        become(made or clone(snapshot, life.qemu, life.manner))
        self._swaps += 1
        return self._swaps > 1

    def _load(self, life: Life, snapshot: Snapshot, become: Callable[[Life], None], forced: bool) -> tuple[bool, bool]:
        """By loadvm, if it can be; whether its time counts, and whether there was a state to load that was lost."""
        saved = self._saved if self._saved is not None and self._saved.life is life else None
        if saved is not None and not saved.stale:
            # It fails where QEMU has ended, perhaps for another one by a reset of the guest's, or cannot go on.
            with contextlib.suppress(HostError, GuestError):
                saved.load()
                become(life)
                return saved.loads > 1, False
        new = clone(snapshot, life.qemu, life.manner)
        try:
            self._saved = _Saved(new)
        except SnapshotError:
            if forced:
                new.close()
                raise
            self._saved, self.way = None, "clone"
        except BaseException:
            new.close()
            raise
        become(new)
        lost = saved is not None and not saved.stale  # which may happen each time: then loadvm is the slower way
        return lost, lost

    def close(self) -> None:
        """End the clones that were made ahead."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


class _Saved:
    """The state of a clone that has not run yet, inside of its QEMU: the memory in a file of its own, the disks in
    their overlays.
    """

    def __init__(self, life: Life) -> None:
        """Save it. Raises SnapshotError where QEMU refuses, or there is no room."""
        self.life = life
        self.loads = 0
        self._began = time.monotonic()
        self._jobs = itertools.count()
        assert life.running.qmp is not None
        self._qmp = life.running.qmp
        if not life.running.replaceable:
            raise SnapshotError("a guest whose QEMU has -no-reboot is not reset in place")
        size = life.machine.memory
        if memory.available() - memory.RESERVE < size:  # what is loaded is no longer shared with other clones
            raise SnapshotError(f"a guest that is reset in place may take {size} MiB of memory, which are not there")
        path = life.workdir.path / "state.qcow2"
        store.room(path.parent, size << 20)
        try:
            create_empty(path, 1 << 16)  # the state lies behind its end
            # Flushing waits for the disk, and the file is worth nothing without this QEMU.
            file = {"driver": "file", "filename": str(path)}
            self._qmp.execute("blockdev-add", driver="qcow2", node_name=NODE, cache={"no-flush": True}, file=file)
            nodes: list[dict[str, Any]] = self._qmp.execute("query-named-block-nodes", flat=True)
            overlays = {str(overlay) for overlay in life.disks.values()}
            ours = [node["node-name"] for node in nodes if node["drv"] == "qcow2" and node["file"] in overlays]
            self._devices = [NODE, *ours]
            self._run("snapshot-save")
        except (QmpError, OSError) as error:
            raise SnapshotError(f"QEMU cannot keep the state to load it again: {error}") from error

    @property
    def stale(self) -> bool:
        """Whether the TSC would be too far from the state's."""
        return _has_tsc(self.life) and time.monotonic() - self._began > TSC_GOES_ON

    def load(self) -> None:
        """Go back to it; the machine stands still then. Raises QmpError where QEMU cannot."""
        self._qmp.execute("stop")  # whatever the verdict: Running.execute would look at it
        with self.life.running.replacing():
            self._run("snapshot-load")
        self.loads += 1

    def _run(self, command: str) -> None:
        """Not HMP's savevm and loadvm: these choose a disk for the memory themselves, and take all disks there are."""
        job = f"vmtest-{next(self._jobs)}"
        # What a snapshot of the user's has set: it must be the same at both ends.
        switches = [{"capability": "x-ignore-shared", "state": False}]
        wanted = {"job-id": job, "tag": TAG, "vmstate": NODE, "devices": self._devices}
        deadline = Deadline(SECONDS * self.life.manner.timeout_scale)
        self._qmp.execute_all(
            [("migrate-set-capabilities", {"capabilities": switches}), (command, wanted)], timeout=deadline.seconds
        )
        while True:
            # QEMU does nothing else while it loads: the first answer tells the end, so that events gain nothing.
            now = next(row for row in self._qmp.execute("query-jobs", timeout=deadline.seconds) if row["id"] == job)
            if now["status"] == "concluded":
                break
            if deadline.expired:
                raise QmpError(f"{command} did not end within {deadline.seconds:g} s")
            time.sleep(0.001)
        self._qmp.execute("job-dismiss", id=job)
        if "error" in now:
            raise QmpError(f"{command} failed: {now['error']}")


def _has_tsc(life: Life) -> bool:
    return life.machine.arch in ("x86_64", "i386")
