"""Short-lived QEMUs: started so that they cannot outlive us, read with a deadline, killed and reaped."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from vmtest.deadline import Deadline
from vmtest.host.system import guarded, process_cpu_seconds

__all__ = ["Child", "running"]


class Child:
    """A running process: its standard output is read through ``chunks``, its standard error kept for later."""

    def __init__(self, process: subprocess.Popen[bytes], errors: int) -> None:
        self._process = process
        self._errors = errors

    def chunks(self, deadline: Deadline) -> Iterator[bytes]:
        """What it prints, as it comes; ends at the end of the output or at the deadline."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLHUP)
        while not deadline.expired:
            # Rounded up: poll's milliseconds must not turn a last half into none.
            if poll.poll(int(deadline.remaining * 1000) + 1):
                data = os.read(fd, 65536)
                if not data:
                    return
                yield data

    def end(self, deadline: Deadline) -> int | None:
        """Its exit status (negative: the signal) once it ended by itself; None where the deadline came first."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(deadline.timeout)
        return None

    def cpu_seconds(self) -> float:
        """The CPU time that all its threads, guest code included, have used so far."""
        return process_cpu_seconds(self._process.pid)

    def errors(self) -> str:
        """The first 4 KiB of its standard error so far: QEMU's first words name the cause."""
        return os.pread(self._errors, 4096, 0).decode(errors="replace").strip()

    def kill(self) -> None:
        """End its whole group at once, and reap it."""
        if self._process.returncode is None:
            # Not reaped yet, so the group's number cannot have gone to somebody else.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def running(argv: Sequence[str], *, text: bytes = b"", fds: Sequence[int] = ()) -> Iterator[Child]:
    """Start ``argv`` in a group of its own with ``text`` as its input; killed and reaped on the way out.

    ``text`` must fit into a pipe (4096 bytes). ``fds`` stay open in it. Raises OSError where it cannot start.
    """
    assert len(text) <= select.PIPE_BUF
    # In memory: a full stderr pipe would stall QEMU, and a file would have to be removed.
    errors = os.memfd_create("stderr")
    try:
        process = subprocess.Popen(
            guarded(tuple(argv)),
            stdin=subprocess.PIPE if text else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=fds,
            start_new_session=True,
            bufsize=0,
        )
        child = Child(process, errors)
        # A QEMU that aborts (a failed probe) must not leave a core file in the user's directory.
        with suppress(OSError):
            hard = resource.prlimit(process.pid, resource.RLIMIT_CORE)[1]
            resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, hard))
        try:
            if process.stdin is not None:
                with suppress(BrokenPipeError), process.stdin as pipe:
                    pipe.write(text)
            yield child
        finally:
            child.kill()
            assert process.stdout is not None
            process.stdout.close()
    finally:
        os.close(errors)
