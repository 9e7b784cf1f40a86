"""What is new in what QEMU tells of a sequence: the coverage of a binary that was not built for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from vmtest.devices.access import UNSAID, Access, In, Read
from vmtest.devices.events import OWN

__all__ = ["Coverage", "is_there"]

SPARSE = 12
"""Kinds of events: where there are fewer the values count that registers return, but for what nothing returns."""
MACHINES = (b"Invalid", b"Attempted")
"""How guests' errors begin that are of each machine, and of no device."""
LEARNING = 64
"""Sequences until that is known."""
LOUD = 1_000
"""Lines of an event in one sequence: one for each byte that is moved is no news."""
REMEMBERED = 100_000
"""Lines, and words, whose meaning is kept."""


class Coverage:
    """``kinds`` are the names of events that were seen; ``features`` counts all that was ever new."""

    def __init__(self) -> None:
        self.kinds: set[bytes] = set()
        self._seen: set[object] = set()
        self._pairs: set[int] = set()
        self._lines: dict[bytes, int] = {}
        self._sizes: dict[bytes, bytes] = {}
        self._numbers: dict[bytes, int] = {}
        self._sequences = 0

    @staticmethod
    def loud(lines: Sequence[bytes]) -> set[str]:
        """The events that tell so much of a sequence that they cost more than they are worth."""
        if len(lines) < LOUD:
            return set()
        times = Counter(line.partition(b" ")[0].rstrip(b":") for line in lines)
        return {kind.decode(errors="replace") for kind, often in times.items() if often >= LOUD}

    @property
    def features(self) -> int:
        """How many."""
        return len(self._seen) + len(self._pairs)

    def new(self, lines: Iterable[bytes], accesses: Sequence[Access], replies: Sequence[object]) -> int:
        """How much a sequence, which was told in these lines and answered so, has of what none had before: events with
        what their numbers are about, and pairs of events that follow each other, whatever their numbers are. (With
        those of both nearly every sequence would be new for ever, and what is kept no better than what is drawn.)
        """
        self._sequences += 1
        before, known, pairs, last = self.features, self._lines, self._pairs, 0
        for line in lines:
            kind = known.get(line)
            if kind is None:
                kind = self._kind(line)
            if kind:
                pairs.add(last | kind)
                last = kind << 24
        if self._sequences > LEARNING and len(self.kinds) < SPARSE:
            answered = (access for access in accesses if not isinstance(access, UNSAID))
            for access, reply in zip(answered, replies, strict=False):
                if isinstance(reply, int) and is_there(access, reply):
                    self._seen.add((access, reply.bit_length()))
        return self.features - before

    def _kind(self, line: bytes) -> int:
        """A number for its event, 0 for those of each machine. Seen is the line, and with it all that differ from it in
        numbers of about the same size alone.
        """
        if len(self._lines) > REMEMBERED:
            self._lines.clear()
        words = line.split(b" ")
        kind = self._numbers.get(words[0])
        if kind is None:
            kind = self._number(words[0])
        if kind:
            sizes = tuple(map(self._sizes.get, words))
            self._seen.add(sizes if None not in sizes else tuple(map(self._size, words)))
        self._lines[line] = kind
        return kind

    def _number(self, name: bytes) -> int:
        """Of an event that was not seen before."""
        if name.startswith(OWN) or name in MACHINES:
            number = 0
        else:
            self.kinds.add(name)
            number = len(self.kinds)
        self._numbers[name] = number
        return number

    def _size(self, word: bytes) -> bytes:
        """What is left of a word."""
        if len(self._sizes) > REMEMBERED:
            self._sizes.clear()
        if (size := self._sizes.get(word)) is None:
            self._sizes[word] = size = _NUMBER.sub(_number_size, word)
        return size


def is_there(access: Access, reply: int) -> bool:
    """Whether what was read says that there is something: nothing has no bits, or all."""
    return isinstance(access, In | Read) and 0 < reply < (1 << 8 * access.size) - 1


_NUMBER = re.compile(rb"(0x[0-9a-fA-F]+|\b[0-9]+\b)")


def _number_size(found: re.Match[bytes]) -> bytes:
    """What is left of a number: small ones are what they are, of others the bits; addresses of QEMU's own are none."""
    number = found[0]
    value = int(number, 16 if number.startswith(b"0x") else 10)
    if value < 4:
        return number[-1:]
    bits = value.bit_length()
    return b"@" if bits > 40 else b"#%d" % bits
