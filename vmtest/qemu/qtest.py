"""The qtest protocol on a socket: a line a request, a line a reply, and lines between them for interrupts
(system/qtest.c in QEMU; docs/devel/testing/qtest.rst). Lines are vmtest.devices.access's to make.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from vmtest.errors import VmtestError

__all__ = ["AT_ONCE", "Interrupt", "Qtest", "QtestEnded"]

INTERRUPTS = 100_000
"""Of the interrupts that nobody has asked for the last ones are kept."""

AT_ONCE = 1_000
"""Requests that are made before they are sent."""
WATCHES = 40
"""How often it is looked for a reply before it is waited for: some 40 us."""
TIMEVAL = struct.Struct("ll")
"""Seconds and microseconds of SO_RCVTIMEO (socket(7))."""


class Interrupt(NamedTuple):
    """A line that was raised, or lowered, while the request with that number was done; the first one has 0."""

    request: int
    line: int
    is_raised: bool


class QtestEnded(Exception):
    """No more replies come: QEMU has ended, or ``is_silent`` and hangs. ``replies`` are those that came before."""

    def __init__(self, replies: Sequence[bytes], *, is_silent: bool = False) -> None:
        super().__init__(f"{len(replies)} replies came")
        self.replies, self.is_silent = replies, is_silent


class Qtest:
    """A connection. ``interrupts`` have been told of lines that were intercepted; so many ``requests`` were done."""

    def __init__(
        self, sock: socket.socket, *, patience: float, goes_on: Callable[[], bool], eager: bool = True
    ) -> None:
        """``sock`` is ours from here on. When QEMU has been silent for ``patience`` seconds, and again each time,
        ``goes_on`` says whether to wait for it still. One that is not ``eager`` sleeps until a reply comes, where
        else it is looked for before: QEMU's main loop has more time between two operations in lockstep.
        """
        sock.setblocking(True)
        # QEMU's answer is waited for in recv itself: with poll before it an operation takes a third longer.
        whole, part = divmod(int(patience * 1e6), 1_000_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEVAL.pack(whole, part))
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._patience, self._goes_on = patience, goes_on
        self._watches = WATCHES if eager and len(os.sched_getaffinity(0)) > 1 else 0
        self._early: list[bytes] = []
        self.interrupts: deque[Interrupt] = deque(maxlen=INTERRUPTS)
        self.requests = 0

    def run(self, lines: Iterable[bytes], at_once: int = AT_ONCE) -> list[bytes]:
        """Requests, without newlines, sent as fast as QEMU takes them, and their replies; one ``at_once`` waits for the
        last one's. Raises QtestEnded.

        QEMU works on the first ones while the next are made: where that raises an error they are done before it is.
        """
        replies: list[bytes] = []
        try:
            self._run(iter(lines), at_once, replies)
        except (BrokenPipeError, ConnectionResetError):
            self._take_the_rest(replies)
            raise QtestEnded(replies) from None
        except TimeoutError:
            raise QtestEnded(replies, is_silent=True) from None
        return replies

    def _run(self, lines: Iterator[bytes], at_once: int, replies: list[bytes]) -> None:
        if at_once == 1:
            for number, line in enumerate(lines, 1):
                self._send(line + b"\n", replies)
                self._watch(replies)
                self._take(number, replies)
            return
        sent, several = 0, list(islice(lines, at_once))
        try:
            while several:
                self._send(b"\n".join(several) + b"\n", replies)
                sent += len(several)
                several = list(islice(lines, at_once))
        except VmtestError:
            self._take(sent, replies)
            raise
        self._take(sent, replies)

    def idle(self, seconds: float) -> None:
        """Listen so long, without a request. Raises QtestEnded where QEMU ends meanwhile."""
        until = time.monotonic() + seconds
        try:
            while (left := until - time.monotonic()) > 0:
                if left < 0.001:  # poll(2) waits for whole milliseconds
                    time.sleep(left)
                if self._poll.poll(int(1000 * left)):
                    self._receive([])
        except (BrokenPipeError, ConnectionResetError):
            raise QtestEnded([]) from None

    def _send(self, data: bytes, replies: list[bytes]) -> None:
        """Send it, and take the replies that come meanwhile: QEMU takes no more while it cannot get rid of them."""
        sent = 0
        while sent < len(data):
            try:
                sent += self._sock.send(memoryview(data)[sent:] if sent else data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._poll.modify(self._sock, select.POLLIN | select.POLLOUT)
                try:
                    ready = self._wait()
                finally:
                    self._poll.modify(self._sock, select.POLLIN)
                if ready & select.POLLIN:
                    self._receive(replies)

    def _watch(self, replies: list[bytes]) -> None:
        """The next reply, where it comes soon: with a CPU to spare half of an operation in lockstep would go to
        falling asleep and being woken up.
        """
        receive = self._sock.recv
        for _ in range(self._watches):
            try:
                data = receive(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            self._received(data, replies)
            return

    def _take(self, number: int, replies: list[bytes]) -> None:
        """Until there are so many."""
        while len(replies) < number:
            try:
                self._receive(replies)
            except BlockingIOError:
                self._look()

    def _wait(self) -> int:
        while not (ready := self._poll.poll(1000 * self._patience)):
            self._look()
        return ready[0][1]

    def _look(self) -> None:
        """QEMU is silent: raise TimeoutError where it does not go on."""
        if not self._goes_on():
            raise TimeoutError

    def _receive(self, replies: list[bytes]) -> None:
        self._received(self._sock.recv(1 << 16), replies)

    def _received(self, data: bytes, replies: list[bytes]) -> None:
        if not data:
            raise ConnectionResetError
        if b"\n" not in data:  # in the midst of what is long
            self._early.append(data)
            return
        if not self._early and data.find(b"\n") == len(data) - 1 and data[:2] == b"OK":  # one, as in lockstep
            replies.append(data[:-1])
            self.requests += 1
            return
        text = b"".join([*self._early, data]) if self._early else data
        *whole, last = text.split(b"\n")
        self._early = [last] if last else []
        if b"IRQ " not in text:
            replies += whole
            self.requests += len(whole)
            return
        for line in whole:
            if line.startswith(b"IRQ "):
                _, change, number = line.split()
                self.interrupts.append(Interrupt(self.requests, int(number), change == b"raise"))
            else:
                replies.append(line)
                self.requests += 1

    def _take_the_rest(self, replies: list[bytes]) -> None:
        """What QEMU had answered before it ended, while we were still sending."""
        try:
            while True:
                self._receive(replies)
        except OSError:
            pass

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the connection; a second time does nothing."""
        self._sock.close()
