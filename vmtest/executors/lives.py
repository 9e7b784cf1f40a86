"""How a worker comes to life, time and again, since cases kill it.

A program starts in 2 ms. Python takes 100 ms with all that it imports: it does that once, and then forks a child for
each life. Our end of that is here, and the other end in forks.py.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from vmtest.executors.base import Row
from vmtest.model.isa import Isa

__all__ = ["BEGIN", "CODE", "END", "Lives", "lives"]

BEGIN, END = b"b", b"e"
"""What is asked of the process that forks: with three descriptors a life that has them; to end it, which is answered by
its exit code, less than zero for a signal."""
CODE = struct.Struct("<i")
_SERVER = "vmtest.executors.forks"
_PATIENCE = 5.0


class Lives(ABC):
    """The lives of a worker, of which there is one at a time."""

    def __init__(self, row: Row, isa: Isa, argument: str) -> None:
        self._row, self._argument = row, [argument] if argument else []
        self._isa = isa
        self._process: subprocess.Popen[bytes] | None = None
        self._words: int | None = None

    @abstractmethod
    def begin(self, descriptors: Sequence[int]) -> None:
        """A life that has those: where cases come from, where outcomes go, and the shared page."""

    @abstractmethod
    def end(self) -> int:
        """End it, if a case has not; its exit code as subprocess has it."""

    def words(self) -> str:
        """What it has said since it began."""
        return "" if self._words is None else os.pread(self._words, 1 << 20, 0).decode(errors="replace").strip()

    def close(self) -> None:
        """End what there is; a second time does nothing."""
        if self._words is not None:
            os.close(self._words)
        self._words = None

    def _hush(self) -> None:
        if self._words is None:
            # No pipe: that would fill up, and block whoever writes to it, where a library has words for each death.
            self._words = os.memfd_create("words", os.MFD_CLOEXEC)
        os.truncate(self._words, 0)
        os.lseek(self._words, 0, os.SEEK_SET)

    def _start(self, command: Sequence[str], descriptors: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._words,
            pass_fds=descriptors,
            env={**os.environ, **dict(self._row.environment)},
            process_group=0,
        )

    def _kill(self) -> int:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # with what it has started
        code = self._process.wait()
        self._process = None
        return code


class _Started(Lives):
    """A program, started for each."""

    def begin(self, descriptors: Sequence[int]) -> None:
        self._hush()
        program = import_module(self._row.module).program(self._isa)
        self._start([str(program), str(self._isa.size), *map(str, (*descriptors, os.getpid()))], descriptors)

    def end(self) -> int:
        return self._kill()

    def close(self) -> None:
        if self._process is not None:
            self._kill()
        super().close()


class _Forked(Lives):
    """A Python process with a child for each. When it has died itself, of whatever, there is another."""

    _control: socket.socket

    def begin(self, descriptors: Sequence[int]) -> None:
        self._hush()
        if self._process is not None and self._process.poll() is not None:
            self._lose()
        if self._process is None:
            self._serve()
        with suppress(OSError):  # it has ended at once: then nobody has the descriptors, which is seen
            socket.send_fds(self._control, [BEGIN], descriptors)

    def _serve(self) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_PATIENCE)
        arguments = (self._row.module, self._isa.name, theirs.fileno(), os.getpid(), *self._argument)
        with theirs:
            try:
                self._start([sys.executable, "-P", "-m", _SERVER, *map(str, arguments)], [theirs.fileno()])
            except OSError:
                self._control.close()
                raise

    def end(self) -> int:
        with suppress(OSError):
            self._control.sendall(END)
            if answer := self._control.recv(CODE.size):
                return int(CODE.unpack(answer)[0])
        return self._lose()

    def _lose(self) -> int:
        self._control.close()
        return self._kill()

    def close(self) -> None:
        if self._process is not None:
            self._control.close()  # at which it ends its child, and itself
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
            self._kill()
        super().close()


def lives(row: Row, isa: Isa, argument: str = "") -> Lives:
    """Those of an executor's worker."""
    return (_Started if row.is_program else _Forked)(row, isa, argument)
