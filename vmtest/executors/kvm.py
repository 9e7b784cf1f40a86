"""/dev/kvm by itself: a virtual CPU with a page of code, a data window and, for each exception, a handler that halts.
No QEMU, no firmware.

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

from vmtest.executors import kvm_tables
from vmtest.executors.loops import Batch, LoopEngine, address, lacks_loops, pointers
from vmtest.host import host_arch
from vmtest.host.cpu import model
from vmtest.host.devices import device_state
from vmtest.model.case import Case
from vmtest.model.isa import PAGE, Isa

__all__ = ["Engine", "describe", "lacks"]

_CREATE_VM, _VCPU_MMAP_SIZE, _SUPPORTED_CPUID = 0xAE01, 0xAE04, 0xC008AE05
_CREATE_VCPU, _SET_MEMORY = 0xAE41, 0x4020AE46
_GET_SREGS, _SET_CPUID2 = 0x8138AE83, 0x4008AE90
_SET_MSRS, _SET_XCRS = 0x4008AE89, 0x4188AEA7
_SREGS_SIZE = 0x138
_CHECK_EXTENSION, _CAP_SYNC_REGS = 0xAE03, 74
# Of MSRs: Intel SDM, volume 4. Selectors of ring 0 in bits 32 to 47 of STAR; where a system call goes, of each kind.
_STAR, _LSTAR, _CSTAR, _SYSENTER_CS, _SYSENTER_EIP = 0xC0000081, 0xC0000082, 0xC0000083, 0x174, 0x176

_ADDPS = b"\x0f\x58\xc1"

_IMMEDIATE_EXIT = 1  # in struct kvm_run
_XCR0 = 0xE7
"""Of what the host can have, what is on: x87, SSE, AVX and AVX-512, and neither protection keys nor AMX."""


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    if host_arch() != "x86_64":
        return f"the host's CPU is {host_arch()}, and KVM runs nothing else"
    state = device_state("/dev/kvm")
    return f"{state.why} ({state.hint})" if state.why else lacks_loops()


def describe(isa: Isa, argument: str = "") -> str:
    """What it is here, and what runs the code: the CPU, or an emulator in KVM."""
    return told("kvm", isa, Engine.ring)


def told(name: str, isa: Isa, ring: int) -> str:
    """See describe. KVM's emulator knows no SSE arithmetic: what runs an ADDPS is the CPU."""
    from vmtest.executors import executor

    with executor(name, isa) as found:
        (outcome,) = found.run([Case(isa=isa, code=_ADDPS, state=isa.default)])
    where = f"in hardware ({model()})" if outcome.status == "ok" else "in KVM's instruction emulator"
    return f"Linux {os.uname().release} KVM, ring {ring}, {where}"


def _errno() -> int:
    """Where this thread's errno is: ctypes' own copy is not written by what C calls."""
    where = ctypes.CDLL(None)["__errno_location"]
    where.restype = ctypes.c_void_p
    return int(where())


class _Struct(ctypes.Structure):
    """``struct kvm`` of loops.c."""

    _fields_ = (
        ("batch", Batch),
        *pointers("ioctl", "run", "stack", "system", "xsave"),
        *((name, ctypes.c_ulong) for name in ("stubs", "features", "wide", "general", "vectors")),
        ("vcpu", ctypes.c_int),
        ("hides", ctypes.c_int),
        ("error", ctypes.c_void_p),
        ("renew", ctypes.c_void_p),
    )


class Engine(LoopEngine):
    """One virtual CPU for all cases, whose registers are all set anew. In ring 0 it is made anew itself behind a case
    that may have changed what is not among them: debug registers, model-specific ones, XCR0.
    """

    loop = "kvm_batch"
    ring = 0

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        self._ioctl = ctypes.CDLL(None, use_errno=True).ioctl
        self._ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        self._memory = mmap.mmap(-1, kvm_tables.SIZE)
        self._opened: list[int] = []
        features = self._make_cpu()
        self._sregs = ctypes.create_string_buffer(_SREGS_SIZE)
        self._do(self._vcpu, _GET_SREGS, self._sregs)
        kvm_tables.system_registers(self._sregs, isa, self.ring, has_xsave=features != 0)
        self._xsave = mmap.mmap(-1, PAGE)
        memory, registers = address(self._memory), list(isa.places)
        self.engine = _Struct(
            batch=self.batch(memory + kvm_tables.CODE_AT, memory + kvm_tables.DATA_AT),
            ioctl=ctypes.cast(self._ioctl, ctypes.c_void_p).value,
            run=address(self._run),
            stack=memory + kvm_tables.STACK_END,
            system=ctypes.addressof(self._sregs),
            xsave=address(self._xsave),
            stubs=kvm_tables.STUBS,
            features=features,
            wide=isa.registers[0].size,
            general=registers.index(isa.flags),
            vectors=isa.places["mxcsr"].start - isa.places["xmm0"].start,
            vcpu=self._vcpu,
            error=_errno(),
        )
        if self.ring == 0:
            self._renew = self.callback(self._make_again)
            self.engine.renew = ctypes.cast(self._renew, ctypes.c_void_p).value
        self._thread = threading.get_ident()
        signal.signal(signal.SIGUSR1, lambda number, frame: None)  # so that it interrupts KVM_RUN

    def _do(self, descriptor: int, request: int, argument: Any) -> int:
        while (result := int(self._ioctl(descriptor, request, argument))) < 0:
            number = ctypes.get_errno()
            if number != errno.EINTR:  # a stop that came late
                raise OSError(number, f"the KVM request {request:#x} failed: {os.strerror(number)}")
        return result

    def _make_cpu(self) -> int:
        """A virtual machine with one CPU, and its tables; what XCR0 has of vectors."""
        kvm_tables.fill(self._memory, self.isa, self.ring)
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        if self._do(kvm, _CHECK_EXTENSION, _CAP_SYNC_REGS) & 3 != 3:
            raise OSError("this KVM cannot synchronise registers (KVM_CAP_SYNC_REGS)")
        vm = self._do(kvm, _CREATE_VM, 0)
        self._do(vm, _SET_MEMORY, struct.pack("<IIQQQ", 0, 0, 0, kvm_tables.SIZE, address(self._memory)))
        self._vcpu = self._do(vm, _CREATE_VCPU, 0)
        self._opened = [kvm, vm, self._vcpu]
        self._run = mmap.mmap(self._vcpu, self._do(kvm, _VCPU_MMAP_SIZE, 0))
        self._cpuid = ctypes.create_string_buffer(struct.pack("<II", 256, 0), 8 + 256 * 40)
        self._do(kvm, _SUPPORTED_CPUID, self._cpuid)
        self._do(self._vcpu, _SET_CPUID2, self._cpuid)
        return self._turn_on()

    def _make_again(self) -> None:
        old, opened = self._run, self._opened
        self._make_cpu()
        self.engine.run, self.engine.vcpu = address(self._run), self._vcpu
        old.close()
        for descriptor in opened:
            os.close(descriptor)

    def _turn_on(self) -> int:
        """Vectors, as far as the host has them, and system calls, which go to a handler of ours; the former's bits."""
        (number,) = struct.unpack_from("<I", self._cpuid)
        leaves = [struct.unpack_from("<4I", self._cpuid, 8 + 40 * n) for n in range(number)]
        features = next((eax for function, index, _, eax in leaves if (function, index) == (0xD, 0)), 0) & _XCR0
        if features:
            self._do(self._vcpu, _SET_XCRS, struct.pack("<IIIIQ", 1, 0, 0, 0, features).ljust(392, b"\0"))
        selector, handler = kvm_tables.KERNEL_CODE, kvm_tables.SYSCALLS
        msrs = {_STAR: selector << 32, _LSTAR: handler, _CSTAR: handler}
        msrs |= {_SYSENTER_CS: selector, _SYSENTER_EIP: handler}
        packed = b"".join(struct.pack("<IIQ", name, 0, value) for name, value in msrs.items())
        if self._do(self._vcpu, _SET_MSRS, struct.pack("<II", len(msrs), 0) + packed) != len(msrs):
            raise OSError("this KVM refuses a model-specific register for system calls")
        return features

    def stop(self) -> None:
        """See Engine."""
        self._run[_IMMEDIATE_EXIT] = 1
        signal.pthread_kill(self._thread, signal.SIGUSR1)
