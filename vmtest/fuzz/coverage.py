"""What is new in what QEMU tells of a sequence: the coverage of a binary that was not built for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from vmtest.devices.access import Access, Flush, In, Read

__all__ = ["Coverage"]

SPARSE = 12
"""Kinds of events: where there are fewer the values count that registers return."""
MACHINES = (b"Invalid ", b"Attempted ")
"""How guests' errors begin that are of each machine, and of no device."""
LEARNING = 64
"""Sequences until that is known."""
LOUD = 1_000
"""Lines of an event in one sequence: one for each byte that is moved is no news."""
REMEMBERED = 100_000
"""Lines whose meaning is kept."""


class Coverage:
    """``kinds`` are the names of events that were seen; ``features`` counts all that was ever new."""

    def __init__(self) -> None:
        self.kinds: set[bytes] = set()
        self._seen: set[object] = set()
        self._lines: dict[bytes, tuple[int, int]] = {}
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
        return len(self._seen)

    def new(self, lines: Iterable[bytes], accesses: Sequence[Access], replies: Sequence[object]) -> int:
        """How much a sequence, which was told in these lines and answered so, has of what none had before: events with
        what their numbers are about, and pairs of events that follow each other, whatever their numbers are. (With
        those of both nearly every sequence would be new for ever, and what is kept no better than what is drawn.)
        """
        self._sequences += 1
        before, seen, last = len(self._seen), self._seen, 0
        meanings = self._lines
        for line in lines:
            meaning, kind = meanings.get(line) or self._meaning(line)
            if meaning:
                seen.add(meaning)
                seen.add(~(last << 24 | kind))
                last = kind
        if self._sequences > LEARNING and len(self.kinds) < SPARSE:
            answered = (access for access in accesses if not isinstance(access, Flush))
            for access, reply in zip(answered, replies, strict=False):
                if isinstance(access, In | Read) and isinstance(reply, int):
                    seen.add((access, reply.bit_length()))
        return len(seen) - before

    def _meaning(self, line: bytes) -> tuple[int, int]:
        """A number for the line and all that differ from it in numbers of about the same size alone, and one for all of
        its event; 0 for those of each machine.
        """
        if len(self._lines) > REMEMBERED:
            self._lines.clear()
        found = 0, 0
        if not line.startswith(MACHINES):
            name = line.partition(b" ")[0]
            self.kinds.add(name)
            found = self._number(_NUMBER.sub(_size, line)), self._number(b"event " + name)
        self._lines[line] = found
        return found

    def _number(self, of: bytes) -> int:
        return self._numbers.setdefault(of, len(self._numbers) + 1)


_NUMBER = re.compile(rb"0x([0-9a-fA-F]+)|\b([0-9]+)\b")


def _size(found: re.Match[bytes]) -> bytes:
    """What is left of a number: small ones are what they are, of others the bits; addresses of QEMU's own are none."""
    value = int(found[1], 16) if found[1] else int(found[2])
    if value < 4:
        return found[0][-1:]
    bits = value.bit_length()
    return b"@" if bits > 40 else b"#%d" % bits
