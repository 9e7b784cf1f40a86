"""What a stock QEMU tells of what it does: its trace events (docs/devel/tracing.rst in QEMU; the backend "log"), and
what it says of a guest's errors.
"""

from __future__ import annotations

import os
from collections.abc import Collection

__all__ = ["ERRORS", "OWN", "TRACED", "Events"]

OFTEN = (
    *("bdrv", "blk", "cpu", "flatview", "ioapic", "lockcnt", "memory", "object", "pic", "qemu", "resettable", "visit"),
    "x86",
)
"""How the names of events begin that are of QEMU's own works, or of each machine, and are told often: QEMU is asked to
leave them out, which costs its start 0.4 ms each (it looks through all that it knows).
"""
SELDOM = (
    *("aio", "apic", "breakpoint", "dirty", "exec", "guest", "handle_hmp", "handle_qmp", "job", "loader", "loadvm"),
    *("migrat", "module", "monitor", "msi", "msix", "pci_cfg", "pci_route", "pci_update", "poll", "qbus", "qcrypto"),
    *("qdev", "qio", "qmp", "ram", "reentrant", "run_poll", "runstate", "savevm", "system", "thread", "translate"),
    *("vm_state", "vmstate"),
)
"""And those of which a few are told."""
OWN = tuple(f"{prefix}_".encode() for prefix in (*OFTEN, *SELDOM))
ERRORS = "guest_errors"
"""What stands for QEMU's words about a guest's errors, which are no events: they are told or not, together."""
TRACED = "trace:-x86_*"
"""What has QEMU tell nothing else but the events that are on."""
FULL = 64 << 20
"""Bytes that the file may have."""


class Events:
    """A file in memory that a QEMU writes them to, a line each. ``arguments`` are its own, and it inherits ``fd``."""

    def __init__(self, without: Collection[str] = ()) -> None:
        """All events but those of QEMU's own works that are told often, and those ``without`` which it is to be."""
        self.fd = os.memfd_create("vmtest-events", os.MFD_CLOEXEC)
        self._at = 0
        off = (*(f"{prefix}_*" for prefix in OFTEN), *sorted({*without} - {ERRORS}))
        items = [*([] if ERRORS in without else [ERRORS, "unimp"]), "trace:*", *(f"trace:-{name}" for name in off)]
        self.arguments = ("-D", f"/proc/self/fd/{self.fd}", "-d", ",".join(items))

    def take(self) -> list[bytes]:
        """The lines since it was asked last."""
        if (size := os.fstat(self.fd).st_size) <= self._at:  # it was emptied, and nothing was told since
            return []
        begin = max(self._at, size - FULL)  # of what tells more than that in one sequence the end is enough
        data = os.pread(self.fd, size - begin, begin)
        self._at = size
        if size > FULL:
            os.ftruncate(self.fd, 0)  # QEMU goes on where it was, which leaves a hole in front
        return data.splitlines()

    def close(self) -> None:
        """Forget them."""
        os.close(self.fd)
