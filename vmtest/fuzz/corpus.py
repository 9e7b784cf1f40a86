"""Sequences that have shown something new, and others made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from vmtest.devices.access import Access, Out, Store, Write
from vmtest.devices.layout import Pen

__all__ = ["Corpus"]

LONGEST = 250
"""Operations of a sequence: what comes later is cut off."""
RECENT = 32
"""Of the sequences that came last half of those that are worked on are taken."""
MOST = 5_000
"""Sequences that are kept: of more the oldest are forgotten."""


class Corpus:
    """``arena`` is as of a Target. ``fresh`` draws a sequence of which some may be put into another."""

    def __init__(self, arena: tuple[int, int], fresh: Callable[[Random], list[Access]]) -> None:
        self._arena, self._fresh = arena, fresh
        self._kept: list[Sequence[Access]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, accesses: Sequence[Access]) -> None:
        """Keep one."""
        self._kept.append(tuple(accesses[:LONGEST]))
        if len(self._kept) > MOST:
            del self._kept[: MOST // 10]

    def sequence(self, random: Random) -> list[Access]:
        """One that is kept, changed in some ways."""
        pen = Pen(random, self._arena)
        found = list(self._one(pen))
        for _ in range(pen.one_of((1, 1, 2, 3, 5))):
            found = pen.one_of(_CHANGES)(self, found, pen) or found
        return found[:LONGEST]

    def _one(self, pen: Pen) -> Sequence[Access]:
        last = self._kept[-RECENT:] if pen.chance(0.5) else self._kept
        chosen: Sequence[Access] = pen.one_of(last)
        return chosen

    # -- changes -----------------------------------------------------------------------------------------------------

    def _joined(self, found: list[Access], pen: Pen) -> list[Access]:
        """Its beginning, and the end of another one."""
        other = self._one(pen)
        return [*found[: pen.count(0, len(found))], *other[pen.count(0, len(other)) :]]

    def _inserted(self, found: list[Access], pen: Pen) -> list[Access]:
        """Operations of one that is drawn now."""
        drawn, at = self._fresh(pen.random), pen.count(0, len(found))
        begin = pen.count(0, len(drawn))
        return [*found[:at], *drawn[begin : begin + pen.count(1, 24)], *found[at:]]

    def _without(self, found: list[Access], pen: Pen) -> list[Access]:
        """Less some of its operations."""
        begin = pen.count(0, len(found))
        return found[:begin] + found[begin + pen.count(1, 8) :]

    def _repeated(self, found: list[Access], pen: Pen) -> list[Access]:
        """Some of its operations once more, there or at the end."""
        begin = pen.count(0, len(found))
        end = begin + pen.count(1, 8)
        at = end if pen.chance(0.5) else len(found)
        return found[:at] + found[begin:end] + found[at:]

    def _moved(self, found: list[Access], pen: Pen) -> list[Access]:
        """An operation earlier or later."""
        if found:
            access = found.pop(pen.count(0, len(found) - 1))
            found.insert(pen.count(0, len(found)), access)
        return found

    def _changed(self, found: list[Access], pen: Pen) -> list[Access]:
        """Other values, here and there."""
        for _ in range(pen.count(1, 4)):
            if found:
                at = pen.count(0, len(found) - 1)
                found[at] = _other(found[at], pen)
        return found


_CHANGES = (
    Corpus._joined,
    Corpus._inserted,
    Corpus._without,
    Corpus._repeated,
    Corpus._moved,
    Corpus._changed,
    Corpus._changed,
)


def _other(access: Access, pen: Pen) -> Access:
    match access:
        case Write(address, value, size):
            return Write(address, _near(value, 8 * size, pen), size)
        case Out(port, value, size):
            return Out(port, _near(value, 8 * size, pen), size)
        case Store(address, data):
            size = min(pen.one_of((1, 2, 4, 8)), len(data))
            at = pen.count(0, len(data) - size) & -size
            value = _near(int.from_bytes(data[at : at + size], "little"), 8 * size, pen)
            return Store(address, data[:at] + value.to_bytes(size, "little") + data[at + size :])
    return access


def _near(value: int, bits: int, pen: Pen) -> int:
    """One bit less or more, one more or less, or any other."""
    kind = pen.roll()
    if kind < 0.4:
        other = value ^ 1 << pen.count(0, bits - 1)
    elif kind < 0.6:
        other = value + pen.one_of((-1, 1, -8, 8, 0x1000))
    else:
        other = pen.value(bits)
    return other & (1 << bits) - 1
