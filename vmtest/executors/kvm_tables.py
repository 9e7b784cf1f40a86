"""What KVM's virtual CPU begins with: page tables, descriptors, a handler for each exception, system registers.

All is that of a 64-bit system, under which 32- and 16-bit code runs in compatibility mode (Intel SDM, volume 3, section
4.1 and chapter 7), so that an exception is told alike in all of them, on a stack of its own, and writes nothing to the
case's.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from dataclasses import dataclass

from vmtest.model.isa import DATA_SIZE, PAGE, Isa

__all__ = [
    "CODE_AT",
    "DATA_AT",
    "KERNEL_CODE",
    "SIZE",
    "STACK_END",
    "STUB",
    "STUBS",
    "SYSCALL",
    "SYSCALLS",
    "fill",
    "system_registers",
]

# Guest-physical pages, and where the system's own are in its address space: far from where cases look.
_PML4, _LOW, _LOW_PD, _CODE_PT, _DATA_PT, _HIGH, _HIGH_PD, _HIGH_PT = (PAGE * n for n in range(1, 9))
_GDT, _IDT, _STUBS, _STACK = (PAGE * n for n in range(9, 13))
CODE_AT, DATA_AT, SIZE = PAGE * 16, PAGE * 17, PAGE * 32
_SYSTEM = 0xFFFF_FFFF_8000_0000
STUBS = _SYSTEM + _STUBS
"""Address of the handlers: HLTs, of which one in STUB bytes is an exception's, and the last that of system calls."""
STUB = 8
SYSCALL = 256
SYSCALLS = STUBS + SYSCALL * STUB
STACK_END = _STACK + PAGE
"""Where in memory an exception has put, from here downwards, ss, rsp, rflags, cs, rip and its error code, if any."""

_READ_ONLY, _PRESENT, _USER = 1, 3, 7  # the latter two writable
KERNEL_CODE, _KERNEL_DATA, _CODE_32, _DATA, _CODE, _TASK = (8 * n for n in (2, 3, 4, 5, 6, 8))  # selectors
_TSS = _GDT + 0x100
_CODE_KIND, _DATA_KIND, _TSS_KIND = 11, 3, 11
_FROM_USER = (3, 4, 0x80)
"""INT3, INTO and INT 80h are for user mode, any other INT is not: as Linux has it (arch/x86/kernel/idt.c)."""


@dataclass(frozen=True)
class _Segment:
    """A segment's descriptor, in the two forms that KVM and the CPU have for it."""

    selector: int
    kind: int
    ring: int
    long: int = 0
    default: int = 0

    def descriptor(self) -> bytes:
        """Intel SDM, volume 3, figure 3-8, of 4 GiB from 0."""
        access = 0x90 | self.ring << 5 | self.kind
        flags = 0x80 | self.default << 6 | self.long << 5 | 0xF
        return struct.pack("<HHBBBB", 0xFFFF, 0, 0, access, flags, 0)

    def kvm(self) -> bytes:
        """struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding."""
        selector = self.selector | self.ring
        values = (0, 0xFFFFFFFF, selector, self.kind, 1, self.ring, self.default, 1, self.long, 1, 0, 0, 0)
        return struct.pack("<QIH10B", *values)


def _segments(isa: Isa, ring: int) -> tuple[_Segment, _Segment]:
    """A case's code and data."""
    wide = int(isa.name != "x86_16")
    is_64 = int(isa.name == "x86_64")
    return (
        _Segment(_CODE, _CODE_KIND, ring, long=is_64, default=wide - is_64),
        _Segment(_DATA, _DATA_KIND, ring, default=wide),
    )


def fill(memory: mmap.mmap, isa: Isa, ring: int) -> None:
    """Write the tables and the handlers to a guest's memory."""

    def entry(table: int, index: int, value: int, bits: int = _USER) -> None:
        struct.pack_into("<Q", memory, table + 8 * index, value | bits)

    entry(_PML4, 0, _LOW)
    entry(_LOW, 0, _LOW_PD)
    code, data = isa.code, isa.data
    entry(_LOW_PD, code >> 21, _CODE_PT)
    entry(_LOW_PD, data >> 21, data_pt := _DATA_PT if data >> 21 != code >> 21 else _CODE_PT)
    entry(_CODE_PT, code >> 12 & 511, CODE_AT)
    for number in range(DATA_SIZE // PAGE):
        entry(data_pt, (data >> 12 & 511) + number, DATA_AT + PAGE * number)
    entry(_PML4, 511, _HIGH, _PRESENT)
    entry(_HIGH, 510, _HIGH_PD, _PRESENT)
    entry(_HIGH_PD, 0, _HIGH_PT, _PRESENT)
    for page in (
        _GDT,
        _IDT,
        _STUBS,
    ):  # which a case in ring 0 cannot write to (CR0.WP): they are for those behind it, too
        entry(_HIGH_PT, page // PAGE, page, _READ_ONLY)
    entry(_HIGH_PT, _STACK // PAGE, _STACK, _PRESENT)
    for segment in (
        _Segment(KERNEL_CODE, _CODE_KIND, 0, long=1),
        _Segment(_KERNEL_DATA, _DATA_KIND, 0, default=1),
        _Segment(_CODE_32, _CODE_KIND, 3, default=1),  # of users, as under Linux
        *_segments(isa, ring),
    ):
        memory[_GDT + segment.selector : _GDT + segment.selector + 8] = segment.descriptor()
    tss = _SYSTEM + _TSS
    low = 0x67 | (tss & 0xFFFFFF) << 16 | (0x80 | _TSS_KIND) << 40 | (tss >> 24 & 0xFF) << 56
    struct.pack_into("<QQ", memory, _GDT + _TASK, low, tss >> 32)
    for stack in (4, 36):  # that of ring 0, and the first of the interrupts'
        struct.pack_into("<Q", memory, _TSS + stack, _SYSTEM + _STACK + PAGE)
    struct.pack_into("<H", memory, _TSS + 102, 0x68)  # no I/O permission bitmap
    for vector in range(SYSCALL + 1):
        memory[_STUBS + STUB * vector] = 0xF4  # HLT
    for vector in range(256):
        stub = STUBS + STUB * vector
        access = 0xEE if vector in _FROM_USER else 0x8E
        gate = struct.pack("<HHBBHII", stub & 0xFFFF, KERNEL_CODE, 1, access, stub >> 16 & 0xFFFF, stub >> 32, 0)
        memory[_IDT + 16 * vector : _IDT + 16 * vector + 16] = gate


def system_registers(sregs: ctypes.Array[ctypes.c_char], isa: Isa, ring: int, *, has_xsave: bool) -> None:
    """Make struct kvm_sregs, which is what the CPU was made with, that of a case's mode."""
    code, data = _segments(isa, ring)
    segments = code.kvm() + 5 * data.kvm()  # cs; ds es fs gs ss
    struct.pack_into(f"{len(segments)}s", sregs, 0, segments)
    struct.pack_into("<QIH10B", sregs, 24 * 6, _SYSTEM + _TSS, 0x67, _TASK, _TSS_KIND, 1, *[0] * 8)
    struct.pack_into("<QH", sregs, 24 * 8, _SYSTEM + _GDT, _TASK + 15)
    struct.pack_into("<QH", sregs, 24 * 8 + 16, _SYSTEM + _IDT, 4095)
    cr0 = 0x80050033  # PG AM WP NE ET MP PE
    cr4 = 0x620 | has_xsave << 18  # PAE OSFXSR OSXMMEXCPT OSXSAVE
    struct.pack_into("<5Q", sregs, 224, cr0, 0, _PML4, cr4, 0)
    struct.pack_into("<Q", sregs, 264, 0x501)  # EFER: LMA LME SCE
