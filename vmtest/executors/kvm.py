"""/dev/kvm by itself: a virtual CPU with a page of code, a data window and, for each exception, a handler that halts.
No QEMU, no firmware.

Numbers and layouts: include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h; Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal
import struct
import threading
from operator import itemgetter
from typing import Any

from vmtest.executors import base, kvm_tables
from vmtest.executors.kvm_tables import CODE_AT, DATA_AT, FRAME, STUB, STUBS, SYSCALL, SYSCALLS
from vmtest.host import host_arch
from vmtest.host.devices import device_state
from vmtest.model.case import Case, Outcome, differences
from vmtest.model.isa import DATA_SIZE, PAGE, Isa

__all__ = ["Engine", "describe", "lacks"]

_CREATE_VM, _VCPU_MMAP_SIZE, _SUPPORTED_CPUID = 0xAE01, 0xAE04, 0xC008AE05
_CREATE_VCPU, _SET_MEMORY, _RUN = 0xAE41, 0x4020AE46, 0xAE80
_GET_SREGS, _SET_CPUID2, _GET_XSAVE, _SET_XSAVE = 0x8138AE83, 0x4008AE90, 0x9000AEA4, 0x5000AEA5
_SET_MSRS, _SET_XCRS = 0x4008AE89, 0x4188AEA7
_SREGS_SIZE = 0x138
_CHECK_EXTENSION, _CAP_SYNC_REGS = 0xAE03, 74
# Of MSRs: Intel SDM, volume 4. Selectors of ring 0 in bits 32 to 47 of STAR; where a system call goes, of each kind.
_STAR, _LSTAR, _CSTAR, _SYSENTER_CS, _SYSENTER_EIP = 0xC0000081, 0xC0000082, 0xC0000083, 0x174, 0x176

_ADDPS = b"\x0f\x58\xc1"

# struct kvm_run
_IMMEDIATE_EXIT, _EXIT_REASON = 1, 8
_VALID, _DIRTY, _REGS, _SREGS = 288, 296, 304, 304 + 144
_CR2 = _SREGS + 232
_SYNC_REGS, _SYNC_SREGS = 1, 2
_HLT, _SHUTDOWN = 5, 8
_ORDER = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()  # noqa: SIM905
_LOW = 0xFFFF_FFFF
_RSP, _RIP, _RFLAGS = (_ORDER.index(name) for name in ("rsp", "rip", "rflags"))
_ALL, _FRAME, _TWO = struct.Struct("<18Q"), struct.Struct("<5Q"), struct.Struct("<QQ")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

_WITH_ERROR = frozenset((8, 10, 11, 12, 13, 14, 17, 21))  # Intel SDM, volume 3, table 6-1
# The XSAVE area: Intel SDM, volume 1, sections 10.5.1 and 13.4.
_FXSAVE = {"fcw": 0, "fsw": 2, "ftw": 4, "mxcsr": 24, "st0": 32, "xmm0": 160, "ymm0h": 576}
_XSTATE_BV, _X87_SSE_AVX = 512, 7
_XCR0 = 0xE7
"""Of what the host can have, what is on: x87, SSE, AVX and AVX-512, and neither protection keys nor AMX."""


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    if host_arch() != "x86_64":
        return f"the host's CPU is {host_arch()}, and KVM runs nothing else"
    state = device_state("/dev/kvm")
    return f"{state.why} ({state.hint})" if state.why else ""


def describe(isa: Isa, argument: str = "") -> str:
    """What it is here, and what runs the code: the CPU, or an emulator in KVM."""
    return told("kvm", isa, Engine.ring)


def told(name: str, isa: Isa, ring: int) -> str:
    """See describe. KVM's emulator knows no SSE arithmetic: what runs an ADDPS is the CPU."""
    from vmtest.executors import executor

    with executor(name, isa) as found:
        (outcome,) = found.run([Case(isa=isa, code=_ADDPS, state=isa.default)])
    where = "in hardware" if outcome.status == "ok" else "in KVM's instruction emulator"
    return f"Linux {platform.release()} KVM, ring {ring}, {where}"


class Engine(base.Engine):
    """One virtual CPU for all cases, whose registers are all set anew."""

    ring = 0

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        self._ioctl = ctypes.CDLL(None, use_errno=True).ioctl
        self._ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        self._memory = mmap.mmap(-1, kvm_tables.SIZE)
        kvm_tables.fill(memoryview(self._memory), isa, self.ring)
        self._make_cpu()
        self._turn_on()
        sregs = ctypes.create_string_buffer(_SREGS_SIZE)
        self._do(self._vcpu, _GET_SREGS, sregs)
        self._sregs = kvm_tables.system_registers(bytearray(sregs.raw), isa, self.ring)
        self._lay_out()
        self._thread = threading.get_ident()
        signal.signal(signal.SIGUSR1, lambda number, frame: None)  # so that it interrupts KVM_RUN

    def _do(self, descriptor: int, request: int, argument: Any) -> int:
        result = int(self._ioctl(descriptor, request, argument))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the KVM request {request:#x} failed: {os.strerror(number)}")
        return result

    def _make_cpu(self) -> None:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        if self._do(kvm, _CHECK_EXTENSION, _CAP_SYNC_REGS) & 3 != 3:
            raise OSError("this KVM cannot synchronise registers (KVM_CAP_SYNC_REGS)")
        vm = self._do(kvm, _CREATE_VM, 0)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._do(vm, _SET_MEMORY, struct.pack("<IIQQQ", 0, 0, 0, kvm_tables.SIZE, address))
        self._vcpu = self._do(vm, _CREATE_VCPU, 0)
        self._run = mmap.mmap(self._vcpu, self._do(kvm, _VCPU_MMAP_SIZE, 0))
        self._cpuid = ctypes.create_string_buffer(struct.pack("<II", 256, 0), 8 + 256 * 40)
        self._do(kvm, _SUPPORTED_CPUID, self._cpuid)
        self._do(self._vcpu, _SET_CPUID2, self._cpuid)

    def _turn_on(self) -> None:
        """Vectors, as far as the host has them, and system calls, which go to a handler of ours."""
        leaves = [struct.unpack_from("<7I", self._cpuid, 8 + 40 * n) for n in range(_U32.unpack_from(self._cpuid)[0])]
        had = next((eax for function, index, _, eax, *_ in leaves if (function, index) == (0xD, 0)), 3)
        self._xcr0 = had & _XCR0
        self._do(self._vcpu, _SET_XCRS, struct.pack("<IIIIQ", 1, 0, 0, 0, self._xcr0).ljust(392, b"\0"))
        selector = kvm_tables.KERNEL_CODE
        msrs = {_STAR: selector << 32, _LSTAR: SYSCALLS, _CSTAR: SYSCALLS}
        msrs |= {_SYSENTER_CS: selector, _SYSENTER_EIP: SYSCALLS}
        packed = b"".join(struct.pack("<IIQ", number, 0, value) for number, value in msrs.items())
        self._do(self._vcpu, _SET_MSRS, struct.pack("<II", len(msrs), 0) + packed)

    def _lay_out(self) -> None:
        """Where each register of a state is in what KVM takes and gives, which has them in another order."""
        isa = self.isa
        names = list(isa.places)[: list(isa.places).index(isa.flags) + 1]
        mine = [name if isa.name == "x86_64" else name.replace("r", "e", 1) for name in _ORDER]
        self._general = struct.Struct(f"<{len(names)}{'Q' if isa.name == 'x86_64' else 'I'}")
        at = {name: number for number, name in enumerate(names)} | {mine[_RIP]: len(names)}
        self._to_kvm = itemgetter(*(at.get(name, len(names) + 1) for name in mine))
        self._from_kvm = itemgetter(*(mine.index(name) for name in names))
        self._fixed = isa.fixed[isa.flags]
        self._xsave = ctypes.create_string_buffer(4096)
        count = sum(name.startswith("xmm") for name in isa.places)
        sizes = {"fcw": 2, "fsw": 2, "ftw": 1, "mxcsr": 4, "xmm0": 16 * count}
        sizes |= {"ymm0h": 16 * count} if self._xcr0 & 4 else {}
        places = [(isa.places[name].start, _FXSAVE[name], size) for name, size in sizes.items()]
        places += [(isa.places[f"st{n}"].start, _FXSAVE["st0"] + 16 * n, 10) for n in range(8)]
        self._end = isa.code + PAGE
        self._vectors = [(slice(mine, mine + size), slice(its, its + size)) for mine, its, size in places]

    def run(self, case: Case) -> Outcome:
        """See Engine."""
        before, state, run = case.window, case.state, self._run
        self._memory[DATA_AT : DATA_AT + DATA_SIZE] = before
        self._memory[CODE_AT : CODE_AT + PAGE] = case.code.rjust(PAGE, b"\0")
        vectors = base.uses_vectors(case)
        if vectors:
            self._set_vectors(state)
        values = (*self._general.unpack_from(state), case.start, 0)
        _ALL.pack_into(run, _REGS, *self._to_kvm(values))
        run[_SREGS : _SREGS + _SREGS_SIZE] = self._sregs
        _TWO.pack_into(run, _VALID, _SYNC_REGS | _SYNC_SREGS, _SYNC_REGS | _SYNC_SREGS)
        if self._ioctl(self._vcpu, _RUN, None) < 0:
            if ctypes.get_errno() != errno.EINTR:
                return Outcome(status="unsupported")
            run[_IMMEDIATE_EXIT] = 0
            return Outcome(status="timeout")
        reason = _U32.unpack_from(run, _EXIT_REASON)[0]
        if reason == _SHUTDOWN:
            return Outcome(status="exception", state=state, end=case.start, vector=8)
        if reason != _HLT:  # it would need a device, or KVM's emulator does not know the instruction
            return Outcome(status="unsupported")
        return self._outcome(before, vectors, state)

    def _outcome(self, before: bytes, vectors: bool, began: bytes) -> Outcome:
        run, memory = self._run, self._memory
        registers = list(_ALL.unpack_from(run, _REGS))
        vector = error = address = None
        stub = registers[_RIP] - 1 - STUBS
        if stub >= 0:
            vector = stub // STUB
            registers[_RIP], _, registers[_RFLAGS], registers[_RSP], _ = _FRAME.unpack_from(memory, FRAME)
            if vector == 14:
                address = _U64.unpack_from(run, _CR2)[0]
            if registers[_RIP] == address == self._end:
                vector = address = None
            elif not self._tells(vector, registers[_RIP]):
                return Outcome(status="unsupported")
            elif vector in _WITH_ERROR:
                error = _U64.unpack_from(memory, FRAME - 8)[0]
        registers[_RFLAGS] = registers[_RFLAGS] & ~self._fixed[0] | self._fixed[1]
        values = self._from_kvm(registers)
        if self._general.format[-1] == "I":
            values = [value & _LOW for value in values]
        general = self._general.pack(*values)
        return Outcome(
            status="ok" if vector is None else "exception",
            state=general + (self._told_vectors(began) if vectors else began)[len(general) :],
            writes=differences(before, memory[DATA_AT : DATA_AT + DATA_SIZE]),
            end=registers[_RIP],
            vector=vector,
            error=error,
            address=address,
        )

    def _tells(self, vector: int, end: int) -> bool:
        """Whether an exception is the case's: a system call goes to a handler of ours, which not every KVM gets to."""
        return vector != SYSCALL and (vector, end & _LOW) != (14, SYSCALLS & _LOW)

    def _set_vectors(self, state: bytes) -> None:
        area = bytearray(4096)
        for mine, its in self._vectors:
            area[its] = state[mine]
        _U64.pack_into(area, _XSTATE_BV, _X87_SSE_AVX & self._xcr0)  # KVM_SET_FPU would drop MXCSR
        self._xsave.raw = bytes(area)
        self._do(self._vcpu, _SET_XSAVE, self._xsave)

    def _told_vectors(self, began: bytes) -> bytes:
        self._do(self._vcpu, _GET_XSAVE, self._xsave)
        area, state = self._xsave.raw, bytearray(began)
        for mine, its in self._vectors:
            state[mine] = area[its]
        return bytes(state)

    def stop(self) -> None:
        """See Engine."""
        self._run[_IMMEDIATE_EXIT] = 1
        signal.pthread_kill(self._thread, signal.SIGUSR1)
