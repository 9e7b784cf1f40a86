"""The CPU itself: a traced process in which nothing is mapped but the case's two windows.

A system call ends the case before the kernel has seen it (PTRACE_SYSEMU, ptrace(2)), and there is nothing else that
the code could reach: what it may do is compute, fault, or loop until it is stopped. (And ask the vsyscall page for the
time, where the host has that.)
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import signal
import struct
from pathlib import Path
from typing import Any

from vmtest.executors import base
from vmtest.host import host_arch
from vmtest.model.case import Case, Outcome, differences
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE, Isa

__all__ = ["Engine", "describe", "lacks"]

# sys/ptrace.h, sys/user.h and asm-generic/siginfo.h of Linux on x86-64.
_TRACEME, _GETREGS, _SETREGS, _GETFPREGS, _SYSEMU, _GETSIGINFO = 0, 12, 13, 14, 31, 0x4202
_GETREGSET, _SETREGSET, _XSTATE = 0x4204, 0x4205, 0x202
_CONT, _SETOPTIONS, _EXITKILL = 7, 0x4200, 1 << 20
_USER = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs rflags rsp ss".split()  # noqa: SIM905
_USER_SIZE = 27 * 8
_U64 = struct.Struct("<Q")
_RIP, _ORIG_RAX = 8 * _USER.index("rip"), 8 * _USER.index("orig_rax")
_SIGINFO = struct.Struct("<iii4xQ")  # signo, errno, code, address
_SI_KERNEL, _MAPERR, _ACCERR, _TRAP_BRKPT, _TRAP_TRACE = 0x80, 1, 2, 1, 2
_FPE_INTDIV = 1

# The exception behind a signal, by arch/x86/kernel/traps.c: several share one, and then None is told.
_VECTORS: dict[tuple[int, int], int] = {
    (signal.SIGFPE, _FPE_INTDIV): 0,
    (signal.SIGTRAP, _TRAP_TRACE): 1,
    (signal.SIGTRAP, _SI_KERNEL): 3,
    (signal.SIGILL, 2): 6,  # ILL_ILLOPN
    (signal.SIGSEGV, _SI_KERNEL): 13,
    (signal.SIGSEGV, _MAPERR): 14,
    (signal.SIGSEGV, _ACCERR): 14,
    (signal.SIGBUS, 1): 17,  # BUS_ADRALN
}
_FXSAVE_XMM, _FXSAVE_MXCSR, _XSTATE_BV = 160, 24, 512  # Intel SDM, volume 1, sections 10.5.1 and 13.4
_XSAVE_MOST = 1 << 14
_FCW = 0x37F
_SYSCALL = b"\x0f\x05\xcc"  # syscall; int3
_SYS_MUNMAP = 11
_TASK_SIZE = 1 << 47


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    if host_arch() != isa.name:
        return f"the host's CPU is {host_arch()} and does not run {isa.name}"
    return ""


def describe(isa: Isa, argument: str = "") -> str:
    """What it is here: the CPU's name."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return model[1] if model else host_arch()


class Engine(base.Engine):
    """One traced process for all cases; another when a case has killed it."""

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        libc = ctypes.CDLL(None, use_errno=True)
        self._ptrace = libc.ptrace
        self._ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._ptrace.restype = ctypes.c_long
        self._libc = libc
        self._code, self._data = self._window(CODE, PAGE), self._window(DATA, DATA_SIZE)
        self._regs = ctypes.create_string_buffer(_USER_SIZE)
        self._fp = ctypes.create_string_buffer(512)
        self._xsave = ctypes.create_string_buffer(_XSAVE_MOST)
        self._info = ctypes.create_string_buffer(128)
        # A state is the general registers with RFLAGS last, then vectors and MXCSR; ptrace has them in another order.
        names = list(isa.places)[:17]
        self._general = [slice(8 * _USER.index(name), 8 * _USER.index(name) + 8) for name in names]
        self._given = [(self._general[number].start, isa.places[name]) for number, name in enumerate(names)]
        self._fixed = isa.fixed["rflags"]
        self._vectors = slice(isa.places["xmm0"].start, isa.places["xmm15"].stop)
        self._mxcsr = isa.places["mxcsr"]
        self._stopped = False
        self._dirty = True
        self._child = 0
        # On one CPU with the process that it traces: they take turns, and waking another CPU takes twice as long.
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})
        self._begin()

    def _window(self, address: int, size: int) -> memoryview:
        """Memory that we share with the traced process, at its address in both."""
        libc_mmap = self._libc.mmap
        libc_mmap.restype = ctypes.c_void_p
        libc_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        kind = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x100000  # MAP_FIXED_NOREPLACE
        if libc_mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC, kind, -1, 0) != address:
            raise OSError(ctypes.get_errno(), f"{address:#x} cannot be mapped")
        return memoryview((ctypes.c_char * size).from_address(address)).cast("B")

    def _begin(self) -> None:
        self._code[:3] = _SYSCALL
        self._child = os.fork()
        if self._child == 0:
            self._ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(1)
        os.waitpid(self._child, 0)
        self._call(_SETOPTIONS, ctypes.c_void_p(_EXITKILL))  # it dies with us
        self._call(_GETREGS, self._regs)
        self._clean = self._regs.raw
        self._vector = (ctypes.c_size_t * 2)(ctypes.addressof(self._xsave), _XSAVE_MOST)  # struct iovec
        self._call(_GETREGSET, self._vector, _XSTATE)  # which says how large it is here
        # x87 and SSE are given; what else there is (AVX, PKRU) begins as after a reset, since its bit is not set.
        struct.pack_into("<H", area := bytearray(self._vector[1]), 0, _FCW)
        struct.pack_into("<Q", area, _XSTATE_BV, 3)
        self._clean_fp = area
        for start, end in ((0, CODE), (CODE + PAGE, DATA), (DATA + DATA_SIZE, _TASK_SIZE - PAGE)):
            self._unmap(start, end)

    def _unmap(self, start: int, end: int) -> None:
        """Have the process unmap a range: what it was forked with is none of the case's business."""
        values = dict(zip(_USER, struct.unpack_from(f"<{len(_USER)}Q", self._clean), strict=True))
        values |= {"rax": _SYS_MUNMAP, "orig_rax": 2**64 - 1, "rdi": start, "rsi": end - start, "rip": CODE}
        self._regs.raw = struct.pack(f"<{len(_USER)}Q", *values.values()) + self._clean[8 * len(_USER) :]
        self._call(_SETREGS, self._regs)
        self._call(_CONT, None)
        os.waitpid(self._child, 0)
        self._call(_GETREGS, self._regs)
        if struct.unpack_from("<Q", self._regs, 8 * _USER.index("rax"))[0]:
            raise OSError(f"the traced process cannot unmap {start:#x} to {end:#x}")

    def _call(self, request: int, data: Any, kind: int | None = None) -> None:
        if self._ptrace(request, self._child, kind, data) < 0:
            raise OSError(ctypes.get_errno(), f"ptrace request {request:#x} failed")

    def run(self, case: Case) -> Outcome:
        """See Engine."""
        before, state = case.window, case.state
        self._data[:] = before
        self._code[:] = case.code.rjust(PAGE, b"\0")
        regs = bytearray(self._clean)
        for at, place in self._given:
            regs[at : at + 8] = state[place]
        _U64.pack_into(regs, _RIP, case.start)
        _U64.pack_into(regs, _ORIG_RAX, 2**64 - 1)  # no system call to be restarted
        self._regs.raw = bytes(regs)
        vectors = base.uses_vectors(case)
        if vectors or self._dirty:
            fp = self._clean_fp
            fp[_FXSAVE_MXCSR : _FXSAVE_MXCSR + 4] = state[self._mxcsr]
            fp[_FXSAVE_XMM : _FXSAVE_XMM + 256] = state[self._vectors]
            ctypes.memmove(self._xsave, bytes(fp), len(fp))
            self._call(_SETREGSET, self._vector, _XSTATE)
        self._dirty = vectors
        self._stopped = False
        self._call(_SETREGS, self._regs)
        self._call(_SYSEMU, None)
        _, status = os.waitpid(self._child, 0)
        while not self._stopped and os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP:
            self._call(_SYSEMU, None)  # it was for the case before, which had ended by itself
            _, status = os.waitpid(self._child, 0)
        if not os.WIFSTOPPED(status):
            self._begin()
            return Outcome(status="died", signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
        if self._stopped and os.WSTOPSIG(status) == signal.SIGSTOP:
            return Outcome(status="timeout")
        return self._outcome(os.WSTOPSIG(status), before, state, vectors)

    def _outcome(self, number: int, before: bytes, began: bytes, vectors: bool) -> Outcome:
        self._call(_GETREGS, self._regs)
        self._call(_GETSIGINFO, self._info)
        _, _, code, address = _SIGINFO.unpack_from(self._info)
        regs = self._regs.raw
        general = [regs[place] for place in self._general]
        general[-1] = _U64.pack(_U64.unpack(general[-1])[0] & ~self._fixed[0] | self._fixed[1])
        rest = began[self._vectors.start :]
        if vectors:
            self._call(_GETFPREGS, self._fp)
            fp = self._fp.raw
            rest = fp[_FXSAVE_XMM : _FXSAVE_XMM + 256] + fp[_FXSAVE_MXCSR : _FXSAVE_MXCSR + 4]
            rest += began[self._mxcsr.stop :]
        end = _U64.unpack_from(regs, _RIP)[0]
        vector = _VECTORS.get((number, code))
        came_to_its_end = (vector, end, address) == (14, CODE + PAGE, CODE + PAGE)
        # A stop by SYSEMU is a SIGTRAP whose code is that of the signal itself.
        is_call = number == signal.SIGTRAP and code == signal.SIGTRAP
        if is_call:
            return Outcome(status="unsupported")
        return Outcome(
            status="ok" if came_to_its_end else "exception",
            state=b"".join(general) + rest,
            writes=differences(before, bytes(self._data)),
            end=end,
            vector=None if came_to_its_end else vector,
            address=address if vector == 14 and not came_to_its_end else None,
        )

    def stop(self) -> None:
        """See Engine."""
        self._stopped = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGSTOP)
