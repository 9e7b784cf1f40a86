"""Sequences of operations, as they are drawn and made smaller: without a QEMU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random

from vmtest.devices.access import MOST, Access, Fill, Flush, In, Out, Read, Store, Write, encode
from vmtest.devices.board import Board
from vmtest.devices.layout import Area
from vmtest.devices.pci import Function
from vmtest.devices.target import Target
from vmtest.fuzz.sequences import Avoided, Drawer
from vmtest.fuzz.shrink import Shrinking
from vmtest.fuzz.smaller import NEAR, cleared

AREAS = (
    Area(name="a", address=0xE0000000, size=0x1000),
    Area(name="b", address=0xC000, size=0x3, is_port=True),
    Area(name="c", address=0x10, size=1),
)
ARENA = (0x100000, 0x40000)
TARGET = Target(name="x", board=Board(arguments=()), areas=AREAS, arena=ARENA)


def test_registers_that_answer_are_drawn_more_often() -> None:
    """What was read, and was neither nothing nor all bits, is drawn for many of its area's registers, whatever
    has no answer before it.
    """
    area = Area(name="regs", address=0x1000, size=0x1000)
    other = Area(name="ports", address=0x1000, size=0x100, is_port=True)
    drawer = Drawer(Target(name="nic", board=Board(arguments=()), areas=[area, other], arena=ARENA))

    def share(access: Read | In) -> float:
        drawn = [drawer.sequence(Random(number), (None, (area,))) for number in range(200)]
        several = [one for sequence in drawn for one in sequence if isinstance(one, type(access))]
        return several.count(access) / len(several)

    there = Read(0x1F38, 4)
    assert share(there) < 0.02
    drawer.learn((Flush(), Read(0x1010, 4), Write(0x1F38, 1, 4), Read(0x1020, 2), In(0x1030, 1)), (0, None, 0xFFFF, 0))
    assert share(there) < 0.02
    drawer.learn((Flush(), there, Write(0x1F00, 1, 4), In(0x1040, 1)), (0x80, None, 3))
    assert 0.2 < share(there) < 0.6
    assert share(In(0x1040, 1)) > 0.2


def test_the_same_seed_draws_the_same() -> None:
    """A sequence goes by what it is drawn by alone, whatever was drawn before it."""
    one, other = Drawer(TARGET), Drawer(TARGET)
    first = [one.sequence(Random(number)) for number in range(50)]
    assert [other.sequence(Random(number)) for number in reversed(range(50))] == first[::-1]
    assert first[1] != first[0]


def test_what_is_drawn_can_be_said() -> None:
    """All operations are ones that QEMU takes, within the areas, or in the guest's memory where devices look for it."""
    begin, size = ARENA
    reached = set()
    for number in range(300):
        for access in Drawer(TARGET).sequence(Random(number)):
            encode(access)
            at = getattr(access, "address", getattr(access, "port", None))
            if at is None:
                assert isinstance(access, Flush)
                continue
            within = [area for area in AREAS if area.address <= at < area.address + area.size]
            length = getattr(access, "size", 0) or 1
            assert within or begin <= at < begin + size
            assert all(at + length <= area.address + area.size for area in within)
            reached |= {area.name for area in within}
    assert reached == {"a", "b", "c"}


def test_what_ends_qemu_at_once_is_left_out() -> None:
    """The same access is not made again; after some of an area none of it, where there are others; reading goes on."""
    avoided = Avoided(TARGET)
    assert Write(0xE0000000, 1, 4) not in avoided
    for number in range(3):
        avoided.add(Write(0xE0000000 + 8 * number, number, 4))
    assert Write(0xE0000008, 77, 4) in avoided
    assert Write(0xE0000100, 1, 4) not in avoided
    avoided.add(Write(0xE0000040, 1, 1))
    assert Write(0xE0000100, 1, 4) in avoided
    assert Read(0xE0000100, 4) not in avoided
    assert Out(0xC000, 1, 1) not in avoided
    assert Store(0x100000, b"a") not in avoided
    alone = Avoided(Target(name="x", board=Board(arguments=()), areas=AREAS[:1], arena=ARENA))
    for number in range(10):
        alone.add(Write(0xE0000000 + 8 * number, number, 4))
    assert Write(0xE0000100, 1, 4) not in alone


def test_fewest_and_simplest() -> None:
    """Of what a crash needs nothing goes, and all else does: operations, bits, bytes."""
    needed = [Write(0x10, 0xFF, 4), Store(0x1000, b"\1\2\3\4\5\6\7\x08"), Out(0x80, 3, 1)]
    noise = [Write(0x20 + number, number, 4) for number in range(200)]
    accesses: list[Access] = [*noise[:50], needed[0], *noise[50:120], needed[1], Flush(), needed[2], *noise[120:]]

    def same(several: Sequence[Access]) -> bool:
        register = any(isinstance(one, Write) and one.address == 0x10 and one.value & 8 for one in several)
        memory = any(isinstance(one, Store) and b"\5" in one.data for one in several)
        return register and memory and any(isinstance(one, Out) for one in several)

    small = [Write(0x10, 8, 4), Store(0x1004, b"\5"), Out(0x80, 0, 1)]
    assert smallest(accesses, same) == small
    assert smallest(small, same) == small


def smallest(accesses: list[Access], same: Callable[[Sequence[Access]], bool], begin: int = 0) -> Sequence[Access]:
    """What is left when all was tried."""
    shrinking = Shrinking(accesses, begin)
    shrinking.go_on(same, seconds=60)
    assert shrinking.is_over
    return shrinking.accesses


def test_shrinking_goes_on_where_it_was() -> None:
    """What was broken off comes to the same, and nothing is tried twice for that."""
    accesses: list[Access] = [Write(8 * number, 3, 4) for number in range(40)]
    tried: list[Sequence[Access]] = []

    def same(several: Sequence[Access]) -> bool:
        tried.append(several)
        return {accesses[7], accesses[30]} <= set(several)

    at_once = smallest(accesses, same), tried[:]
    tried.clear()
    shrinking = Shrinking(accesses)
    while not shrinking.is_over:
        before = len(tried)

        def once(several: Sequence[Access], before: int = before) -> bool:
            if len(tried) > before:
                raise TimeoutError
            return same(several)

        with suppress(TimeoutError):
            shrinking.go_on(once, seconds=60)
    assert (shrinking.accesses, tried) == at_once


def test_what_does_nothing_together_is_left_out_together() -> None:
    """Two that are far apart, and of which neither can be left out alone, are both left out."""
    on, off = Write(0x10, 1, 4), Write(0x10, 0, 4)
    accesses: list[Access] = [Out(0x80, 1, 1), on, Out(0x84, 1, 1), Out(0x88, 1, 1), off, Out(0x8C, 1, 1)]
    ports = [one for one in accesses if isinstance(one, Out)]

    def same(several: Sequence[Access]) -> bool:
        switched = [one for one in several if isinstance(one, Write)]
        return [one for one in several if isinstance(one, Out)] == ports and switched in ([], [on, off])

    assert smallest(accesses, same) == ports


def test_what_is_stored_side_by_side_is_stored_at_once() -> None:
    """Stores that are all needed become one, the later one of two that overlap wins, and what is far stays apart."""
    stores: list[Access] = [Store(0x100, b"\1\2\3"), Store(0x108, b"\4"), Store(0x102, b"\5"), Store(0x1000, b"\6")]

    def memory(several: Sequence[Access]) -> dict[int, int]:
        found: dict[int, int] = {}
        for one in several:
            assert isinstance(one, Store)
            found |= {one.address + index: octet for index, octet in enumerate(one.data)}
        return {address: octet for address, octet in found.items() if octet}

    assert smallest(stores, lambda several: memory(several) == memory(stores)) == [
        Store(0x100, b"\1\2\5\0\0\0\0\0\4"),
        Store(0x1000, b"\6"),
    ]


def test_the_last_ones_come_first() -> None:
    """Where the last operation does it all, it takes few tries, with what makes the machine ready before it."""
    accesses = [Out(0xCF8, 1, 4), *(Write(8 * number, 1, 4) for number in range(1000))]
    tries = 0

    def same(several: Sequence[Access]) -> bool:
        nonlocal tries
        tries += 1
        return several[0] == accesses[0] and several[-1] == accesses[-1]

    assert smallest(accesses, same, begin=1)[1] == accesses[-1]
    assert tries < 20


def test_configuration_is_worked_on() -> None:
    """Where there is a PCI function its configuration space is reached: by ports, or in memory; with messages too."""
    for base in (None, 0x4010000000):
        function = Function(3, 0, base, msi=0x50, msix=0x60)
        target = Target(name="x", board=Board(arguments=()), areas=AREAS, arena=ARENA, functions=[function])
        drawn = [access for number in range(200) for access in Drawer(target).sequence(Random(number))]
        enabled = function.write(0x62, 1 << 15, 2)
        assert all(access in drawn for access in enabled)
        if base is None:
            assert any(isinstance(access, Out) and access.port == 0xCF8 for access in drawn)
        else:
            assert any(isinstance(access, Write) and base <= access.address < base + (1 << 20) for access in drawn)


def test_memory_alone_is_cleared() -> None:
    """Where a machine is reset instead of started, all memory that operations write is zeroes again, and no register:
    pieces that are near each other at once, and no more at once than an operation takes.
    """
    ram = [Area(name="low", address=0, size=0x2000), Area(name="high", address=0x100000, size=4 * MOST)]
    accesses = (Store(0x10, b"ab"), Store(0x20, b"c"), Store(0x1FFF, b"de"), Store(0xFE000000, b"f"), Write(0x30, 1, 4))
    assert list(cleared(accesses, ram)) == [Fill(0x10, 0x11, 0), Fill(0x1FFF, 1, 0)]
    far = (Fill(0x100000, MOST, 1), Store(0x100000 + MOST + 1, b"a"), Store(0x100000 + MOST + 2 + NEAR, b"b"))
    assert list(cleared(far, ram)) == [Fill(0x100000, MOST, 0), Fill(0x100000 + MOST + 1, NEAR + 2, 0)]
    assert list(cleared((Read(0, 4),), ram)) == []
