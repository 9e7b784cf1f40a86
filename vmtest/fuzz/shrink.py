"""Operations made fewer, and simpler, as long as QEMU ends by them in the same way. The result is always the same for
the same operations, where QEMU does the same each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import combinations

from vmtest.devices.access import Access, Fill, Out, Store, Write

__all__ = ["Shrinking"]

NEAR = 256
"""Bytes within which what is stored may be stored at once."""
FEW = 32
"""Operations of which each two are left out: of more that takes too long."""

Same = Callable[[Sequence[Access]], bool]
"""Whether QEMU ends by these operations as it is to."""
Steps = Generator[Sequence[Access], bool, list[Access]]
"""Yields what is to be tried, is sent whether QEMU ends by it as it is to, and returns what is left."""


class Shrinking:
    """Operations that are made smaller, now and then for a while: ``accesses`` are those that are left, and it
    ``is_over`` where there is nothing more to be tried.
    """

    def __init__(self, accesses: Sequence[Access], begin: int = 0) -> None:
        """The first ones, ``begin`` of them, are likely to be needed: with these the last few are tried first."""
        self.accesses = accesses
        self._steps = _smallest(list(accesses), begin)
        self._candidate = next(self._steps, None)

    @property
    def is_over(self) -> bool:
        """See the class."""
        return self._candidate is None

    def go_on(self, same: Same, *, seconds: float) -> None:
        """For so many seconds."""
        until = time.monotonic() + seconds
        while self._candidate is not None and time.monotonic() < until:
            if is_same := same(self._candidate):
                self.accesses = self._candidate
            try:
                self._candidate = self._steps.send(is_same)
            except StopIteration:
                self._candidate = None


def _smallest(found: list[Access], begin: int) -> Steps:
    found, before = (yield from _last(found, begin)), None
    while found != before:
        before = found
        found = yield from _fewer(found)
        found = yield from _merged(found)
        found = yield from _simpler(found)
        if found == before:
            found = yield from _without_two(found)
    return found


def _last(accesses: list[Access], begin: int) -> Steps:
    """The beginning, and as few of the last ones as do."""
    few = 1
    while begin + few < len(accesses):
        if (yield (less := accesses[:begin] + accesses[-few:])):
            return less
        few *= 4
    return accesses


def _fewer(accesses: list[Access]) -> Steps:
    """Without pieces, the largest first: from the end, since what comes last does less for the rest."""
    size = len(accesses)
    while size:
        for begin in range(len(accesses) - size, -size, -size):
            less = accesses[: max(begin, 0)] + accesses[begin + size :]
            if less and len(less) < len(accesses) and (yield less):
                accesses = less
        size //= 2
    return accesses


def _without_two(accesses: list[Access]) -> Steps:
    """Without two that do nothing together, such as what is switched on and off again."""
    if len(accesses) <= FEW:
        for one, other in combinations(range(len(accesses)), 2):
            less = accesses[:one] + accesses[one + 1 : other] + accesses[other + 1 :]
            if less and (yield less):
                return less
    return accesses


def _merged(accesses: list[Access]) -> Steps:
    """Stores that follow each other, to places that are near, as one: what is between was never written, and is 0."""
    at = 0
    while at + 1 < len(accesses):
        one, other = accesses[at : at + 2]
        joined = _joined(one, other) if isinstance(one, Store) and isinstance(other, Store) else None
        if joined and (yield (less := [*accesses[:at], joined, *accesses[at + 2 :]])):
            accesses = less
        else:
            at += 1
    return accesses


def _joined(one: Store, other: Store) -> Store | None:
    first = min(one.address, other.address)
    size = max(one.address + len(one.data), other.address + len(other.data)) - first
    if size > NEAR:
        return None
    data = bytearray(size)
    for store in (one, other):
        data[store.address - first : store.address - first + len(store.data)] = store.data
    return Store(first, bytes(data))


def _simpler(accesses: list[Access]) -> Steps:
    at = 0
    while at < len(accesses):
        for other in _simpler_ones(accesses[at]):
            less = [*accesses[:at], other, *accesses[at + 1 :]]
            if (yield less):
                accesses = less
                break
        else:
            at += 1
    return accesses


def _simpler_ones(access: Access) -> Iterator[Access]:
    """Each is simpler than the one that is given, the simplest first."""
    match access:
        case Write(address, value, size):
            yield from (Write(address, less, size) for less in _smaller(value))
        case Out(port, value, size):
            yield from (Out(port, less, size) for less in _smaller(value))
        case Store(address, data):
            half = len(data) // 2
            if half:
                yield Store(address, data[:half])
                yield Store(address + half, data[half:])
                yield Store(address, data[:-1])
                yield Store(address + 1, data[1:])
            yield from (Store(address, data[:k] + b"\0" + data[k + 1 :]) for k in range(len(data)) if data[k])
        case Fill(address, length, byte) if byte:
            yield Fill(address, length, 0)


def _smaller(value: int) -> Iterator[int]:
    """Fewer bits."""
    tried = [0, 1, *(value & (1 << bits) - 1 for bits in (8, 16, 32) if value >> bits)]
    tried += [value & ~(0xFF << at) for at in range(0, value.bit_length(), 8)]
    tried += (
        [value & ~(1 << at) for at in range(value.bit_length()) if value >> at & 1] if value.bit_count() < 9 else []
    )
    yield from (less for less in dict.fromkeys(tried) if less < value)
