"""The host's side of what is spoken with the helper (posix.HELPER) on the console: lines typed, frames read."""

from __future__ import annotations

import itertools
import re
import secrets
import threading
from collections import deque
from typing import TYPE_CHECKING

from vmtest.deadline import Deadline
from vmtest.errors import ConsoleTimeout, GuestError, GuestGone

if TYPE_CHECKING:
    from vmtest.qemu.console import Console

__all__ = ["RETRY", "Frames"]

RETRY = 1.0
"""Seconds of silence after which a question is repeated, at first."""
READ = 1 << 16
BROKEN = 0.1
"""Seconds of silence that are enough where a broken frame was seen: no answer to wait for."""
LONGEST = 1 << 12
"""Bytes of a frame that has not ended: kept, and no more, while no newline comes."""


class Frames:
    """Requests ``NUMBER VERB …``, a line each; answers ``<TAG NUMBER word … TAG>``; output ``<TAG = LINE text TAG>``.

    ``lines`` collects the output. ``ready`` is whether the helper reads what is typed; ``heard`` counts the frames.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lines: dict[int, bytes] = {}
        self.ready = False
        self.lost = False
        self.heard = 0
        self.sending = threading.Lock()
        self._numbers = itertools.count(1)
        self._marks: tuple[bytes, ...] = ()
        self._frame = re.compile(b"")
        self._received = b""
        self._frames: deque[bytes] = deque()

    def begin(self) -> str:
        """A new tag: frames with another are nothing from here on."""
        tag = secrets.token_hex(3)
        self._marks = (f"<{tag}".encode(), f"{tag}>".encode())
        self._frame = re.compile(f"<{tag} ([^<>\\r\\n]*) {tag}>".encode())
        self._received = b""
        self._frames.clear()
        self.lines.clear()
        self.ready = False
        return tag

    def type(self, text: str, deadline: Deadline, end: str = "\n") -> None:
        """Type ``text`` and Enter. Raises TimeoutError where the guest does not take it."""
        with self.sending:
            try:
                self.console.send_until(text + end, deadline)
            except ConsoleTimeout:
                raise TimeoutError from None

    def read(self, deadline: Deadline) -> bytes:
        """What the console prints; b"" at the deadline. Raises GuestGone when the guest was reset or has closed it."""
        try:
            data = self.console.read(READ, deadline)
        except EOFError:
            raise GuestGone("the guest's console closed") from None
        if self.lost:
            raise GuestGone("the guest was reset")
        return data

    def next(self, deadline: Deadline) -> list[bytes] | None:
        """The words of the next whole frame; None at the deadline."""
        while not self._frames:
            data = self.read(deadline)
            if not data:
                return None
            data = self._received + data
            end = data.rfind(b"\n") + 1
            for match in self._frame.finditer(data):
                self._frames.append(match[1])
                end = max(end, match.end())
            self._received = data[end:][-LONGEST:]
            if not self._frames and any(mark in data[:end] for mark in self._marks):
                deadline = deadline.sooner(BROKEN)
        self.heard += 1
        body = self._frames.popleft()
        words = body.split(b" ", 2) if body.startswith(b"=") else body.split()
        if self.ready and words == [b"0", b"missing"]:
            self.ready = False
            raise GuestError("what runs commands in the guest's console shell was killed")
        return words

    def say(self, request: str, deadline: Deadline) -> bytes:
        """Type a request; its number."""
        number = next(self._numbers)
        self.type(f"{number} {request}", deadline)
        return b"%d" % number

    def answer(self, number: bytes, deadline: Deadline, pause: float) -> list[bytes] | None:
        """The answer to a request; None after ``pause`` seconds of silence. Lines of output are kept as they come."""
        while words := self.next(deadline.sooner(pause)):
            if words[0] == b"=" and len(words) == 3:
                self.lines[int(words[1])] = words[2]
            elif words[0] == number:
                return words[1:]
        return None

    def ask(self, request: str, deadline: Deadline, pause: float = RETRY) -> list[bytes]:
        """The answer to a request that may be repeated. Raises TimeoutError."""
        while True:
            answer = self.answer(self.say(request, deadline), deadline, pause)
            if answer is not None:
                return answer
            if deadline.expired:
                raise TimeoutError
            pause = min(2 * pause, 10 * RETRY)
