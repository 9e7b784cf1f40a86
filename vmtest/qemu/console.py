"""The guest's serial console: read all the time, logged to a file, driven with pexpect's patterns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from re import Match, Pattern
from typing import Any, NoReturn, TypeAlias

import pexpect
from pexpect.expect import searcher_re, searcher_string

from vmtest.deadline import Deadline
from vmtest.errors import ConsoleTimeout, GuestGone, QemuDied, UsageError
from vmtest.qemu import loop, terminal
from vmtest.qemu.bytequeue import ByteQueue
from vmtest.qemu.consolelog import ConsoleLog
from vmtest.qemu.search import KEPT, Search, compiled, listed
from vmtest.qemu.verdict import Verdict

__all__ = ["Console"]

READ = 1 << 18
"""Bytes received at once: more than a socket holds, so that one call takes all there is."""
FLOOD = 1 << 17
"""So much at once is a flood, which is logged in pieces of a MiB: that costs a quarter less."""
TAIL = 1 << 16
"""Bytes of the newest output kept for reports."""
GRACE = 1.0
"""Seconds between two signs of one end: QEMU's sockets close a moment before its exit code is known."""

PatternLike: TypeAlias = "str | bytes | Pattern[bytes] | Pattern[str] | type[pexpect.EOF] | type[pexpect.TIMEOUT]"
TextLike: TypeAlias = "str | bytes | type[pexpect.EOF] | type[pexpect.TIMEOUT]"


class Console:
    """The serial console as a stream of bytes with pexpect's ``expect``.

    A background thread reads it always, so that a chatty guest never stalls, writes everything to ``log_path`` and
    hands it to ``on_data``. Memory and search cost stay bounded whatever the guest prints: while nobody expects
    anything the newest MiB is kept, and a match that arrives in pieces may span 16 KiB.

    As in pexpect, but always in bytes, after an ``expect`` ``match`` is the match (of ``expect_exact`` the bytes),
    ``after`` what matched and ``before`` what came before it (at most the newest MiB). What did not match is kept
    for the next ``expect``. ``timeout`` is the default in seconds; it, and any ``timeout=`` of a call, is multiplied by
    ``scale``, so that slow hosts need no other tests. One thread at a time may expect.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        log: Path,
        verdict: Verdict,
        on_data: Callable[[bytes], None] = lambda data: None,
        timeout: float = 30.0,
        scale: float = 1.0,
    ) -> None:
        """Read from ``sock``, which is the console's from here on. Raises HostError if ``log`` cannot be written."""
        self.log_path = log
        self.timeout = timeout
        self.before = b""
        self.after: bytes | type[Exception] = b""
        self.match: Match[bytes] | bytes | type[Exception] | None = None
        self._scale = scale
        self._sock = sock
        self._verdict = verdict
        self._on_data = on_data
        self._changed = threading.Condition()  # guards all that follows
        self._unread = ByteQueue()
        self._tail = ByteQueue()
        self._total = 0
        self._due = 0  # bytes printed before a verdict: they are looked at before it is raised
        self._owner: int | None = None
        self._paused = self._eof = self._closed = False
        self._search: Search | None = None
        self._log = ConsoleLog(log)
        verdict.on_set(self._look_until_here)
        sock.setblocking(False)
        loop.call(self._listen)

    # -- reading, in the background thread ---------------------------------------------------------------------

    def remember(self, data: bytes) -> None:
        """Begin with what was printed before the guest became ours: logged, unread, and of what its tail shows."""
        with self._changed:
            self._log.write(data)
            self._log.flush()
            self._tail.append(data)
            self._tail.trim(TAIL)
            self._unread.append(data)
            self._unread.trim(KEPT)
            self._total += len(data)

    def move_log(self, path: Path) -> None:
        """Go on in another log file: what is in the present one is appended to it first."""
        with self._changed:
            self._log.move(path)
            self.log_path = path

    def transcript(self) -> bytes:
        """All that the guest has printed, or the newest MiB of it."""
        with self._changed, self.log_path.open("rb") as log:
            # Before that the log may have what an earlier life of the guest printed.
            log.seek(max(0, log.seek(0, os.SEEK_END) - min(KEPT, self._total)))
            return log.read()

    def _listen(self, running: asyncio.AbstractEventLoop) -> None:
        if not (self._eof or self._paused):  # either may have come since this was asked for
            running.add_reader(self._sock.fileno(), self._readable, running)

    def _readable(self, running: asyncio.AbstractEventLoop) -> None:
        try:
            data = self._sock.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        with self._changed:
            self._log.write(data)
            self._total += len(data)
            self._tail.append(data)
            self._tail.trim(TAIL)
            if self._search is not None and not self._search.done:
                self._search.feed(data)
            else:
                self._unread.append(data)
            self._eof = not data
            if self._eof:
                self._due = self._total
            if self._owner is None:
                self._unread.trim(KEPT)
            self._paused = self._owner is not None and len(self._unread) > KEPT
            if self._eof or self._paused:
                running.remove_reader(self._sock.fileno())
            if len(data) < FLOOD or (self._search is not None and self._search.done):
                self._log.flush()  # before anybody is told: who has seen something finds it in the log
            else:
                running.call_later(0.05, self._flush)
            self._changed.notify_all()
        if data:
            self._on_data(data)

    def _flush(self) -> None:
        with self._changed:
            self._log.flush()

    def _look_until_here(self) -> None:
        """A verdict was set. What was printed before it is searched first, what comes later is not waited for."""
        with self._changed:
            self._due = self._total
            self._changed.notify_all()

    # -- what a test uses --------------------------------------------------------------------------------------

    @property
    def tail(self) -> bytes:
        """The newest output, at least 64 KiB of it where there was so much. The whole is in ``log_path``."""
        with self._changed:
            return self._tail.join()

    def tail_text(self, lines: int = 30) -> str:
        """The last lines of the console as text, fit to print: no control characters but newlines and tabs."""
        text = self.tail.decode(errors="replace").replace("\r", "")
        shown = "\n".join(text.splitlines()[-lines:])[-200 * lines :]
        return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in shown)

    @property
    def total(self) -> int:
        """How many bytes the guest has printed."""
        return self._total

    def expect(self, pattern: PatternLike | Sequence[PatternLike], *, timeout: float | None = None) -> int:
        """Wait until the console prints what ``pattern`` (a regular expression, or several) matches.

        Returns the index of the one that matched; ``pexpect.EOF`` and ``pexpect.TIMEOUT`` may be among them. The dot
        matches newlines too. Raises ConsoleTimeout after ``timeout`` seconds (by default ``self.timeout``), and at
        once GuestPanicked, QemuDied or GuestGone when that happens meanwhile. A regular expression that backtracks
        without end stalls every guest of this process, not only this call: prefer expect_exact or a simple pattern.
        """
        return self._expect(searcher_re([compiled(item) for item in listed(pattern)]), pattern, timeout)

    def expect_exact(self, text: TextLike | Sequence[TextLike], *, timeout: float | None = None) -> int:
        """As ``expect``, for plain text: faster, and nothing in it is special."""
        texts = [item.encode() if isinstance(item, str) else item for item in listed(text)]
        return self._expect(searcher_string(texts), text, timeout)

    def _expect(self, searcher: Any, wanted: object, timeout: float | None) -> int:
        deadline = self._deadline(timeout)
        search = Search(searcher)
        with self.attended():
            try:
                end = self._wait_for(search, deadline, until_eof=searcher.eof_index >= 0)
                self.before, self.after, self.match = search.result(end)
                if end is None:
                    return search.index
                if end is pexpect.TIMEOUT and searcher.timeout_index < 0:
                    raise self._timeout(f"the console did not print {wanted!r} within {deadline.seconds:g} s")
                if end is pexpect.EOF and searcher.eof_index < 0:
                    self._ended(f"the guest's console closed while {wanted!r} was expected")
                self.match = end
                if end is pexpect.TIMEOUT:
                    return int(searcher.timeout_index)
                search.seen.clear()
                return int(searcher.eof_index)
            finally:
                with self._changed:
                    self._search = None
                    self._log.flush()  # of what came before the call and matched, some may still be held
                    self._unread.put_back_all(search.seen)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._scale * (self.timeout if timeout is None else timeout))

    def _wait_for(self, search: Search, deadline: Deadline, *, until_eof: bool) -> type[Exception] | None:
        """Wait until it has found something: None; or pexpect.EOF or TIMEOUT. Raises the verdict's error."""
        with self._changed:
            while self._unread and not search.done:
                search.feed(self._unread.take(READ))
            self._search = search
            self._resume()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: search.done or self._eof or self._verdict.is_set, deadline.timeout)
                if search.done:
                    return None
                if self._eof and (until_eof or not self._verdict.is_set):
                    return pexpect.EOF  # type: ignore[no-any-return]
                if not self._verdict.is_set:
                    return pexpect.TIMEOUT  # type: ignore[no-any-return]
            try:
                self._verdict.check()
            except (GuestGone, QemuDied):
                # QEMU has ended: its last words are still in the socket, and after them its end.
                with self._changed:
                    self._changed.wait_for(lambda: search.done or self._eof, GRACE)
                    if not search.done and not (self._eof and until_eof):
                        raise

    def _timeout(self, message: str) -> ConsoleTimeout:
        hint = f"the whole console log is in {self._log}"
        return ConsoleTimeout(message, hint=hint, evidence={"console tail": self.tail_text()})

    def _ended(self, message: str) -> NoReturn:
        """The console is closed. Why is for the verdict to say, which may come a moment later."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._verdict.is_set, GRACE)
        self._verdict.check()
        raise GuestGone(message, evidence={"console tail": self.tail_text()})

    def send(self, data: str | bytes, *, timeout: float | None = None) -> None:
        """Type ``data``. Raises ConsoleTimeout where the guest does not take it in time."""
        self.send_until(data, self._deadline(timeout))

    def send_until(self, data: str | bytes, deadline: Deadline) -> None:
        """As ``send``, for a caller that has a deadline already, which is not scaled again."""
        rest = data.encode() if isinstance(data, str) else data
        size = len(rest)
        while rest:
            self._verdict.check()
            taken = self.offer(rest)
            rest = rest[taken:]
            if rest and not taken:
                if deadline.expired:
                    raise self._timeout(
                        f"the guest read {size - len(rest)} of the {size} bytes that were typed on its console within "
                        f"{deadline.seconds:g} s"
                    )
                self._wait_writable(deadline.sooner(0.1))

    def offer(self, data: bytes) -> int:
        """Type as much of ``data`` as the guest takes at once; how many bytes that was."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._ended("the guest's console is closed")

    def _wait_writable(self, deadline: Deadline) -> None:
        poller = select.poll()  # and not select(): descriptors may be above 1023
        with contextlib.suppress(ValueError):  # closed by another thread: the next send says so
            poller.register(self._sock, select.POLLOUT)
            poller.poll(deadline.remaining * 1000)

    def sendline(self, line: str | bytes = b"", *, timeout: float | None = None) -> None:
        """Type ``line`` and Enter."""
        self.send((line.encode() if isinstance(line, str) else line) + b"\n", timeout=timeout)

    def discard(self) -> None:
        """Forget all that is unread, also by an ``expect`` that is under way."""
        with self._changed:
            self._unread.clear()
            if self._search is not None:
                self._search.forget()
            self._resume()

    def interact(self) -> None:
        """Connect this terminal to the console until Ctrl-] is typed or the guest ends.

        Raises UsageError where standard input is no terminal.
        """
        terminal.connect(self)

    def close(self) -> None:
        """Stop reading and close the log; a second time does nothing. What is unread can still be expected."""
        loop.call(self._close)

    def _close(self, running: asyncio.AbstractEventLoop) -> None:
        if self._closed:
            return
        running.remove_reader(self._sock.fileno())
        with contextlib.suppress(OSError):  # the other end may have closed first
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that polls it
        self._sock.close()
        with self._changed:
            self._log.close()
            self._closed = self._eof = True
            self._due = self._total
            self._changed.notify_all()

    # -- between the two ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def attended(self) -> Iterator[None]:
        """Nothing is lost while it lasts: the guest waits when it prints faster than is read.

        Raises UsageError where another thread attends the console already.
        """
        me = threading.get_ident()
        with self._changed:
            if self._owner not in (None, me):
                raise UsageError(
                    "another thread is expecting something of this console",
                    hint="one thread at a time may use expect, interact and commands on the console",
                )
            outer, self._owner = self._owner, me
        try:
            yield
        finally:
            with self._changed:
                self._owner = outer
                if outer is None:
                    self._unread.trim(KEPT)
                    self._resume()

    def read(self, size: int, deadline: Deadline) -> bytes:
        """Between 1 and ``size`` unread bytes; waits for them. b"" at the deadline.

        Raises the verdict's error, or EOFError, when nothing more will come. Whoever must have every byte reads
        inside ``attended``.
        """
        while True:
            with self._changed:
                if not self._verdict.is_set or self._total - len(self._unread) < self._due:
                    data = self._unread.take(size)
                    if data:
                        self._resume()
                        return data
                    if self._eof and not self._verdict.is_set:
                        raise EOFError
                    if deadline.expired:
                        return b""
                    self._changed.wait(deadline.timeout)
                    continue
            try:
                self._verdict.check()
            except (GuestGone, QemuDied):  # as in _wait_for
                with self._changed:
                    self._changed.wait_for(lambda: self._eof or self._unread, GRACE)
                    if not self._unread:
                        raise
                    self._due = self._total

    def _resume(self) -> None:
        if self._paused and (len(self._unread) < KEPT // 2 or self._owner is None):
            self._paused = False
            loop.post(self._listen)
