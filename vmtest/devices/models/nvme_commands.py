"""NVM Express commands: NVM Express 1.4, and where it is said the NVM Command Set 1.0 and Zoned Namespaces 1.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmtest.devices.layout import Field, Struct, anything, array, flags, number, zeros

__all__ = [
    "ADMIN",
    "ATTACH",
    "CREATE_CQ",
    "CREATE_SQ",
    "DELETE_CQ",
    "DELETE_SQ",
    "ENTRY",
    "FORMAT",
    "LISTED",
    "NVM",
    "PAGE",
    "SCATTER",
    "SET_FEATURES",
    "SHADOW",
    "ZONED",
    "Command",
]

PAGE = 4096


class Command(NamedTuple):
    """``words`` are its dwords 10 to 15, as far as they matter. ``length`` is of its data, by these and the bytes of a
    block; ``data`` is what the host says there.
    """

    code: int
    words: Struct
    length: Callable[[int, int], int] = lambda words, block: 0
    data: Struct | None = None


def _page(words: int, block: int) -> int:
    return PAGE


def _blocks(words: int, block: int) -> int:
    return ((words >> 64 & 0xFFFF) + 1) * block


def _units(shift: int, bits: int, size: int) -> Callable[[int, int], int]:
    """So many units of a size as a number of the words says: that is one less."""
    return lambda words, block: size * ((words >> shift & (1 << bits) - 1) + 1)


def _of(bits: int, **likely: tuple[int, ...]) -> tuple[Field, ...]:
    return tuple(number(name, bits, *values) for name, values in likely.items())


# Of a namespace of 1 GiB, with zones of 128 MiB, in blocks of 512 bytes or 4096.
PLACE = number("place", 64, 0, 0, 0, 0, 1, 7, 8, 0x8000, 0x40000, 0x40000, 0x80000, 0x3FFFE, 0x7FFE, 0x1FFFFE, 0x200000)
CHECKS = (0, 0, 0, 1, 2, 4, 7, 8, 9, 15)
TAGS = _of(32, reference=(0, 0, 0, 1, 7, 8, 0xFFFFFFFF), tags=(0, 0xFFFF0000, 0xFFFFFFFF, 0xFFFF))
COUNTS = (0, 0, 1, 3, 7, 7, 8, 15, 31, 127, 128, 255, 0xFFFF)
ACCESS = flags("access", 2, limited=5, forced=10)
SET = number("set", 32, 0, 2 << 24, 1 << 24)

NOTHING = Struct("nothing", zeros(32))
ANY = Struct("words", *(anything(f"{n}", 32) for n in range(6)))
TRANSFER = Struct(
    "read, write, compare, verify, append",  # 6.9
    *(PLACE, *_of(16, blocks=COUNTS), flags("", 10, gap9=0, deallocate=10), *_of(4, checks=CHECKS), ACCESS),
    *(zeros(32), *TAGS),
)
TRIM = Struct("dataset management", *_of(32, ranges=(0, 1, 3, 7, 255), what=(4, 4, 4, 5, 0)))  # 6.7
RANGE = Struct("range", anything("hints", 32), *_of(32, blocks=(1, 8, 0x800, 0, 0xFFFFFFFF)), PLACE)
COPY = Struct(
    "copy",  # NVM Command Set, 3.2.2
    *(PLACE, *_of(8, ranges=(0, 1, 3, 127, 128)), *_of(4, format=(0, 0, 0, 1), read=CHECKS), zeros(10)),
    *(*_of(4, write=CHECKS), ACCESS, zeros(32), *TAGS),
)
SOURCE = Struct("source range", zeros(64), PLACE, *_of(64, blocks=(0, 0, 7, 31, 127, 128, 0xFFFF)), *TAGS)
ZONE = Struct(
    "zone management send",  # Zoned Namespaces, 3.4.3
    *(PLACE, zeros(32), *_of(8, action=(1, 2, 3, 3, 4, 4, 5, 16, 17)), flags("", 8, all=30, random=20)),
)
ZONES = Struct(
    "zone management receive",  # Zoned Namespaces, 3.4.2
    *(
        PLACE,
        *_of(32, dwords=(0x3FF, 0x3F, 0xF, 0, 0xFFFF)),
        *_of(8, what=(0, 0, 1), state=tuple(range(9)), part=(0, 1)),
    ),
)

QUEUE = _of(16, queue=(1, 2, 3), entries=(63, 15, 1, 0))
SUBMISSIONS = Struct(
    "create submission queue", *QUEUE, flags("", 16, contiguous=96), *_of(16, completions=(1, 1, 2, 0))
)
COMPLETIONS = Struct(
    "create completion queue", *QUEUE, flags("", 16, contiguous=96, interrupts=80), *_of(16, vector=(0, 1, 64, 65))
)
DELETE = Struct("delete queue", *_of(16, queue=(1, 1, 2, 3, 0)))
LOG = Struct(
    "get log page",  # 5.14
    *(
        *_of(8, page=(1, 2, 3, 4, 5, 9, 0x81)),
        flags("", 8, gap7=0, retain=30),
        *_of(16, dwords=(0x3FF, 0x7F, 0xF, 0, 0xFFFF)),
    ),
    *(zeros(32), *_of(64, offset=(0, 0, 0, 4, 0x200, 0x1000)), SET),
)
IDENTIFY = Struct(
    "identify",  # 5.15
    *_of(16, what=(*range(8), *range(0x10, 0x16), 0x1A, 0x1B, 0x1C), controller=(0, 0, 1, 0xFFFF)),
    SET,
)
FEATURE = Struct(
    "features",  # 5.21.1: two events need a temperature, and that they are asked for
    *_of(8, which=(*range(1, 12), 4, 0x0B, 0x0E, 0x16, 0x19, 0x80), select=(0, 0, 1, 2, 3)),
    *(flags("", 16, gap15=0, save=10),),
    *_of(32, value=(0, 1, 2, 7, 100, 0x7FFF, 0x10001, 0x100258, 0x50000, 0x110064, 0x300, 0x1FF, 0xFFFFFFFF)),
)
LISTED = Struct("controller list", *_of(16, count=(1, 1, 2, 2047), a=(0, 0, 0, 1), b=(0, 1), c=(0, 2)))
VIRTUAL = Struct("virtualisation", *_of(8, action=(1, 7, 8, 9), kind=(0, 1)), *_of(16, of=(0, 1, 2), count=(0, 1, 2)))
FORMATTING = Struct(
    "format",  # 5.23
    flags("", 16, kind=50, more=30, large=30, gap1=0, extended=40, checked=50, second=20, gap1_=0, first=50, erase=30),
)

DELETE_SQ, CREATE_SQ, DELETE_CQ, CREATE_CQ, SET_FEATURES, ATTACH, FORMAT, SHADOW = (
    0x00,
    0x01,
    0x04,
    0x05,
    0x09,
    0x15,
    0x80,
    0x7C,
)
ADMIN = (
    *[Command(DELETE_SQ, DELETE)] * 2,  # 5.6
    Command(CREATE_SQ, SUBMISSIONS, _page),  # 5.4
    Command(0x02, LOG, _units(16, 16, 4)),
    Command(DELETE_CQ, DELETE),  # 5.5
    Command(CREATE_CQ, COMPLETIONS, _page),  # 5.3
    *[Command(0x06, IDENTIFY, _page)] * 3,
    Command(0x08, Struct("abort", *_of(16, queue=(0, 1, 2), command=(0, 1, 5)))),  # 5.1
    *[Command(SET_FEATURES, FEATURE, _page, Struct("a time", anything("time", 64)))] * 3,
    *[Command(0x0A, FEATURE, _page)] * 2,
    *[Command(0x0C, NOTHING)] * 2,  # 5.2
    Command(ATTACH, Struct("namespace attachment", *_of(32, attach=(0, 0, 1))), _page, LISTED),  # 5.20
    Command(0x1C, VIRTUAL),  # 5.22
    Command(SHADOW, NOTHING, lambda words, block: 2 * PAGE),  # 5.7
    *[Command(FORMAT, FORMATTING)] * 2,
    *(Command(code, ANY, _page) for code in (0x0D, 0x10, 0x84, 0xC0)),
)
NVM = (
    *[Command(code, TRANSFER, _blocks) for code in (0x01, 0x02, 0x05)] * 2,  # 6.15, 6.9, 6.6
    *(Command(code, TRANSFER) for code in (0x08, 0x0C)),  # 6.17, 6.14
    Command(0x00, NOTHING),  # 6.8
    Command(0x09, TRIM, _units(0, 8, 16), Struct("ranges", array("ranges", RANGE, 8, 1))),
    Command(0x19, COPY, _units(64, 8, 32), Struct("source ranges", array("ranges", SOURCE, 4, 1))),
    Command(0x04, ANY),
)
ZONED = (
    *[Command(0x79, ZONE, _page)] * 2,
    Command(0x7A, ZONES, _units(64, 16, 4)),
    *[Command(code, TRANSFER, _blocks) for code in (0x7D, 0x01)],  # Zoned Namespaces, 3.4.1
)

ENTRY = Struct(
    "submission queue entry",  # 4.2
    *(*_of(8, opcode=(0,)), *_of(6, fused=(0,)), *_of(2, lists=(0,)), *_of(16, command=tuple(range(8)))),
    *(*_of(32, namespace=(1,)), zeros(64), *_of(64, metadata=(0,)), *_of(128, data=(0,)), *_of(192, words=(0,))),
)
SCATTER = Struct(
    "SGL descriptor",  # 4.4
    *(*_of(64, address=(0,)), *_of(32, length=(0,)), zeros(24), *_of(4, sub=(0,), kind=(0,))),
)
