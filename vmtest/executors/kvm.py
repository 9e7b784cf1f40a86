"""/dev/kvm by itself: a virtual CPU in 64-bit mode and ring 0, with a page of code, a data window and, for each
exception, a handler that halts. No QEMU, no firmware.

Numbers and layouts: include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h; Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import threading
from typing import Any

from vmtest.executors.loops import Batch, LoopEngine, address, lacks_loops, pointers
from vmtest.host import host_arch
from vmtest.host.cpu import model
from vmtest.host.devices import device_state
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE, Isa

__all__ = ["Engine", "describe", "lacks"]

_CREATE_VM, _VCPU_MMAP_SIZE, _SUPPORTED_CPUID = 0xAE01, 0xAE04, 0xC008AE05
_CREATE_VCPU, _SET_MEMORY = 0xAE41, 0x4020AE46
_GET_SREGS, _SET_CPUID2 = 0x8138AE83, 0x4008AE90
_SET_XCRS, _XCRS_SIZE = 0x4188AEA7, 0x188
_SREGS_SIZE = 0x138
_CHECK_EXTENSION, _CAP_SYNC_REGS = 0xAE03, 74
_IMMEDIATE_EXIT = 1  # in struct kvm_run
_LEGACY, _AVX = 3, 4  # XCR0: x87 and SSE; the upper halves. Intel SDM, volume 1, section 13.3

# Guest-physical pages, and where the system's own are in its address space: far from where cases look.
_PML4, _LOW, _LOW_PD, _CODE_PT, _DATA_PT, _HIGH, _HIGH_PD, _HIGH_PT = (PAGE * n for n in range(1, 9))
_GDT, _IDT, _STUBS, _STACK = (PAGE * n for n in range(9, 13))
_CODE_AT, _DATA_AT, _SIZE = PAGE * 16, PAGE * 17, PAGE * 32
_SYSTEM = 0xFFFF_FFFF_8000_0000
_STUB = 8
"""Bytes from one exception's handler, a HLT, to the next."""


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    if host_arch() != isa.name:
        return f"the host's CPU is {host_arch()}, and KVM runs nothing else"
    state = device_state("/dev/kvm")
    return f"{state.why} ({state.hint})" if state.why else lacks_loops()


def describe(isa: Isa) -> str:
    """Whose KVM it is, and on which CPU."""
    return f"KVM of Linux {os.uname().release}, {model()}"


class _Struct(ctypes.Structure):
    """``struct kvm`` of loops.c."""

    _fields_ = (
        ("batch", Batch),
        *pointers("ioctl", "run", "stack", "system", "xsave"),
        ("stubs", ctypes.c_ulong),
        ("features", ctypes.c_ulong),
        ("vcpu", ctypes.c_int),
    )


class Engine(LoopEngine):
    """One virtual CPU for all cases, whose registers are all set anew."""

    loop = "kvm_batch"

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        self._ioctl = ctypes.CDLL(None, use_errno=True).ioctl
        self._ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        self._memory = mmap.mmap(-1, _SIZE)
        self._kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        if self._do(self._kvm, _CHECK_EXTENSION, _CAP_SYNC_REGS) & 3 != 3:
            raise OSError("this KVM cannot synchronise registers (KVM_CAP_SYNC_REGS)")
        vm = self._do(self._kvm, _CREATE_VM, 0)
        memory = address(self._memory)
        self._do(vm, _SET_MEMORY, struct.pack("<IIQQQ", 0, 0, 0, _SIZE, memory))
        self._vcpu = self._do(vm, _CREATE_VCPU, 0)
        self._run = mmap.mmap(self._vcpu, self._do(self._kvm, _VCPU_MMAP_SIZE, 0))
        cpuid = ctypes.create_string_buffer(struct.pack("<II", 256, 0), 8 + 256 * 40)
        self._do(self._kvm, _SUPPORTED_CPUID, cpuid)
        self._do(self._vcpu, _SET_CPUID2, cpuid)
        self._set_up_memory()
        features = self._enable_vectors()
        sregs = ctypes.create_string_buffer(_SREGS_SIZE)
        self._do(self._vcpu, _GET_SREGS, sregs)
        _system_registers(sregs, has_xsave=features != _LEGACY)
        self._sregs = sregs
        self._xsave = mmap.mmap(-1, PAGE)
        self.engine = _Struct(
            batch=self.batch(memory + _CODE_AT, memory + _DATA_AT),
            ioctl=ctypes.cast(self._ioctl, ctypes.c_void_p).value,
            run=address(self._run),
            stack=memory + _STACK + PAGE,
            system=ctypes.addressof(sregs),
            xsave=address(self._xsave),
            stubs=_SYSTEM + _STUBS,
            features=features,
            vcpu=self._vcpu,
        )
        self._thread = threading.get_ident()
        signal.signal(signal.SIGUSR1, lambda number, frame: None)  # so that it interrupts KVM_RUN

    def _do(self, descriptor: int, request: int, argument: Any) -> int:
        result = int(self._ioctl(descriptor, request, argument))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the KVM request {request:#x} failed: {os.strerror(number)}")
        return result

    def _enable_vectors(self) -> int:
        """What XCR0 has, or would have: AVX where the host has it."""
        xcrs = ctypes.create_string_buffer(struct.pack("<IIIIQ", 1, 0, 0, 0, _LEGACY | _AVX), _XCRS_SIZE)
        try:
            self._do(self._vcpu, _SET_XCRS, xcrs)
        except OSError:
            return _LEGACY
        return _LEGACY | _AVX

    def _set_up_memory(self) -> None:
        memory, present = self._memory, 3  # and writable

        def entry(table: int, index: int, value: int) -> None:
            struct.pack_into("<Q", memory, table + 8 * index, value | present)

        entry(_PML4, 0, _LOW)
        entry(_LOW, 0, _LOW_PD)
        for start, table, at, size in ((CODE, _CODE_PT, _CODE_AT, PAGE), (DATA, _DATA_PT, _DATA_AT, DATA_SIZE)):
            entry(_LOW_PD, start >> 21, table)
            for number in range(size // PAGE):
                entry(table, number, at + PAGE * number)
        entry(_PML4, 511, _HIGH)
        entry(_HIGH, 510, _HIGH_PD)
        entry(_HIGH_PD, 0, _HIGH_PT)
        for page in (_GDT, _IDT, _STUBS, _STACK):
            entry(_HIGH_PT, page // PAGE, page)
        # Null, 64-bit code of ring 0, data of ring 0, and a task state whose first interrupt stack is ours.
        tss = _SYSTEM + _GDT + 0x100
        low = 0x67 | (tss & 0xFFFFFF) << 16 | 0x8B << 40 | (tss >> 24 & 0xFF) << 56
        struct.pack_into("<5Q", memory, _GDT, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, low, tss >> 32)
        struct.pack_into("<Q", memory, _GDT + 0x100 + 36, _SYSTEM + _STACK + PAGE)
        for vector in range(256):
            stub = _SYSTEM + _STUBS + _STUB * vector
            gate = struct.pack("<HHBBHII", stub & 0xFFFF, 8, 1, 0x8E, stub >> 16 & 0xFFFF, stub >> 32, 0)
            memory[_IDT + 16 * vector : _IDT + 16 * vector + 16] = gate
            memory[_STUBS + _STUB * vector] = 0xF4  # HLT

    def stop(self) -> None:
        """See Engine."""
        self._run[_IMMEDIATE_EXIT] = 1
        signal.pthread_kill(self._thread, signal.SIGUSR1)


def _system_registers(sregs: ctypes.Array[ctypes.c_char], *, has_xsave: bool) -> None:
    """64-bit mode and ring 0, with our tables."""

    def segment(at: int, selector: int, kind: int, long: int) -> None:
        # base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding
        values = (0, 0xFFFFFFFF, selector, kind, 1, 0, 1 - long, 1, long, 1, 0, 0, 0)
        struct.pack_into("<QIH10B", sregs, at, *values)

    segment(0, 8, 11, 1)
    for number in range(1, 6):  # ds es fs gs ss
        segment(24 * number, 16, 3, 0)
    struct.pack_into("<QIH10B", sregs, 24 * 6, _SYSTEM + _GDT + 0x100, 0x67, 24, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    struct.pack_into("<QH", sregs, 24 * 8, _SYSTEM + _GDT, 39)
    struct.pack_into("<QH", sregs, 24 * 8 + 16, _SYSTEM + _IDT, 4095)
    cr0 = 0x80050033  # PG AM WP NE ET MP PE
    cr4 = 0x620 | has_xsave << 18  # PAE OSFXSR OSXMMEXCPT OSXSAVE
    struct.pack_into("<5Q", sregs, 224, cr0, 0, _PML4, cr4, 0)
    struct.pack_into("<Q", sregs, 264, 0x500)  # EFER: LMA LME
