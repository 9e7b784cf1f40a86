"""Where in QEMU's code it is ended by a signal: a process that is traced stops before it ends (ptrace(2)).

The signals of its main thread are seen, which does what qtest asks for. No debugger is needed, nor its symbols.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from pathlib import Path

from vmtest.host import host_arch

__all__ = ["Tracer"]

_SEIZE, _CONT, _GETREGSET = 0x4206, 7, 0x4204
_PRSTATUS = 1
_FATAL = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
_ASK = signal.SIGURG
"""What a process is stopped by that is asked where it is: it does not get to see it."""
LOOK_SECONDS = 1.0
"""Seconds in which a process is stopped that is asked where it is."""
_WORDS, _FRAMES = 400, 3
"""Words of the stack that are looked through for addresses of QEMU's code, and how many of these are told."""
_PLACES = {"x86_64": (16 * 8, 19 * 8), "aarch64": (32 * 8, 31 * 8)}
"""By the host's architecture, where in struct user_regs_struct the program counter and the stack pointer are."""


class Tracer:
    """Watches a process from here to its end. ``where`` is the place of a fatal signal: the code's offset
    in QEMU's file, and those that the stack has next; "" where there was none, or it cannot be told.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._libc.ptrace.restype = ctypes.c_long
        self.where = ""
        self._ready, self._asked, self._seen = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._watch, name="vmtest-tracer", daemon=True)

        if host_arch() in _PLACES:
            self._thread.start()
            self._ready.wait()

    def look(self) -> str:
        """The place where it is now, or waits; "" where that cannot be told."""
        if self._thread.is_alive():
            self._asked.set()
            self._libc.tgkill(self._pid, self._pid, _ASK)  # its main thread, which alone is traced
            self._seen.wait(LOOK_SECONDS)
        return self.where

    def close(self) -> None:
        """It has ended: that is told no more."""
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        """All of it is one thread's: ptrace is asked by who has begun it."""
        is_ours = self._libc.ptrace(_SEIZE, self._pid, None, None) == 0
        self._ready.set()
        # Of a stop alone one cannot be woken; its end is left to who waits for it, who may be first.
        with contextlib.suppress(ChildProcessError):
            while is_ours and (came := os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)):
                if came.si_code not in (os.CLD_TRAPPED, os.CLD_STOPPED):
                    break
                self._stopped(came.si_status)

    def _stopped(self, status: int) -> None:
        """It is stopped by a signal, which it is given back; a group's stop has the event in the upper bits."""
        number = status & 0xFF
        is_asked = number == _ASK and self._asked.is_set()
        if (number in _FATAL or is_asked) and not self.where:
            with contextlib.suppress(OSError):  # it has gone meanwhile
                self.where = self._place()
        if is_asked:
            self._seen.set()
        self._libc.ptrace(_CONT, self._pid, None, 0 if status >> 8 or is_asked else number)

    def _place(self) -> str:
        registers = ctypes.create_string_buffer(1024)
        vector = (ctypes.c_void_p * 2)(ctypes.addressof(registers), len(registers))
        if self._libc.ptrace(_GETREGSET, self._pid, _PRSTATUS, ctypes.addressof(vector)) != 0:
            return ""
        counter, stack = (int.from_bytes(registers.raw[at : at + 8], "little") for at in _PLACES[host_arch()])
        code = self._code()
        found = [at for at in (counter, *self._stack(stack)) if any(first <= at < last for first, last, _ in code)]
        base = min((first - offset for first, _, offset in code), default=0)
        return " ".join(f"+{at - base:#x}" for at in dict.fromkeys(found[:_FRAMES]))

    def _code(self) -> list[tuple[int, int, int]]:
        """Where QEMU's own code is: first and last address, and offset in its file."""
        binary = str(Path(f"/proc/{self._pid}/exe").readlink())
        found = []
        for line in Path(f"/proc/{self._pid}/maps").read_text().splitlines():
            words = line.split(None, 5)
            if len(words) == 6 and words[5] == binary and "x" in words[1]:
                first, _, last = words[0].partition("-")
                found.append((int(first, 16), int(last, 16), int(words[2], 16)))
        return found

    def _stack(self, at: int) -> list[int]:
        try:
            with Path(f"/proc/{self._pid}/mem").open("rb", buffering=0) as memory:
                memory.seek(at)
                data = memory.read(8 * _WORDS)
        except (OSError, OverflowError, ValueError):  # there is no stack: it has overflown, or was left
            return []
        return [int.from_bytes(data[k : k + 8], "little") for k in range(0, len(data) - 7, 8)]
