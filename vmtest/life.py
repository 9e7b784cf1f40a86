"""One life of a machine: its QEMU, the way commands reach it, and the directory of what it needs and leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from vmtest.deadline import Deadline
from vmtest.errors import BootTimeout
from vmtest.host import Qemu
from vmtest.model.machine import Drive, Machine
from vmtest.model.manner import Manner
from vmtest.qemu.argv import Ram
from vmtest.qemu.qcow2 import create_overlay, virtual_size
from vmtest.running import Running
from vmtest.snapshots import Snapshot
from vmtest.uplink import Uplink
from vmtest.workdir import Workdir

__all__ = ["Life"]

LEAN = {"MALLOC_ARENA_MAX": "1"}
"""glibc gives each thread of QEMU an arena of its own: a MiB a guest, for nothing that was measured to be faster."""


class Life:
    """A machine from its start to its end. ``close`` ends it, and removes its working directory.

    ``machine`` is what was asked for; ``disks`` are the overlays that take what it writes, by the number of the drive.
    """

    def __init__(
        self,
        machine: Machine,
        qemu: Qemu,
        manner: Manner,
        *,
        logs: Path | None = None,
        disks: Path | None = None,
        parent: Snapshot | None = None,
        ram: Ram | None = None,
        incoming: bool = False,
        inherited: Sequence[int] = (),
    ) -> None:
        """Start QEMU; does not wait for the guest. ``logs`` is a directory for the logs, by default one that goes when
        the guest does. ``disks`` is where the overlays go, by default the working directory; they lie over the
        machine's drives, or over those of the snapshot ``parent``. The rest is as for Running.
        """
        self.machine = machine
        self.qemu = qemu
        self.manner = manner
        self.parent = parent
        self.workdir = Workdir()
        self.logs = logs or self.workdir.path
        self.started = time.monotonic()
        self.closed = False
        try:
            self.disks = _overlays(parent.drives() if parent else machine.drives, disks or self.workdir.path)
            overlaid = {number: Drive(path=path, format="qcow2", snapshot=False) for number, path in self.disks.items()}
            drives = tuple(overlaid.get(number, drive) for number, drive in enumerate(machine.drives))
            self.running = Running(
                machine,
                qemu,
                drives=drives,
                directory=self.logs,
                environment=self.workdir.environment | LEAN,
                scale=manner.timeout_scale,
                timeout=manner.timeout,
                stamped=manner.stamped,
                ram=ram,
                incoming=incoming,
                inherited=inherited,
            )
            self.uplink = Uplink(self.running, expects_agent=manner.expects_agent, announces=manner.announces)
        except BaseException:
            if hasattr(self, "running"):
                self.running.close()
            self.workdir.remove()
            raise

    def connect(self, deadline: Deadline) -> None:
        """Wait until the guest answers commands. Raises BootTimeout with what was last seen, or its panic at once."""
        if self.uplink.channel is None and not self.uplink.connect(deadline):
            seen = self.running.console.tail_text(1).strip() or "nothing at all"
            raise BootTimeout(
                f"the guest did not answer within {deadline.seconds:g} s of its start; last seen: {seen}",
                hint=f"a slow host or accelerator (this ran under {self.machine.accel}; `vmtest doctor` shows the "
                "speeds) needs a longer boot_timeout; a guest of your own with neither agent nor shell is booted with "
                "wait=False and driven by its console",
            )

    def move_logs(self, directory: Path) -> None:
        """Log to that directory from here on, after what is there. QEMU's stderr follows at the end."""
        directory.mkdir(parents=True, exist_ok=True)
        self.running.console.move_log(directory / "console.log")
        self.logs = directory

    def close(self) -> None:
        """Kill QEMU and leave nothing but the logs, where they were asked for; a second time does nothing."""
        if self.closed:
            return
        self.closed = True
        self.uplink.close()
        self.running.close()
        words = self.running.process.stderr_path
        if words.parent != self.logs and words.exists() and words.stat().st_size:
            with (self.logs / words.name).open("ab") as kept:
                kept.write(words.read_bytes())
        self.workdir.remove()


def _overlays(drives: Sequence[Drive], directory: Path) -> dict[int, Path]:
    """An overlay for each drive of which nothing that the guest writes is kept."""
    made = {}
    for number, drive in enumerate(drives):
        if drive.snapshot and not drive.readonly:
            made[number] = directory / f"disk{number}.qcow2"
            size = virtual_size(drive.path, drive.format)
            create_overlay(made[number], str(drive.path.absolute()), drive.format, size)
    return made
