"""The aarch64 machine of the executor ``qemu``: what images/_executors/runner_aarch64.S finds when it begins.

A vector is ESR_EL1.EC, an error code ESR_EL1.ISS (Arm ARM, DDI 0487, D17.2.37). What is beyond the registers of a
state (SVE, SME) is "unsupported".
"""

from __future__ import annotations

import struct

from vmtest.executors.qemu_board import Board
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE

__all__ = ["Arm"]

# The runner's source has the same addresses, relative to RAM; below them QEMU puts its device tree.
_RAM, _OURS = 0x4000_0000, 0x20_0000
_TABLE_1, _TABLE_0, _LEVEL_2, _CODE_3, _DATA_3 = range(_OURS + 0x10000, _OURS + 0x15000, PAGE)
_CONTROL, _CODE_AT, _DATA_AT = _OURS + 0x20000, _OURS + 0x22000, _OURS + 0x23000

# Descriptors (D8.3): blocks of device and normal memory for EL1, the only one that may execute it; tables; pages for
# EL0. The indices are the runner's MAIR_EL1's.
_ACCESSED, _SHARED, _FOR_EL0, _NOT_EL0, _NOT_EL1 = 1 << 10, 3 << 8, 1 << 6, 1 << 54, 1 << 53
_DEVICE = 1 | 1 << 2 | _ACCESSED | _NOT_EL0 | _NOT_EL1
_NORMAL = 1 | _ACCESSED | _SHARED | _NOT_EL0
_TABLE, _PAGE = 3, 3 | _ACCESSED | _SHARED | _FOR_EL0 | _NOT_EL1

_SVE, _SME, _FETCH = 0x19, 0x1D, 0x20
_HAVE_ADDRESS = (_FETCH, 0x22, 0x24, 0x34)
"""Of the classes that EL0 causes those with which FAR_EL1 is valid: aborts, PC alignment, watchpoints."""


class Arm(Board):
    """QEMU's "virt", whose CPU begins in EL1."""

    machine = "virt,gic-version=2"
    cpu = "max"
    arguments = ("-device", f"loader,addr={_RAM + _OURS:#x},cpu-num=0")
    state = 776
    size, image, control, slots = 0xC00000, _OURS, _CONTROL, _OURS + 0x20_0000
    fetch_faults = (_FETCH,)

    def set_up(self) -> None:
        """See Board."""

        def entry(table: int, index: int, value: int, kind: int) -> None:
            struct.pack_into("<Q", self.memory, table + 8 * index, value | kind)

        entry(_TABLE_1, 0, 0, _DEVICE)
        entry(_TABLE_1, _RAM >> 30, _RAM, _NORMAL)
        entry(_TABLE_0, 0, _RAM + _LEVEL_2, _TABLE)
        for address, table, at, size in ((CODE, _CODE_3, _CODE_AT, PAGE), (DATA, _DATA_3, _DATA_AT, DATA_SIZE)):
            entry(_LEVEL_2, address >> 21, _RAM + table, _TABLE)
            for place in range(0, size, PAGE):
                entry(table, place // PAGE, _RAM + at + place, _PAGE)

    def exception(self, vector: int, error: int, address: int) -> tuple[int | None, int | None, int | None]:
        """See Board."""
        return vector, error, address if vector in _HAVE_ADDRESS else None

    def is_beyond(self, vector: int, end: int) -> bool:
        """See Board."""
        return vector in (_SVE, _SME)
