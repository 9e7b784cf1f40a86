"""The serial EEPROM of many cards, whose three wires a driver moves (93C46 and 93C66)."""

from __future__ import annotations

from collections.abc import Iterator

from vmtest.devices.layout import Pen

__all__ = ["strokes"]

READ, WRITE, ERASE, OTHER = 2, 1, 3, 0


def strokes(pen: Pen, address_bits: int = 6) -> Iterator[tuple[int, int, int]]:
    """What the wires are set to, one after the other: chip select, clock, and what goes in, each 0 or 1."""
    operation = pen.one_of((READ, READ, READ, WRITE, ERASE, OTHER, OTHER))
    address = pen.one_of((0, 1, 2, 10, (1 << address_bits) - 1, pen.random.getrandbits(address_bits)))
    word, bits = (4 | operation) << address_bits | address, 3 + address_bits
    data = pen.one_of((0, 16, 16, 17)) if pen.chance(0.9) else pen.count(0, 40)
    word, bits = word << data | pen.random.getrandbits(data) if data else word, bits + data
    yield 0, 0, 0
    for bit in range(bits - 1, -1, -1):
        level = word >> bit & 1
        yield 1, 0, level
        yield 1, 1, level
    if pen.chance(0.8):
        yield 0, 0, 0
