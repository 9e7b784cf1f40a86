"""/dev/kvm by itself: a virtual CPU in 64-bit mode and ring 0, with a page of code, a data window and, for each
exception, a handler that halts. No QEMU, no firmware.

Numbers and layouts: include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h; Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import threading
from typing import Any

from vmtest.executors import base
from vmtest.host import host_arch
from vmtest.host.cpu import model
from vmtest.host.devices import device_state
from vmtest.model.case import Case, Outcome, differences
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE, Isa

__all__ = ["Engine", "describe", "lacks"]

_CREATE_VM, _VCPU_MMAP_SIZE, _SUPPORTED_CPUID = 0xAE01, 0xAE04, 0xC008AE05
_CREATE_VCPU, _SET_MEMORY, _RUN = 0xAE41, 0x4020AE46, 0xAE80
_GET_SREGS, _SET_CPUID2, _GET_XSAVE, _SET_XSAVE = 0x8138AE83, 0x4008AE90, 0x9000AEA4, 0x5000AEA5
_SREGS_SIZE = 0x138
_CHECK_EXTENSION, _CAP_SYNC_REGS = 0xAE03, 74

# struct kvm_run
_IMMEDIATE_EXIT, _EXIT_REASON, _SUBERROR = 1, 8, 32
_VALID, _DIRTY, _REGS, _SREGS = 288, 296, 304, 304 + 144
_CR2 = _SREGS + 232
_SYNC_REGS, _SYNC_SREGS = 1, 2
_HLT, _SHUTDOWN, _INTERNAL_ERROR = 5, 8, 17
_ORDER = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()  # noqa: SIM905
_U64 = struct.Struct("<Q")
_RIP, _RFLAGS = 8 * _ORDER.index("rip"), 8 * _ORDER.index("rflags")

# Guest-physical pages, and where the system's own are in its address space: far from where cases look.
_PML4, _LOW, _LOW_PD, _CODE_PT, _DATA_PT, _HIGH, _HIGH_PD, _HIGH_PT = (PAGE * n for n in range(1, 9))
_GDT, _IDT, _STUBS, _STACK = (PAGE * n for n in range(9, 13))
_CODE_AT, _DATA_AT, _SIZE = PAGE * 16, PAGE * 17, PAGE * 32
_SYSTEM = 0xFFFF_FFFF_8000_0000
_STUB = 8
"""Bytes from one exception's handler, a HLT, to the next."""
_WITH_ERROR = frozenset((8, 10, 11, 12, 13, 14, 17, 21))  # Intel SDM, volume 3, table 6-1
_FXSAVE_XMM, _FXSAVE_MXCSR, _XSTATE_BV = 160, 24, 512


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    if host_arch() != isa.name:
        return f"the host's CPU is {host_arch()}, and KVM runs nothing else"
    state = device_state("/dev/kvm")
    return f"{state.why} ({state.hint})" if state.why else ""


def describe(isa: Isa) -> str:
    """Whose KVM it is, and on which CPU."""
    return f"KVM of Linux {os.uname().release}, {model()}"


class Engine(base.Engine):
    """One virtual CPU for all cases, whose registers are all set anew."""

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        self._ioctl = ctypes.CDLL(None, use_errno=True).ioctl
        self._ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        self._memory = mmap.mmap(-1, _SIZE)
        self._kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        if self._do(self._kvm, _CHECK_EXTENSION, _CAP_SYNC_REGS) & 3 != 3:
            raise OSError("this KVM cannot synchronise registers (KVM_CAP_SYNC_REGS)")
        vm = self._do(self._kvm, _CREATE_VM, 0)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._do(vm, _SET_MEMORY, struct.pack("<IIQQQ", 0, 0, 0, _SIZE, address))
        self._vcpu = self._do(vm, _CREATE_VCPU, 0)
        self._run = mmap.mmap(self._vcpu, self._do(self._kvm, _VCPU_MMAP_SIZE, 0))
        cpuid = ctypes.create_string_buffer(struct.pack("<II", 256, 0), 8 + 256 * 40)
        self._do(self._kvm, _SUPPORTED_CPUID, cpuid)
        self._do(self._vcpu, _SET_CPUID2, cpuid)
        self._set_up_memory()
        sregs = ctypes.create_string_buffer(_SREGS_SIZE)
        self._do(self._vcpu, _GET_SREGS, sregs)
        self._sregs = _system_registers(bytearray(sregs.raw))
        self._xsave = ctypes.create_string_buffer(4096)
        self._do(self._vcpu, _GET_XSAVE, self._xsave)
        self._registers = [isa.places[name] for name in _ORDER if name != "rip"]
        # A state is the general registers with RFLAGS last, then vectors and MXCSR; KVM has them in another order.
        names = list(isa.places)[: len(_ORDER) - 1]
        self._general = [slice(8 * _ORDER.index(name), 8 * _ORDER.index(name) + 8) for name in names]
        self._stack, self._fixed = names.index("rsp"), isa.fixed["rflags"]
        self._vectors = slice(isa.places["xmm0"].start, isa.places["xmm15"].stop)
        self._mxcsr = isa.places["mxcsr"]
        self._thread = threading.get_ident()
        signal.signal(signal.SIGUSR1, lambda number, frame: None)  # so that it interrupts KVM_RUN

    def _do(self, descriptor: int, request: int, argument: Any) -> int:
        result = int(self._ioctl(descriptor, request, argument))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the KVM request {request:#x} failed: {os.strerror(number)}")
        return result

    def _set_up_memory(self) -> None:
        memory, present = self._memory, 3  # and writable

        def entry(table: int, index: int, value: int) -> None:
            struct.pack_into("<Q", memory, table + 8 * index, value | present)

        entry(_PML4, 0, _LOW)
        entry(_LOW, 0, _LOW_PD)
        for address, table, at, size in ((CODE, _CODE_PT, _CODE_AT, PAGE), (DATA, _DATA_PT, _DATA_AT, DATA_SIZE)):
            entry(_LOW_PD, address >> 21, table)
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

    def run(self, case: Case) -> Outcome:
        """See Engine."""
        before, state, run = case.window, case.state, self._run
        self._memory[_DATA_AT : _DATA_AT + DATA_SIZE] = before
        self._memory[_CODE_AT : _CODE_AT + PAGE] = case.code.rjust(PAGE, b"\0")
        vectors = base.uses_vectors(case)
        if vectors:
            self._set_vectors(state)
        values = [state[place] for place in self._registers]
        values.insert(_RIP // 8, _U64.pack(case.start))
        run[_REGS : _REGS + 144] = b"".join(values)
        run[_SREGS : _SREGS + _SREGS_SIZE] = self._sregs
        struct.pack_into("<QQ", run, _VALID, _SYNC_REGS | _SYNC_SREGS, _SYNC_REGS | _SYNC_SREGS)
        if self._ioctl(self._vcpu, _RUN, None) < 0:
            if ctypes.get_errno() != errno.EINTR:
                return Outcome(status="unsupported")
            run[_IMMEDIATE_EXIT] = 0
            return Outcome(status="timeout")
        reason = struct.unpack_from("<I", run, _EXIT_REASON)[0]
        if reason == _SHUTDOWN:
            return Outcome(status="exception", state=state, end=case.start, vector=8)
        if reason != _HLT:  # it would need a device, or KVM's emulator does not know the instruction
            return Outcome(status="unsupported")
        return self._outcome(before, vectors, state)

    def _outcome(self, before: bytes, vectors: bool, began: bytes) -> Outcome:
        run, memory = self._run, self._memory
        registers = run[_REGS : _REGS + 144]
        general = [registers[place] for place in self._general]
        end, flags = _U64.unpack_from(registers, _RIP)[0], _U64.unpack_from(registers, _RFLAGS)[0]
        vector = error = address = None
        stub = end - 1 - _SYSTEM - _STUBS
        if 0 <= stub < 256 * _STUB:
            vector, at = stub // _STUB, _STACK + PAGE - 40
            end, flags = _U64.unpack_from(memory, at)[0], _U64.unpack_from(memory, at + 16)[0]
            general[self._stack] = memory[at + 24 : at + 32]
            if vector in _WITH_ERROR:
                error = _U64.unpack_from(memory, at - 8)[0]
            if vector == 14:
                address = _U64.unpack_from(run, _CR2)[0]
            if (vector, end, address) == (14, CODE + PAGE, CODE + PAGE):
                vector = error = address = None
        general[-1] = _U64.pack(flags & ~self._fixed[0] | self._fixed[1])
        rest = began[self._vectors.start :]
        if vectors:
            self._do(self._vcpu, _GET_XSAVE, self._xsave)
            area = self._xsave.raw
            rest = (
                area[_FXSAVE_XMM : _FXSAVE_XMM + 256]
                + area[_FXSAVE_MXCSR : _FXSAVE_MXCSR + 4]
                + began[self._mxcsr.stop :]
            )
        return Outcome(
            status="ok" if vector is None else "exception",
            state=b"".join(general) + rest,
            writes=differences(before, memory[_DATA_AT : _DATA_AT + DATA_SIZE]),
            end=end,
            vector=vector,
            error=error,
            address=address,
        )

    def _set_vectors(self, state: bytes) -> None:
        area = bytearray(4096)
        struct.pack_into("<H", area, 0, 0x37F)
        area[_FXSAVE_MXCSR : _FXSAVE_MXCSR + 4] = state[self._mxcsr]
        area[_FXSAVE_XMM : _FXSAVE_XMM + 256] = state[self._vectors]
        struct.pack_into("<Q", area, _XSTATE_BV, 3)  # x87 and SSE: KVM_SET_FPU would drop MXCSR
        self._xsave.raw = bytes(area)
        self._do(self._vcpu, _SET_XSAVE, self._xsave)

    def stop(self) -> None:
        """See Engine."""
        self._run[_IMMEDIATE_EXIT] = 1
        signal.pthread_kill(self._thread, signal.SIGUSR1)


def _system_registers(sregs: bytearray) -> bytes:
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
    cr4 = 0x620  # PAE OSFXSR OSXMMEXCPT
    struct.pack_into("<5Q", sregs, 224, cr0, 0, _PML4, cr4, 0)
    struct.pack_into("<Q", sregs, 264, 0x500)  # EFER: LMA LME
    return bytes(sregs)
