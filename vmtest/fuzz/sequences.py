"""Sequences of operations on a device: drawn, the same ones for the same seed."""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from vmtest.devices.access import Access, Fill, Flush, In, Out, Read, Store, Write
from vmtest.devices.target import Area, Target

__all__ = ["ARENA", "Avoided", "Drawer"]

ARENA = (0x100000, 0x40000)
"""Where in the guest's memory what devices are to find there is laid: its address, and how many bytes."""
LENGTH = 24, 160
"""Operations of a sequence, at least and at most."""
HOT = 12
"""Registers that a sequence works on, mostly: what one has been told matters to the others."""
EDGES = (0, 1, 2, 3, 4, 7, 8, 0xF, 0x10, 0x20, 0x40, 0x7F, 0x80, 0xFF, 0x100, 0x1000, 0x7FFF, 0x8000, 0xFFFF)
WIDE = (0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFF000)


@dataclass(frozen=True)
class _Register:
    area: Area
    offset: int
    size: int


class Drawer:
    """Draws sequences for a target."""

    def __init__(self, target: Target, seed: int) -> None:
        self._target, self._seed = target, seed

    def draw(self, number: int) -> list[Access]:
        """Sequence ``number``; a target's ``begin`` comes before it."""
        random = Random(f"{self._seed} {number}")
        hot = [self._register(random) for _ in range(random.randint(1, HOT))]
        accesses = self._laid_out(random)
        for _ in range(random.randint(*LENGTH)):
            accesses.append(self._one(random, hot))
        return accesses

    def _one(self, random: Random, hot: Sequence[_Register]) -> Access:
        kind = random.random()
        if kind < 0.12:
            return self._memory(random)
        if kind < 0.14:
            return Flush()
        register = random.choice(hot) if random.random() < 0.8 else self._register(random)
        at, size = register.area.address + register.offset, register.size
        if kind < 0.3:
            return In(at, min(size, 4)) if register.area.is_port else Read(at, size)
        value = self._value(random, size)
        return Out(at, value, size) if register.area.is_port else Write(at, value, size)

    def _register(self, random: Random) -> _Register:
        areas = self._target.areas
        area = random.choices(areas, [_weight(area) for area in areas])[0]
        size = random.choice((1, 2, 4, 4, 4) if area.is_port else (1, 2, 4, 4, 4, 4, 8))
        size = min(size, 1 << area.size.bit_length() - 1)
        # Registers are at the beginning of most: a quarter of the time anywhere.
        reach = area.size if random.random() < 0.25 else min(area.size, random.choice((0x40, 0x100, 0x400, 0x1000)))
        offset = random.randrange(0, max(1, reach - size + 1))
        if random.random() < 0.95:
            offset -= offset % size
        return _Register(area, offset, size)

    def _value(self, random: Random, size: int) -> int:
        kind, bits = random.random(), 8 * size
        if kind < 0.35:
            value = random.choice(EDGES)
        elif kind < 0.45:
            value = 1 << random.randrange(bits)
        elif kind < 0.7 and size >= 4:
            value = self._pointer(random)
        elif kind < 0.8:
            value = random.choice(WIDE)
        else:
            value = random.getrandbits(bits)
        return value % (1 << bits)

    @staticmethod
    def _pointer(random: Random) -> int:
        base, size = ARENA
        return base + (random.randrange(size) & -random.choice((1, 4, 16, 64, 4096, 4096)))

    def _laid_out(self, random: Random) -> list[Access]:
        """The arena as a sequence begins with it: descriptors of no structure in particular."""
        base, size = ARENA
        found: list[Access] = [Fill(base, size, random.choice((0, 0, 0, 0xFF)))]
        found += [self._memory(random) for _ in range(random.randint(0, 8))]
        return found

    def _memory(self, random: Random) -> Access:
        """Words that point into the arena, lengths, flags."""
        words = []
        for _ in range(random.choice((1, 2, 4, 8, 16, 32))):
            size = random.choice((2, 4, 4, 8))
            value = self._pointer(random) if random.random() < 0.4 else self._value(random, size)
            words.append((value % (1 << 8 * size)).to_bytes(size, "little"))
        return Store(self._pointer(random) & ~7, b"".join(words))


class Avoided:
    """Accesses that have ended QEMU by themselves: they would keep it from all else. Where several of the areas of a
    name have, and there are others, these are left alone.
    """

    MOST = 4

    def __init__(self, target: Target) -> None:
        self._areas = sorted(target.areas, key=lambda area: (area.is_port, area.address))
        self._has_others = len({area.name for area in target.areas}) > 1
        self._begins = [(area.is_port, area.address) for area in self._areas]
        self._places: set[tuple[type, int]] = set()
        self._times: Counter[tuple[type, str]] = Counter()

    def add(self, access: Access) -> None:
        """Have its like left out."""
        if (place := _place(access)) is not None:
            self._places.add(place)
            self._times[place[0], self._area(access)] += 1

    def __contains__(self, access: Access) -> bool:
        if not self._places or (place := _place(access)) is None:
            return False
        is_left_alone = self._has_others and self._times[place[0], self._area(access)] >= self.MOST
        return place in self._places or is_left_alone

    def _area(self, access: Access) -> str:
        """The name of the area that it is in."""
        at = access.port if isinstance(access, In | Out) else getattr(access, "address", 0)
        return self._areas[bisect(self._begins, (isinstance(access, In | Out), at)) - 1].name


def _place(access: Access) -> tuple[type, int] | None:
    """Whether it reads or writes, and where; None for what is no register's."""
    match access:
        case Read(address) | Write(address):
            return type(access), address
        case In(port) | Out(port):
            return type(access), port
    return None


def _weight(area: Area) -> float:
    """How often it is chosen: a large area is not so much more than a small one."""
    return float(area.size.bit_length())
