"""The QEMU process: started so that it cannot outlive us, watched, and reaped."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from vmtest.deadline import Deadline
from vmtest.errors import HostError
from vmtest.qemu import loop

__all__ = ["Process", "how_it_ended"]

UNLESS_ORPHANED = ("/bin/sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
"""Runs after the signal was asked for: a parent that was killed before that moment has sent none."""

_alive: weakref.WeakSet[Process] = weakref.WeakSet()


class Process:
    """A child in a process group of its own that the kernel kills when we die.

    ``returncode`` is None while it runs, then as in subprocess: negative for a signal. ``on_exit`` is called once,
    in the background thread, when it has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stderr: Path,
        environment: Mapping[str, str] = MappingProxyType({}),
        pass_fds: Sequence[int] = (),
        on_exit: Callable[[int], None] = lambda code: None,
    ) -> None:
        """Start ``command``, its standard error going to the file ``stderr``. Raises HostError if it cannot.

        ``environment`` is added to ours; ``pass_fds`` are the descriptors that it inherits under the same numbers.
        """
        self.command = tuple(command)
        self.stderr_path = stderr
        self.returncode: int | None = None
        self._on_exit = on_exit
        self._ended = threading.Event()
        self._popen = loop.call(lambda running: self._start(running, pass_fds, environment))
        _alive.add(self)

    def _start(
        self, running: asyncio.AbstractEventLoop, pass_fds: Sequence[int], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        # setpriv and not preexec_fn: code between fork and exec may deadlock in a process that has threads.
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise HostError("setpriv is missing", hint="install it: apt-get install -y util-linux")
        with self.stderr_path.open("wb") as stderr:
            try:
                popen = subprocess.Popen(
                    [setpriv, "--pdeathsig", "KILL", "--", *UNLESS_ORPHANED, str(os.getpid()), *self.command],
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=pass_fds,
                    env={**os.environ, **environment},
                    process_group=0,
                )
            except OSError as error:
                raise HostError(f"{self.command[0]} cannot be started: {error.strerror}") from error
        descriptor = os.pidfd_open(popen.pid)
        running.add_reader(descriptor, self._exited, running, descriptor, popen)
        return popen

    def _exited(self, running: asyncio.AbstractEventLoop, descriptor: int, popen: subprocess.Popen[bytes]) -> None:
        running.remove_reader(descriptor)
        os.close(descriptor)
        self.returncode = popen.wait()
        try:
            self._on_exit(self.returncode)
        finally:  # whoever waits must not wait for ever because a callback failed
            self._ended.set()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        return self._popen.pid

    @property
    def stderr(self) -> str:
        """The last 4000 characters of what it wrote to standard error."""
        with contextlib.suppress(FileNotFoundError), self.stderr_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            return file.read().decode(errors="replace")
        return ""

    def wait(self, deadline: Deadline) -> int | None:
        """Wait until it has ended; its exit code, or None if the deadline came first."""
        self._ended.wait(deadline.timeout)
        return self.returncode

    def kill(self) -> int:
        """Kill its whole group and reap it; its exit code. Does nothing to one that has ended."""
        with contextlib.suppress(ProcessLookupError):
            if not self._ended.is_set():
                os.killpg(self.pid, signal.SIGKILL)
        self._ended.wait()
        assert self.returncode is not None
        return self.returncode


def how_it_ended(exit_code: int) -> str:
    """An exit code in words: "exited with status 1", "was killed by SIGSEGV"."""
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"


@atexit.register
def _kill_all() -> None:
    for process in list(_alive):
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
