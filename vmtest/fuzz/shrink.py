"""Operations made fewer, and simpler, as long as QEMU ends by them in the same way. The result is always the same for
the same operations, where QEMU does the same each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vmtest.devices.access import Access, Fill, Out, Store, Write

__all__ = ["Shrunk", "shrink"]

NEAR = 256
"""Bytes within which what is stored may be stored at once."""

Same = Callable[[Sequence[Access]], bool]
"""Whether QEMU ends by these operations as it is to."""


class Shrunk(NamedTuple):
    """The ``accesses`` that are left; ``is_cut`` where the last few were tried; ``is_smallest`` where all was."""

    accesses: Sequence[Access]
    is_cut: bool
    is_smallest: bool


def shrink(accesses: Sequence[Access], same: Same, *, seconds: float, begin: int = 0, is_cut: bool = False) -> Shrunk:
    """The fewest operations, with the simplest values, that were found in so many seconds. The first ones, ``begin`` of
    them, are likely to be needed: with these the last few are tried before anything else, where it ``is_cut`` not yet.
    """
    until = time.monotonic() + seconds

    def tried(candidate: Sequence[Access]) -> bool:
        return time.monotonic() < until and same(candidate)

    found, before = list(accesses), None
    if not is_cut:
        found, is_cut = _last(found, begin, tried), time.monotonic() < until
    while found != before:
        before = found
        found = _merged(_fewer(found, tried), tried)
        found = _simpler(found, tried)
    return Shrunk(found, is_cut, time.monotonic() < until)


def _last(accesses: list[Access], begin: int, same: Same) -> list[Access]:
    """The beginning, and as few of the last ones as do."""
    few = 1
    while begin + few < len(accesses):
        if same(less := accesses[:begin] + accesses[-few:]):
            return less
        few *= 4
    return accesses


def _fewer(accesses: list[Access], same: Same) -> list[Access]:
    """Without pieces, the largest first: from the end, since what comes last does less for the rest."""
    size = len(accesses)
    while size:
        for begin in range(len(accesses) - size, -size, -size):
            less = accesses[: max(begin, 0)] + accesses[begin + size :]
            if less and len(less) < len(accesses) and same(less):
                accesses = less
        size //= 2
    return accesses


def _merged(accesses: list[Access], same: Same) -> list[Access]:
    """Stores that follow each other, to places that are near, as one: what is between was never written, and is 0."""
    at = 0
    while at + 1 < len(accesses):
        one, other = accesses[at : at + 2]
        joined = _joined(one, other) if isinstance(one, Store) and isinstance(other, Store) else None
        if joined and same(less := [*accesses[:at], joined, *accesses[at + 2 :]]):
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


def _simpler(accesses: list[Access], same: Same) -> list[Access]:
    at = 0
    while at < len(accesses):
        for other in _simpler_ones(accesses[at]):
            less = [*accesses[:at], other, *accesses[at + 1 :]]
            if same(less):
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
