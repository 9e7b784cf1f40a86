"""The process that forks a worker for each of its lives: ``python -m vmtest.executors.forks``. See lives.py."""

from __future__ import annotations

import mmap
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from vmtest.errors import VmtestError
from vmtest.executors.base import Engine
from vmtest.executors.lives import BEGIN, CODE
from vmtest.executors.worker import serve
from vmtest.host.system import adopt_orphans
from vmtest.model.isa import isa

_PATIENCE = 2.0


def _live(make: Callable[[], Engine], descriptors: Sequence[int], parent: int) -> NoReturn:
    """One life, to its end."""
    source, sink, shared = descriptors
    try:
        serve(make(), source, sink, mmap.mmap(shared, mmap.PAGESIZE), parent)
        os._exit(0)
    except BaseException as error:
        if isinstance(error, VmtestError):  # it says why
            print(error, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # within, while nothing of serve() is closed yet


class _Child:
    """One that lives, or has lived, with what it has left behind: all are waited for soon, whoever asks."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._code: int | None = None

    def look(self) -> bool:
        """Wait for those that have ended, and return whether there are others."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self._pid:
                    self._code = os.waitstatus_to_exitcode(found[1])
            return True
        return False

    def end(self) -> int:
        self.look()
        if self._code is None:
            os.kill(self._pid, signal.SIGKILL)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._code

    def bury(self) -> None:
        """End it, and wait for what it has left behind, as far as that ends with it."""
        self.end()
        until = time.monotonic() + _PATIENCE
        while self.look() and time.monotonic() < until:
            time.sleep(0.002)  # waitpid() knows no time


def _fork(make: Callable[[], Engine], control: socket.socket, parent: int) -> None:
    """A child for each life that is asked for, while who started us is there."""
    child, us = None, os.getpid()
    poller = select.poll()
    poller.register(control, select.POLLIN)
    while os.getppid() == parent:
        if not poller.poll(100):
            if child:
                child.look()
            continue
        asked, descriptors, _, _ = socket.recv_fds(control, 1, 3)
        if asked == BEGIN:
            if not (pid := os.fork()):
                control.close()
                _live(make, descriptors, us)
            child = _Child(pid)
            for descriptor in descriptors:
                os.close(descriptor)
        elif asked and child:
            control.sendall(CODE.pack(child.end()))
        else:
            break
    if child:
        child.bury()


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us
    adopt_orphans()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # nobody wants a file of each death
    module, name, control, parent, *argument = sys.argv[1:]
    kind: type[Engine] = import_module(module).Engine
    row = isa(name)
    engine = kind(row, *argument) if kind.survives_fork else None
    _fork(lambda: engine or kind(row, *argument), socket.socket(fileno=int(control)), int(parent))


if __name__ == "__main__":
    _main()
