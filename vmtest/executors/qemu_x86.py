"""The x86-64 machine of the executor ``qemu``: what images/_executors/runner_x86_64.S finds when it begins.

Vectors are those of the Intel SDM, volume 3, table 6-1. What a case can see of the system is as Linux has it for a
process: selectors (arch/x86/include/asm/segment.h), gates, CR4, XCR0; but CR0.AM is off.
"""

from __future__ import annotations

import struct
from functools import cached_property

from vmtest.executors.qemu_board import Board
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE

__all__ = ["X86"]

# The runner's source has the same addresses.
_IMAGE, _CODE_AT, _DATA_AT = 0x8000, 0x22000, 0x23000
_SETUP, _CASE, _LOW, _HIGH, _HIGH_PD, _USER_PD, _USER_PT = range(0x10000, 0x17000, PAGE)
_CASE_LOW, _CASE_PD, _CODE_PT, _DATA_PT, _GDT, _IDT, _STACK, _CONTROL = range(0x19000, 0x21000, PAGE)
_KERNEL, _USER = 0xFFFF_FFFF_8000_0000, 0x4000_0000
_STUBS, _STUB = _KERNEL + _IMAGE + 0x1000, 16
_SYSTEM_CALL_ENTRY = _KERNEL + _IMAGE + 0x2000
_LARGE = 1 << 21
_PRESENT, _FOR_RING_3, _IS_LARGE = 3, 4, 1 << 7  # and writable (Intel SDM, volume 3, section 4.5)
_SEGMENTS = {  # section 3.4.5; ring 0: 32-bit code, which leads to 64-bit mode, 64-bit code, data; ring 3: 32-bit code,
    0x08: 0x00CF9B000000FFFF,
    0x10: 0x00AF9B000000FFFF,
    0x18: 0x00CF93000000FFFF,
    0x20: 0x00CFFB000000FFFF,  # data, 64-bit code
    0x28: 0x00CFF3000000FFFF,
    0x30: 0x00AFFB000000FFFF,
}
_TSS, _TSS_AT, _TSS_SIZE = 0x40, _GDT + 0x100, 0x68
_SYSTEM_CALL, _PAGE_FAULT = 0x80, 14
_FOR_ALL = (3, 4, _SYSTEM_CALL)
"""Vectors that a program may raise by INT; the others are #GP."""
_WITH_ERROR = frozenset((8, 10, 11, 12, 13, 14, 17, 21, 29, 30))

# A slot: an XSAVE area of x87, SSE and AVX (Intel SDM, volume 1, section 13.4), and behind it the general registers.
_MXCSR, _ST, _XMM, _YMM, _GENERAL = 24, 32, 160, 576, 832
_BEFORE_MXCSR, _AFTER_ST, _AFTER_XMM = bytes(19), bytes(6), bytes(96) + struct.pack("<Q", 7) + bytes(56)
_U64 = struct.Struct("<Q")


class X86(Board):
    """A microvm, which has little, with firmware that jumps to our image."""

    machine = "microvm,acpi=off,rtc=off,pit=on,pic=on"
    cpu = "max"
    state = 737
    size, image, control, slots = 0x800000, _IMAGE, _CONTROL, 0x200000
    fetch_faults = (_PAGE_FAULT,)
    firmware = (b"\xea" + struct.pack("<HH", _IMAGE, 0)).ljust(16, b"\0").rjust(1 << 16, b"\0")
    """At the reset vector, 16 bytes below its end, a jump to our image."""

    def set_up(self) -> None:
        """See Board."""

        def entry(table: int, index: int, value: int, kind: int = _PRESENT | _FOR_RING_3) -> None:
            _U64.pack_into(self.memory, table + 8 * index, value | kind)

        for tables in (_SETUP, _CASE):
            entry(tables, 511, _HIGH)
        entry(_HIGH, 510, _HIGH_PD)
        for address in range(0, self.size, _LARGE):
            entry(_HIGH_PD, address // _LARGE, address, _PRESENT | _IS_LARGE)
        entry(_SETUP, 0, _LOW)
        entry(_LOW, 0, _HIGH_PD)  # where we are when paging begins
        entry(_LOW, _USER >> 30, _USER_PD)
        entry(_USER_PD, 0, _USER_PT)
        for address in (_IMAGE, _CODE_AT, _DATA_AT, _DATA_AT + PAGE):
            entry(_USER_PT, address // PAGE, address)
        for address in range(self.slots, self.size, _LARGE):
            entry(_USER_PD, address // _LARGE, address, _PRESENT | _FOR_RING_3 | _IS_LARGE)
        entry(_CASE, 0, _CASE_LOW)
        entry(_CASE_LOW, 0, _CASE_PD)
        for address, table, at, size in ((CODE, _CODE_PT, _CODE_AT, PAGE), (DATA, _DATA_PT, _DATA_AT, DATA_SIZE)):
            entry(_CASE_PD, address // _LARGE, table)
            for place in range(0, size, PAGE):
                entry(table, place // PAGE, at + place)
        self._set_up_descriptors()

    def _set_up_descriptors(self) -> None:
        memory, tss = self.memory, _KERNEL + _TSS_AT
        for selector, descriptor in _SEGMENTS.items():
            _U64.pack_into(memory, _GDT + selector, descriptor)
        low = _TSS_SIZE - 1 | (tss & 0xFFFFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56
        struct.pack_into("<QQ", memory, _GDT + _TSS, low, tss >> 32)
        _U64.pack_into(memory, _TSS_AT + 4, _KERNEL + _STACK + PAGE)
        struct.pack_into("<H", memory, _TSS_AT + 102, _TSS_SIZE)  # no ports for ring 3
        for vector in range(256):
            stub, kind = _STUBS + _STUB * vector, 0xEE if vector in _FOR_ALL else 0x8E
            gate = struct.pack("<HHBBHII", stub & 0xFFFF, 0x10, 0, kind, stub >> 16 & 0xFFFF, stub >> 32, 0)
            memory[_IDT + 16 * vector : _IDT + 16 * vector + 16] = gate

    @cached_property
    def _parts(self) -> tuple[slice, ...]:
        """Of a state: general registers with RFLAGS last, XMM, MXCSR, upper halves of YMM, x87's words, x87's stack."""
        places = self.isa.places
        pairs = ("rax", "rflags"), ("xmm0", "xmm15"), ("mxcsr", "mxcsr"), ("ymm0h", "ymm15h"), ("fcw", "ftw")
        return *(slice(places[first].start, places[last].stop) for first, last in pairs), slice(
            places["st0"].start, places["st7"].stop
        )

    def set_registers(self, at: int, state: bytes) -> None:
        """See Board."""
        general, xmm, mxcsr, ymm, words, stack = (state[part] for part in self._parts)
        mask, kept = self.isa.fixed["rflags"]
        flags = _U64.pack(_U64.unpack_from(general, 128)[0] & ~mask | kept)
        if any(stack):
            stack = b"".join([stack[place : place + 10] + _AFTER_ST for place in range(0, 80, 10)])
        else:
            stack = bytes(128)
        self.memory[at : at + _GENERAL + 136] = b"".join(
            (words, _BEFORE_MXCSR, mxcsr, bytes(4), stack, xmm, _AFTER_XMM, ymm, general[:128], flags)
        )

    def registers(self, at: int) -> bytes:
        """See Board."""
        slot = self.memory[at : at + _GENERAL + 136]
        mask, kept = self.isa.fixed["rflags"]
        flags = _U64.unpack_from(slot, _GENERAL + 128)[0] & ~mask | kept
        stack = [slot[place : place + 10] for place in range(_ST, _XMM, 16)]
        general, xmm, mxcsr = slot[_GENERAL : _GENERAL + 128], slot[_XMM : _XMM + 256], slot[_MXCSR : _MXCSR + 4]
        return b"".join((general, _U64.pack(flags), xmm, mxcsr, slot[_YMM:_GENERAL], slot[:5], *stack))

    def exception(self, vector: int, error: int, address: int) -> tuple[int | None, int | None, int | None]:
        """See Board."""
        return vector, error if vector in _WITH_ERROR else None, address if vector == _PAGE_FAULT else None

    def is_beyond(self, vector: int, end: int) -> bool:
        """See Board."""
        return vector == _SYSTEM_CALL or end == _SYSTEM_CALL_ENTRY  # KVM_PVM enters it in ring 3
