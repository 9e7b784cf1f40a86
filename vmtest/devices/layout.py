"""A language for what devices find in memory: structures of fields, flags, constants, and pointers to more of them.

>>> BUFFER = Struct("buffer", pointer("address", 64, to=octets(512)), number("length", 32, 512), constant("end", 32, 1))
>>> pen = Pen(Random(1), (0x100000, 0x10000)); address = pen.lay(BUFFER, length=8)

A structure is drawn: what each of its fields holds is likely to be what a driver would write, and now and then is not.
Drawing lays what it points to into memory as well, as operations of vmtest.devices.access.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

from vmtest.devices.access import Access, ClockStep, Fill, Flush, In, Out, Read, Store, Write
from vmtest.errors import UsageError

__all__ = [
    "Area",
    "Field",
    "Pen",
    "Struct",
    "anything",
    "array",
    "constant",
    "drawn",
    "either",
    "flags",
    "number",
    "octets",
    "pointer",
    "zeros",
]

ODD = 0.03
"""How often a field is not what it should be."""
DEPTH = 5
"""Pointers that are followed from one structure to the next; what is deeper points back."""
EDGES = (0, 1, 2, 3, 4, 7, 8, 0xF, 0x10, 0x20, 0x40, 0x7F, 0x80, 0xFF, 0x100, 0x1000, 0x7FFF, 0x8000, 0xFFFF)
WIDE = (0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFF000)
ALIGNMENTS = (1, 4, 16, 64, 4096, 4096)


@dataclass(frozen=True, kw_only=True)
class Area:
    """Addresses at which a device answers: ports, or memory. ``size`` is in bytes. ``owner`` is the device's QOM path,
    "" where QEMU does not say.
    """

    name: str
    address: int
    size: int
    is_port: bool = False
    owner: str = ""


class Pen:
    """Draws by a ``random`` of the caller's, and writes down ``accesses``. ``arena`` is the guest's memory that is to
    be used: its address, and how many bytes. ``name`` is what is worked on, with its properties. ``roll()`` is a number
    from 0 to 1.
    """

    def __init__(self, random: Random, arena: tuple[int, int], name: str = "") -> None:
        self.random, self.roll = random, random.random
        self.name = name
        self.arena = arena
        self.accesses: list[Access] = []
        self.laid: list[int] = []
        self.depth = 0
        self._next = 0

    def chance(self, probability: float) -> bool:
        """True so often."""
        return self.roll() < probability

    def one_of(self, values: Sequence[Any]) -> Any:
        """One of them, each as likely as the others."""
        return values[int(self.roll() * len(values))]

    def count(self, least: int, most: int) -> int:
        """A whole number between these, both included."""
        return least + int(self.roll() * (most - least + 1))

    def value(self, bits: int) -> int:
        """Any value of so many bits: most often one at the edge of something, or an address."""
        roll = self.roll
        kind = roll()
        if kind < 0.4:
            value = EDGES[int(roll() * len(EDGES))]
        elif kind < 0.5:
            value = 1 << int(roll() * bits)
        elif kind < 0.7 and bits >= 32:
            value = self.address()
        elif kind < 0.8:
            value = WIDE[int(roll() * len(WIDE))]
        else:
            value = self.random.getrandbits(bits)
        return value & (1 << bits) - 1

    def address(self) -> int:
        """Somewhere in the arena: often where something was laid."""
        roll, laid = self.roll, self.laid
        if laid and roll() < 0.4:
            return laid[int(roll() * len(laid))]
        base, size = self.arena
        return base + (int(roll() * size) & -ALIGNMENTS[int(roll() * len(ALIGNMENTS))])

    def room(self, size: int, align: int = 16) -> int:
        """The address of so many bytes of the arena that are in use for nothing else, as long as there are any."""
        base, all_of_it = self.arena
        if size > all_of_it:
            raise UsageError(f"{size:#x} bytes do not fit into {all_of_it:#x}")
        at = -(-(base + self._next) // align) * align
        if at + size > base + all_of_it:
            at = -(-base // align) * align
        self._next = at + size - base
        self.laid.append(at)
        return at

    def lay(self, what: Struct | bytes, align: int = 16, at: int | None = None, **given: int) -> int:
        """Put a structure, of which fields may be ``given`` by name, or bytes into memory; returns the address."""
        if isinstance(what, Struct):
            self.depth += 1
            data = what.draw(self, **given)
            self.depth -= 1
        else:
            data = what
        place = self.room(max(len(data), 1), align) if at is None else at
        if data.count(0) == len(data):
            self.accesses.append(Fill(place, max(len(data), 1), 0))
        else:
            self.accesses.append(Store(place, data))
        return place

    def flush(self) -> None:
        """Let QEMU's main loop run: what is done later is done then."""
        self.accesses.append(Flush())

    def wait(self, ns: int) -> None:
        """Let so many nanoseconds pass."""
        self.accesses.append(ClockStep(ns))

    def write(self, area: Area, offset: int, value: int, size: int = 4) -> None:
        """A register. What is beyond the area's end is left out."""
        if 0 <= offset <= area.size - size:
            kind, value = (Out if area.is_port else Write), value & (1 << 8 * size) - 1
            self.accesses.append(kind(area.address + offset, value, size))

    def read(self, area: Area, offset: int, size: int = 4) -> None:
        """A register."""
        if 0 <= offset <= area.size - size:
            self.accesses.append((In if area.is_port else Read)(area.address + offset, size))


@dataclass(frozen=True)
class Field:
    """``bits`` of a structure, and what draws them."""

    name: str
    bits: int
    draw: Callable[[Pen], int]


class Struct:
    """Fields one behind the other, the first one in the lowest bits, little-endian. ``name`` is its specification's.

    Raises UsageError where the fields are not a whole number of bytes.
    """

    def __init__(self, name: str, *fields: Field) -> None:
        self.name, self.fields = name, fields
        self.bits = sum(field.bits for field in fields)
        if self.bits % 8:
            raise UsageError(f"{name} has {self.bits} bits, which are not whole bytes")
        names = [field.name for field in fields if field.name]
        if len(set(names)) < len(names):
            raise UsageError(f"{name} has two fields of a name")
        self._names = frozenset(names)
        begins = accumulate((field.bits for field in fields), initial=0)
        self._plan = [
            (field.name, field.draw, (1 << field.bits) - 1, at)
            for field, at in zip(fields, begins, strict=False)
            if field.draw is not _zero
        ]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.bits // 8

    def draw(self, pen: Pen, **given: int) -> bytes:
        """Its bytes. Raises UsageError for a field that it has not."""
        if given and (unknown := given.keys() - self._names):
            raise UsageError(f"{self.name} has no field {min(unknown)!r}", hint=f"it has: {', '.join(self._names)}")
        value = 0
        if given:
            for name, draw, mask, at in self._plan:
                value |= ((given[name] if name in given else draw(pen)) & mask) << at
        else:
            for _, draw, mask, at in self._plan:
                value |= (draw(pen) & mask) << at
        return value.to_bytes(self.bits // 8, "little")


def constant(name: str, bits: int, value: int) -> Field:
    """What is always the same, but when it is not."""
    return Field(name, bits, lambda pen: value if pen.roll() >= ODD else pen.value(bits))


def number(name: str, bits: int, *likely: int) -> Field:
    """One of the ``likely`` values, but when it is not; without these anything, and often an edge."""
    if not likely:
        return anything(name, bits)
    often, times = 2 * ODD, len(likely)
    return Field(name, bits, lambda pen: likely[int(pen.roll() * times)] if pen.roll() >= often else pen.value(bits))


def anything(name: str, bits: int) -> Field:
    """Any value: see Pen.value."""
    return Field(name, bits, lambda pen: pen.value(bits))


def zeros(bits: int) -> Field:
    """What is reserved, and always clear."""
    return Field("", bits, _zero)


def _zero(pen: Pen) -> int:
    return 0


def drawn(name: str, bits: int, draw: Callable[[Pen], int]) -> Field:
    """What a function draws."""
    return Field(name, bits, draw)


def flags(name: str, bits: int, **likely: int) -> Field:
    """Bits by their names, with how likely each is to be set, in percent: ``flags("control", 8, go=80, _=0, irq=50)``.

    A name counts for one bit, the first one for the lowest; a name ``gapN`` for N bits that are clear.
    """
    at, known = 0, list[tuple[int, float]]()
    for word, percent in likely.items():
        if word.startswith("gap") and word[3:].partition("_")[0].isdigit():
            at += int(word[3:].partition("_")[0])
            continue
        known.append((1 << at, percent / 100))
        at += 1
    if at > bits:
        raise UsageError(f"{name} has {bits} bits, and {at} were named")

    def draw(pen: Pen) -> int:
        if pen.roll() < ODD:
            return pen.value(bits)
        chance, value = pen.roll, 0
        for bit, probability in known:
            if chance() < probability:
                value |= bit
        return value

    return Field(name, bits, draw)


def pointer(
    name: str,
    bits: int,
    to: Struct | Callable[[Pen], int] | Callable[[], Struct],
    *,
    align: int = 16,
    shift: int = 0,
    null: float = 0.05,
    plus: Sequence[int] = (0,),
) -> Field:
    """The address of ``to``, which is laid out; a structure that is not defined yet is given as a function of nothing.

    Where the field holds less than the address, that is shifted to the right by ``shift``. With a probability of
    ``null`` it is 0. One of ``plus`` is added: flags in the low bits.
    """

    def draw(pen: Pen) -> int:
        kind = pen.roll()
        if kind < null:
            return 0
        if kind < null + ODD:
            return pen.value(bits)
        if pen.laid and (pen.depth >= DEPTH or kind > 0.85):
            at = int(pen.one_of(pen.laid))
        elif isinstance(to, Struct):
            at = pen.lay(to, align)
        else:
            at = _followed(to, pen, align)
        return (at >> shift) + (plus[0] if len(plus) == 1 else pen.one_of(plus))

    return Field(name, bits, draw)


def _followed(to: Callable[..., Any], pen: Pen, align: int) -> int:
    made = to(pen) if to.__code__.co_argcount else to()
    return pen.lay(made, align) if isinstance(made, Struct) else int(made)


def octets(size: int, *likely: bytes) -> Callable[[Pen], int]:
    """For a pointer to: room for so many bytes, of which the first are now and then some of the ``likely``, or are
    drawn.
    """

    def lay(pen: Pen) -> int:
        at = pen.room(size)
        if likely and pen.chance(0.8):
            pen.lay(pen.one_of(likely)[:size], at=at)
        elif pen.chance(0.3):
            pen.lay(pen.random.randbytes(min(size, 32)), at=at)
        return at

    return lay


def array(name: str, of: Struct, times: int, least: int = 0) -> Field:
    """``times`` structures, of which all behind a drawn number, ``least`` at least, are zeros."""

    def draw(pen: Pen) -> int:
        used = pen.count(least, times)
        return int.from_bytes(b"".join(of.draw(pen) for _ in range(used)), "little")

    return Field(name, of.bits * times, draw)


def either(name: str, *several: Struct) -> Field:
    """One of several structures, in the room that the largest needs."""

    def draw(pen: Pen) -> int:
        return int.from_bytes(pen.one_of(several).draw(pen), "little")

    return Field(name, max(one.bits for one in several), draw)
