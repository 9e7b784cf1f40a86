"""The riscv64 machine of the executor ``qemu``: what images/_executors/runner_riscv64.S finds when it begins.

A vector is mcause; there are no error codes (the RISC-V privileged specification, 3.1.15 and 3.1.16).
"""

from __future__ import annotations

import struct

from vmtest.executors.qemu_board import Board
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE

__all__ = ["Riscv"]

# The runner's source has the same addresses, relative to RAM, at whose end QEMU puts its device tree.
_RAM = 0x8000_0000
_TABLE, _LEVEL_1, _CODE_0, _DATA_0 = range(0x10000, 0x14000, PAGE)
_CONTROL, _CODE_AT, _DATA_AT = 0x20000, 0x22000, 0x23000
_POINTER, _PAGE = 1, 0xDF  # valid; and for all accesses of user mode, accessed, dirty (4.3.1)

_FETCH_FAULT = 12
_HAVE_ADDRESS = (0, 1, 4, 5, 6, 7, _FETCH_FAULT, 13, 15)
"""The causes with which mtval is an address: misaligned ones, access faults, page faults."""


class Riscv(Board):
    """QEMU's "virt", whose CPU begins in M-mode at the beginning of RAM."""

    machine = "virt"
    cpu = "rv64"
    arguments = ("-bios", "none")
    state = 504
    size, image, control, slots = 0xC00000, 0, _CONTROL, 0x20_0000
    fetch_faults = (_FETCH_FAULT,)

    def set_up(self) -> None:
        """See Board."""

        def entry(table: int, index: int, address: int, kind: int) -> None:
            struct.pack_into("<Q", self.memory, table + 8 * index, _RAM + address >> 2 | kind)

        entry(_TABLE, 0, _LEVEL_1, _POINTER)
        for address, table, at, size in ((CODE, _CODE_0, _CODE_AT, PAGE), (DATA, _DATA_0, _DATA_AT, DATA_SIZE)):
            entry(_LEVEL_1, address >> 21, table, _POINTER)
            for place in range(0, size, PAGE):
                entry(table, place // PAGE, at + place, _PAGE)

    def exception(self, vector: int, error: int, address: int) -> tuple[int | None, int | None, int | None]:
        """See Board."""
        return vector, None, address if vector in _HAVE_ADDRESS else None

    def is_beyond(self, vector: int, end: int) -> bool:
        """See Board."""
        return False
