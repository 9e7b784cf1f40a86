"""Sequences of operations on a device: drawn, the same ones for the same seed."""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from vmtest.devices.access import UNSAID, Access, Fill, In, Out, Read, Write
from vmtest.devices.layout import Area, Pen
from vmtest.devices.models import Model, models
from vmtest.devices.target import Target
from vmtest.fuzz.choice import Choice
from vmtest.fuzz.coverage import is_there

__all__ = ["Avoided", "Drawer", "Way"]

LENGTH = 24, 160
"""Operations of a sequence on registers, at least and at most."""
STEPS = 3, 24
"""Steps of a sequence that a model draws."""
KNOWN = 0.75
"""How much is drawn by models, where there are any: the rest finds what these do not know."""
AREAS, HOT = 2, 12
"""Areas, and registers of them, that a sequence works on, mostly: what one has been told matters to the others."""
NEIGHBOURS = 0.4
"""How often these are registers that lie side by side, as those of one function of a device do."""
LIVE = 0.5
"""How often a register that has no neighbours is one that was read, and answered."""
STRAY = 0.04
"""How often a sequence of a model has an access to any register between two of its steps."""
MESSAGES = 0.05
"""How often a sequence has a PCI function interrupt by messages: until the next reset."""
CONFIGURED = 0.01
"""How often an access is one to the configuration space of a PCI function."""


@dataclass(frozen=True)
class _Register:
    area: Area
    offset: int
    size: int


Way = tuple[type[Model] | None, tuple[Area, ...]]
"""How a sequence is drawn: by a model, with the areas of its device; or by none, on an area and what is beside it."""


class Drawer:
    """Draws sequences for a target. ``ways`` are those in which it does, with how often each is to be taken."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._weights = list(accumulate(_weight(area) for area in target.areas))
        known = models(target.areas)
        # Of a whole machine most areas are no model's: it has as much of the time as a few areas.
        named = self._named = {area for _, areas in known for area in areas}
        share = KNOWN * min(1.0, 4 * len(named) / len(target.areas))
        blind = (1 - share) / self._weights[-1]
        self.ways: dict[Way, float] = {(None, (area,)): blind * _weight(area) for area in target.areas}
        self.ways |= {(model, tuple(areas)): share / len(known) for model, areas in known}
        self._choice = Choice(self.ways)
        self._places = _Places(target.areas)
        self._asked = set[In | Read]()
        self._live = dict[Area, list[_Register]]()

    def learn(self, accesses: Iterable[Access], replies: Sequence[object]) -> None:
        """Registers of no model that were read, and answered so: where there is something is drawn more often."""
        if len(self._named) == len(self._target.areas):
            return
        said = (access for access in accesses if not isinstance(access, UNSAID))
        for access, reply in zip(said, replies, strict=False):
            if not isinstance(reply, int) or not is_there(access, reply) or access in self._asked:
                continue
            assert isinstance(access, In | Read)
            at, size = access
            self._asked.add(access)
            if (area := self._places.area(access)) and area not in self._named:
                self._live.setdefault(area, []).append(_Register(area, at - area.address, size))

    def sequence(self, random: Random, way: Way | None = None) -> list[Access]:
        """One that is drawn by ``random``, in some way or in that one; a target's ``begin`` comes before it."""
        pen = Pen(random, self._target.arena, self._target.name)
        model, areas = way or self._choice.one(random)
        if self._target.functions and pen.chance(MESSAGES):
            self._use_messages(pen)
        if model:
            model(pen, areas).run(*STEPS)
            return self._with_strays(pen)
        beside = [*areas, *(self._area(pen) for _ in range(pen.count(1, AREAS) - 1))]
        if pen.chance(NEIGHBOURS):
            hot = _neighbours(pen, areas[0])
        else:
            hot = [self._register(pen, pen.one_of(beside)) for _ in range(pen.count(1, HOT))]
        self._lay_out(pen)
        for _ in range(pen.count(*LENGTH)):
            self._one(pen, hot, beside)
        return pen.accesses

    def _with_strays(self, pen: Pen) -> list[Access]:
        """What was written down, with some more between."""
        roll, drawn, pen.accesses = pen.roll, pen.accesses, []
        for access in drawn:
            pen.accesses.append(access)
            if roll() < STRAY:
                area = self._area(pen)
                self._one(pen, [self._register(pen, area)], [area])
        return pen.accesses

    def _one(self, pen: Pen, hot: Sequence[_Register], areas: Sequence[Area]) -> None:
        kind = pen.roll()
        if kind < CONFIGURED and self._target.functions:
            self._configure(pen)
        elif kind < 0.12:
            _words(pen)
        elif kind < 0.14:
            pen.flush()
        else:
            register = pen.one_of(hot) if pen.chance(0.8) else self._register(pen, pen.one_of(areas))
            if kind < 0.3:
                pen.read(register.area, register.offset, min(register.size, 4 if register.area.is_port else 8))
            else:
                pen.write(register.area, register.offset, pen.value(8 * register.size), register.size)

    def _configure(self, pen: Pen) -> None:
        """The registers of a PCI function itself, or of its capabilities."""
        function = pen.one_of(self._target.functions)
        size = pen.one_of((1, 2, 4))
        offset = pen.count(0, (256 if function.base is None or pen.chance(0.7) else 4096) - size) & -size
        if pen.chance(0.3):
            pen.accesses += function.read(offset, size)
        else:
            pen.accesses += function.write(offset, pen.value(8 * size), size)

    def _use_messages(self, pen: Pen) -> None:
        """Have a device interrupt by messages into the arena: MSI-X, or MSI."""
        function = pen.one_of(self._target.functions)
        for table in (area for area in self._target.areas if area.name == "msix-table"):
            for vector in range(min(4, table.size // 16)):
                for at, value in enumerate((pen.arena[0] + 16 * vector, 0, vector, 0)):
                    pen.write(table, 16 * vector + 4 * at, value)
        for offset, enabled in ((function.msix, 1 << 15), (function.msi, 1)):
            if offset:
                pen.accesses += function.write(offset + 2, enabled, 2)
                return

    def _area(self, pen: Pen) -> Area:
        return self._target.areas[bisect(self._weights, pen.roll() * self._weights[-1])]

    def _register(self, pen: Pen, area: Area) -> _Register:
        if (live := self._live.get(area)) and pen.chance(LIVE):
            found: _Register = pen.one_of(live)
            return found
        size = min(pen.one_of((1, 2, 4, 4, 4) if area.is_port else (1, 2, 4, 4, 4, 4, 8)), _power(area.size))
        # Registers are at the beginning of most: a quarter of the time anywhere.
        reach = area.size if pen.chance(0.25) else min(area.size, pen.one_of((0x40, 0x100, 0x400, 0x1000)))
        offset = pen.count(0, max(0, reach - size))
        if pen.chance(0.95):
            offset -= offset % size
        return _Register(area, offset, size)

    def _lay_out(self, pen: Pen) -> None:
        """The arena as a sequence begins with it: descriptors of no structure in particular."""
        pen.accesses.append(Fill(*pen.arena, pen.one_of((0, 0, 0, 0xFF))))
        for _ in range(pen.count(0, 8)):
            _words(pen)


def _neighbours(pen: Pen, area: Area) -> list[_Register]:
    """Some registers of a size, from the area's beginning on, or from anywhere."""
    size = min(pen.one_of((1, 2, 4) if area.is_port else (1, 4, 4, 4)), _power(area.size))
    most = area.size // size
    number = min(most, pen.one_of((4, 8, 16, 32, 64)))
    first = 0 if pen.chance(0.6) else pen.count(0, most - number)
    return [_Register(area, size * (first + index), size) for index in range(number)]


def _words(pen: Pen) -> None:
    """Words in memory that point into the arena, lengths, flags."""
    roll, words = pen.roll, []
    for _ in range(pen.one_of((1, 2, 4, 8, 16, 32))):
        size = (2, 4, 4, 8)[int(4 * roll())]
        value = pen.address() & (1 << 8 * size) - 1 if roll() < 0.4 else pen.value(8 * size)
        words.append(value.to_bytes(size, "little"))
    base, size = pen.arena
    pen.lay(b"".join(words), at=min(pen.address() & ~7, base + size - 256))


def _power(size: int) -> int:
    """The greatest power of two that is not more."""
    return 1 << size.bit_length() - 1


class _Places:
    """Areas by where they are."""

    def __init__(self, areas: Sequence[Area]) -> None:
        self._areas = sorted(areas, key=lambda area: (area.is_port, area.address))
        self._begins = [(area.is_port, area.address) for area in self._areas]

    def area(self, access: Access) -> Area | None:
        """The one that an access is to; None for others, such as PCI configuration."""
        is_port = isinstance(access, In | Out)
        at = access.port if isinstance(access, In | Out) else getattr(access, "address", 0)
        area = self._areas[bisect(self._begins, (is_port, at)) - 1]
        return area if area.is_port == is_port and area.address <= at < area.address + area.size else None


class Avoided:
    """Accesses that have ended QEMU by themselves: they would keep it from all else. Where several of the areas of a
    name have, and there are others, these are left alone.
    """

    MOST = 4

    def __init__(self, target: Target) -> None:
        self._areas = _Places(target.areas)
        self._has_others = len({area.name for area in target.areas}) > 1
        self._places: set[tuple[type, int]] = set()
        self._times: Counter[tuple[type, str]] = Counter()

    def add(self, access: Access) -> None:
        """Have its like left out."""
        if (place := _place(access)) is not None and (area := self._area(access)):
            self._places.add(place)
            self._times[place[0], area] += 1

    def __contains__(self, access: Access) -> bool:
        if not self._places or (place := _place(access)) is None:
            return False
        is_left_alone = self._has_others and self._times[place[0], self._area(access)] >= self.MOST
        return place in self._places or is_left_alone

    def _area(self, access: Access) -> str:
        """The name of the area that it is in; "" for none, such as PCI configuration."""
        area = self._areas.area(access)
        return area.name if area else ""


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
