"""The QEMU process: started so that it cannot outlive us, watched, and reaped."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from vmtest.deadline import Deadline
from vmtest.errors import HostError
from vmtest.host.system import UNLESS_ORPHANED, guarded, process_cpu_seconds, small_pages
from vmtest.qemu import loop

__all__ = ["Process", "how_it_ended"]

_alive: set[Process] = set()
os.register_at_fork(after_in_child=_alive.clear)  # a child that ends must not kill what is its parent's


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
        lean: bool = False,
        on_exit: Callable[[int], None] = lambda code: None,
    ) -> None:
        """Start ``command``, its standard error appended to the file ``stderr``. Raises HostError if it cannot.

        ``environment`` is added to ours; ``pass_fds`` are the descriptors that it inherits under the same numbers.
        With ``lean`` it gets no huge pages, of which it would not use the whole.
        """
        self.command = tuple(command)
        self.stderr_path = stderr
        self.returncode: int | None = None
        self._owner = os.getpid()
        self._on_exit = on_exit
        self._ended = threading.Event()
        loop.call(lambda running: self._start(running, pass_fds, environment, lean))

    def _start(
        self, running: asyncio.AbstractEventLoop, pass_fds: Sequence[int], environment: Mapping[str, str], lean: bool
    ) -> None:
        # setpriv and not preexec_fn: code between fork and exec may deadlock in a process that has threads.
        command = (*UNLESS_ORPHANED, str(os.getpid()), *self.command)
        protected = guarded(command)
        if protected == command:  # a probe may run without it; a guest has no deadline that would end it
            raise HostError("setpriv is missing", hint="install it: apt-get install -y util-linux")
        try:
            stderr = self.stderr_path.open("ab")
        except OSError as error:
            raise HostError(f"{self.stderr_path} cannot be written: {error.strerror}") from error
        with stderr, small_pages() if lean else contextlib.nullcontext():
            try:
                self._popen = subprocess.Popen(
                    protected,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=pass_fds,
                    env={**os.environ, **environment},
                    process_group=0,
                )
            except OSError as error:
                raise HostError(f"{self.command[0]} cannot be started: {error.strerror}") from error
        _alive.add(self)  # here, and not by the caller, whom a Ctrl-C may have taken away meanwhile
        descriptor = os.pidfd_open(self.pid)
        running.add_reader(descriptor, self._exited, running, descriptor)

    def _exited(self, running: asyncio.AbstractEventLoop, descriptor: int) -> None:
        running.remove_reader(descriptor)
        os.close(descriptor)
        self.returncode = self._popen.wait()
        _alive.discard(self)
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
        """The last 4000 bytes of what it wrote to standard error."""
        return self.said(first=0, last=4000)

    def said(self, first: int = 32_000, last: int = 32_000) -> str:
        """So many of the first bytes, and of the last ones, of what it wrote to standard error."""
        with contextlib.suppress(FileNotFoundError), self.stderr_path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            data = file.read(min(first, size))
            file.seek(max(len(data), size - last))
            return (data + file.read()).decode(errors="replace")
        return ""

    def cpu_seconds(self) -> float:
        """The CPU time that all its threads, guest code included, have used so far; 0.0 once it has ended."""
        with contextlib.suppress(OSError):
            return process_cpu_seconds(self.pid)
        return 0.0

    @property
    def resident(self) -> int:
        """MiB of memory that it has now, shared memory included; 0 once it has ended."""
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") >> 20
        return 0

    def wait(self, deadline: Deadline) -> int | None:
        """Wait until it has ended; its exit code, or None if the deadline came first."""
        self._ended.wait(deadline.timeout)
        return self.returncode

    def kill(self) -> int:
        """Kill its whole group and reap it; its exit code. Does nothing to one that has ended.

        In a process forked from ours it does nothing either, and returns 0: it is not that one's to kill.
        """
        if os.getpid() != self._owner:
            return self.returncode or 0
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
