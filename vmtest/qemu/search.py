"""Looking for a pattern in text that arrives in pieces."""

from __future__ import annotations

import re
from typing import Any

from vmtest.errors import UsageError
from vmtest.qemu.bytequeue import ByteQueue

__all__ = ["KEPT", "Search", "compiled", "listed"]

LOOKBACK = 1 << 14
"""A match may be this long, and no longer, when it arrives in pieces: this much is searched again."""
KEPT = 1 << 20
"""Unread bytes kept while nobody expects anything; older ones are in the log only. More would not stay in the CPU's
cache, which costs a third of the speed."""


class Search:
    """One ``expect``: looks at what is printed until something matches.

    It does so in the thread that reads the socket: waking another thread for each piece costs more than most
    searches, and Python would not let the two run at the same time.
    """

    def __init__(self, searcher: Any) -> None:
        self.seen = ByteQueue()
        """What it has looked at; after a match what is left of it."""
        self.index = -1
        self._searcher = searcher
        self._is_exact = hasattr(searcher, "longest_string")
        self._lookback: int = searcher.longest_string if self._is_exact else LOOKBACK
        self._window = b""
        self._before = b""
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more is looked for."""
        return self.index >= 0 or self._error is not None

    def feed(self, data: bytes) -> None:
        """Look at the next piece."""
        self.seen.append(data)
        try:
            self._look(data)
        except BaseException as error:  # a regular expression may exhaust the memory: that is the caller's
            self._error = error
        window, searcher = self._window, self._searcher
        if self.index < 0:
            self.seen.trim(KEPT)
            return
        seen = self.seen.join()
        self._before = seen[: len(seen) - (len(window) - searcher.start)]
        self.seen.clear()
        self.seen.append(window[searcher.end :])

    def _look(self, data: bytes) -> None:
        searcher, lookback = self._searcher, self._lookback
        if self._is_exact and len(data) > lookback:
            # Where the pieces meet, then the piece itself: gluing it to what came before would copy it.
            old = self._window[-lookback:]
            seam = old + data[:lookback]
            self.index = searcher.search(seam, len(seam), len(seam))
            if self.index >= 0 and searcher.start < len(old):
                self._window = old + data
                return
            self._window = data
            self.index = searcher.search(data, len(data), len(data))
            return
        # One byte more than is searched, so that ^ does not take the window's edge for the beginning of a line.
        self._window = self._window[-lookback - 1 :] + data
        self.index = searcher.search(self._window, len(data), min(len(self._window), lookback + len(data)))

    def forget(self) -> None:
        """Begin anew with what comes next."""
        self.seen.clear()
        self._window = b""

    def result(self, end: type[Exception] | None) -> tuple[bytes, Any, Any]:
        """Before, after and match, as pexpect has them."""
        if self._error is not None:
            raise self._error
        if end is not None:
            return self.seen.join(), end, None
        searcher = self._searcher
        return self._before, self._window[searcher.start : searcher.end], searcher.match


def listed(item: Any) -> list[Any]:
    """One pattern, or several, as a list."""
    return list(item) if isinstance(item, (list, tuple)) else [item]


def compiled(pattern: Any) -> Any:
    """A pattern as pexpect's searcher takes it: over bytes, and the dot matches newlines."""
    if isinstance(pattern, re.Pattern):
        if isinstance(pattern.pattern, bytes):
            return pattern
        return re.compile(pattern.pattern.encode(), pattern.flags & ~re.UNICODE)
    if not isinstance(pattern, (str, bytes)):
        return pattern
    try:
        return re.compile(pattern.encode() if isinstance(pattern, str) else pattern, re.DOTALL)
    except re.error as error:
        raise UsageError(
            f"{pattern!r} is no regular expression: {error}", hint="expect_exact takes plain text"
        ) from None
