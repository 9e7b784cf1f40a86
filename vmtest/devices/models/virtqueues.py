"""Virtqueues in memory (Virtual I/O Device 1.2, 2.7 and 2.8)."""

from __future__ import annotations

from vmtest.devices.layout import Pen

__all__ = ["WRITE", "Queue"]

NEXT, WRITE, INDIRECT, AVAILABLE, USED = 1, 2, 4, 1 << 7, 1 << 15


class Queue:
    """A virtqueue in memory: split (2.7) or packed (2.8). A ``legacy`` one has all its parts side by side (2.7.2)."""

    def __init__(self, pen: Pen, size: int, *, packed: bool, legacy: bool) -> None:
        self.pen, self.size, self.packed = pen, size, packed
        behind = 6 + 2 * size
        self.table = pen.room(16 * size + behind if legacy else 16 * size, 4096 if legacy else 16)
        pen.lay(bytes(16 * size), at=self.table)
        self.available = self.table + 16 * size if legacy else pen.room(behind, 2)
        self.used = pen.room(6 + 8 * size, 4096 if legacy else 4)
        self.next, self.index, self.wrapped = 0, 0, False
        pen.lay(bytes(behind), at=self.available)

    def add(self, pieces: list[tuple[int, int, int]]) -> None:
        """Make a chain available: of (address, length, flags)."""
        (self._add_packed if self.packed else self._add_split)(
            self._indirect(pieces) if self.pen.chance(0.15) else pieces
        )

    def _indirect(self, pieces: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        last = len(pieces) - 1
        table = b"".join(
            _words((address, 8), (length, 4), (flags | (NEXT if at < last else 0), 2), (at + 1 if at < last else 0, 2))
            for at, (address, length, flags) in enumerate(pieces)
        )
        length = len(table) if self.pen.chance(0.9) else self.pen.value(32)
        return [(self.pen.lay(table), length, INDIRECT)]

    def _add_split(self, pieces: list[tuple[int, int, int]]) -> None:
        pen, head, last = self.pen, self.next, len(pieces) - 1
        for at, (address, length, flags) in enumerate(pieces):
            index = (head + at) % self.size
            following = (index + 1) % self.size if pen.chance(0.97) else pen.value(16)
            more = NEXT if at < last or pen.chance(0.02) else 0
            pen.lay(_words((address, 8), (length, 4), (flags | more, 2), (following, 2)), at=self.table + 16 * index)
        self.next = (head + len(pieces)) % self.size
        head = head if pen.chance(0.97) else pen.value(16)
        pen.lay(_words((head, 2)), at=self.available + 4 + 2 * (self.index % self.size))
        self.index = self.index + 1 & 0xFFFF
        pen.lay(_words((0, 2), (self.index, 2)), at=self.available)

    def _add_packed(self, pieces: list[tuple[int, int, int]]) -> None:
        pen, last = self.pen, len(pieces) - 1
        for at, (address, length, flags) in enumerate(pieces):
            more = NEXT if at < last or pen.chance(0.02) else 0
            turn = USED if self.wrapped else AVAILABLE
            data = _words((address, 8), (length, 4), (at, 2), (flags | more | turn, 2))
            pen.lay(data, at=self.table + 16 * self.next)
            self.next += 1
            if self.next >= self.size:
                self.next, self.wrapped = 0, not self.wrapped

    def jump(self) -> None:
        """Say that more, or less, is available than is."""
        if self.packed:
            self.pen.lay(_words((self.pen.value(16), 2), (self.pen.one_of((0, 1, 2, 3)), 2)), at=self.available)
        else:
            self.index = (
                self.pen.one_of((self.index + self.size, self.index + self.size + 1, self.index - 1, 0xFFFF)) & 0xFFFF
            )
            self.pen.lay(_words((self.pen.one_of((0, 1)), 2), (self.index, 2)), at=self.available)


def _words(*pairs: tuple[int, int]) -> bytes:
    """Numbers, each of so many bytes, one behind the other."""
    return b"".join((value & (1 << 8 * size) - 1).to_bytes(size, "little") for value, size in pairs)
