"""SCSI commands, for whatever carries them to a disk or a CD (SPC-4, SBC-3, MMC-6): what is at which byte of a CDB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vmtest.devices.layout import Field, Pen, Struct, array, constant, either, number, zeros

__all__ = ["BLOCK", "Command", "big", "cdb", "command", "pieces"]

BLOCK = 512
"""Bytes of a block, as long as nobody has set another size."""


def big(name: str, bits: int, *likely: int) -> Field:
    """A number of whole bytes, the highest one first; ``likely`` as for layout.number."""
    drawn = number(name, bits, *likely)

    def draw(pen: Pen) -> int:
        return int.from_bytes((drawn.draw(pen) & (1 << bits) - 1).to_bytes(bits // 8, "big"), "little")

    return Field(name, bits, draw)


def _cdb(
    size: int,
    codes: Sequence[int],
    flags: Sequence[int] = (0,),
    middle: Sequence[int] = (0,),
    length: Sequence[int] = (0,),
    track: Sequence[int] = (0,),
) -> Struct:
    """A CDB (SPC-4, 4.3): the ``middle`` is the address of a block, or whatever else a command has in its place, such
    as a page's number in the highest byte. The code is always one of those: what is unknown is refused at once.
    """
    bits = {6: (16, 8), 10: (32, 16), 12: (32, 32), 16: (64, 32)}[size]
    return Struct(
        f"CDB {codes[0]:#04x}",
        Field("code", 8, lambda pen: int(pen.one_of(codes))),
        number("flags", 8, *flags),
        big("middle", bits[0], *middle),
        *([number("track", 8, *track)] if size == 10 else []),
        big("length", bits[1], *length),
        *([zeros(8)] if size > 10 else []),
        number("control", 8, 0, 0, 0, 0, 4, 0x80),
    )


BYTES = (0, 1, 4, 5, 8, 12, 18, 24, 36, 36, 64, 96, 252, 255)
MANY = (*BYTES, 512, 4096, 4097, 0xFFFF)
BLOCKS = (0, 1, 1, 1, 2, 3, 8, 8, 16, 127)
FIRST = (0, 0, 0, 1, 8, 63, 0x1FFFF8, 0x1FFFFF, 0x200000, 0xFFFFFFFF)
FAR = (*FIRST, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)
PAGES = (0x3F, 0x3F, 0x01, 0x04, 0x05, 0x08, 0x08, 0x0D, 0x0E, 0x2A, 0x30, 0x00, 0x1C, 0x7F, 0x48, 0x88, 0xC8)
ACCESS = (0, 0, 0, 0, 2, 8, 0x10, 0x18, 0x20)
SHORT = (*BYTES, *(0x10000 * value for value in (1, 3, 4, 0xFF, 2, 0x0100, 0x0101)), 0x0804, 0x00010804, 0xFF0800)
OTHERS = (
    0x07,
    0x18,
    0x1C,
    0x1D,
    0x39,
    0x3B,
    0x3C,
    0x3F,
    0x4C,
    0x4D,
    0x52,
    0x5D,
    0x7F,
    0x83,
    0x84,
    0x85,
    0xA1,
    0xA3,
    0xA4,
)

COMMANDS = (
    _cdb(
        6, (0x00, 0x03, 0x16, 0x17, 0x04), (0, 0, 1, 0x10), (0,), BYTES
    ),  # TEST UNIT READY, REQUEST SENSE, RESERVE, FORMAT
    *[_cdb(6, (0x08, 0x0A, 0x08, 0x0A, 0x0B), (0, 0, 0, 0x1F), (0, 1, 8, 0xFFFF), BLOCKS)] * 2,  # READ, WRITE, SEEK
    _cdb(6, (0x12,), (0,), (0, 0, 0x100), (*BYTES, 36)),  # INQUIRY
    _cdb(
        6, (0x12,), (1,), [page << 8 for page in (0, 0x80, 0x83, 0xB0, 0xB1, 0xB2, 0x81, 0xC0)], BYTES
    ),  # ... of a VPD page
    *[_cdb(6, (0x15,), (0x10, 0x10, 0x10, 0x11, 0), (0,), (24, 24, 24, 32, 32, 16, 20, 12, 4, 0, 255))]
    * 2,  # MODE SELECT
    *[_cdb(10, (0x55,), (0x10, 0x10, 0x10, 0x11, 0), (0,), (28, 28, 28, 36, 36, 20, 24, 16, 8, 0, 4096))] * 2,
    _cdb(6, (0x1A,), (0, 0, 8), [page << 8 for page in PAGES], BYTES),  # MODE SENSE
    _cdb(10, (0x5A,), (0, 0, 8, 0x10), [page << 24 for page in PAGES], MANY),
    _cdb(6, (0x1B,), (0, 1), (0,), (0, 1, 2, 3, 1, 3, 0x10)),  # START STOP UNIT
    _cdb(6, (0x1E,), (0,), (0,), (0, 1, 2, 3)),  # PREVENT ALLOW MEDIUM REMOVAL
    _cdb(10, (0x25,), (0,), (0, 0, 0, 1), (0, 0, 0, 0x100)),  # READ CAPACITY
    *[_cdb(10, (0x28, 0x2A, 0x28, 0x2A, 0x2E, 0x2B), ACCESS, FIRST, BLOCKS)] * 5,  # READ, WRITE, WRITE AND VERIFY, SEEK
    _cdb(10, (0x2F, 0x35, 0x34, 0x41, 0x41), ACCESS, FIRST, BLOCKS),  # VERIFY, SYNCHRONIZE CACHE, PRE-FETCH, WRITE SAME
    _cdb(12, (0xA8, 0xAA, 0xAE, 0xAF), ACCESS, FIRST, BLOCKS),
    *[_cdb(16, (0x88, 0x8A, 0x88, 0x8A, 0x8E), ACCESS, FAR, BLOCKS)] * 3,
    _cdb(16, (0x8F, 0x91, 0x90, 0x93, 0x93), ACCESS, FAR, (*BLOCKS, 0x1000, 0x200000)),
    *[_cdb(10, (0x42,), (0, 0, 0, 0, 1), (0,), (24, 40, 24, 40, 56, 8, 0, 7, 4096))] * 2,  # UNMAP
    _cdb(10, (0x43, 0x43, 0x46, 0x51), (0, 2), (0, 1 << 24, 2 << 24, 3 << 24), MANY, (0, 1, 2, 0xAA)),  # READ TOC, ...
    _cdb(10, (0x4A,), (1, 1, 1, 0), (0x1000, 0x1000, 0, 0x7F00), MANY),  # GET EVENT STATUS NOTIFICATION
    _cdb(10, (0x56, 0x57), (0, 0, 1, 2), (0,), (0, 0, 8)),  # RESERVE, RELEASE
    _cdb(10, (0x5E, 0x5F), range(8), [kind << 24 for kind in (1, 3, 5)], (8, 24, 0, 255)),  # PERSISTENT RESERVE
    _cdb(16, (0x9E,), (0x10, 0x10, 0x10, 0x12, 0), (0,), (32, 12, 8, 0, 512, 0x10001)),  # SERVICE ACTION IN
    _cdb(12, (0xA0,), (0,), (0, 1 << 24, 2 << 24), (16, 64, 4096, 15, 0, 0x10000)),  # REPORT LUNS
    _cdb(12, (0xAD, 0xAD, 0xBD), (0, 0, 0, 1), (0,), SHORT),  # READ DISC STRUCTURE, MECHANISM STATUS
    _cdb(12, (0xBE,), (0, 4, 8), FIRST, [count << 8 | 0x10 for count in BLOCKS]),  # READ CD
    _cdb(10, OTHERS, (0, 0, 1, 0x10), (0, 0, 1 << 24), MANY),
)
"""Each as often as it is here."""

# -- parameters ------------------------------------------------------------------------------------------------------

SIZE = big("size", 24, 0x200, 0x200, 0x400, 0x1000, 0xFE00, 0x600, 0, 0x100)
CACHING = Struct(
    "caching page", constant("page", 8, 8), constant("bytes", 8, 18), number("cache", 8, 0, 4), zeros(8 * 17)
)
ERRORS = Struct(
    "error page", constant("page", 8, 1), constant("bytes", 8, 10), constant("flags", 8, 0x80), zeros(8 * 9)
)
AUDIO = Struct("audio page", constant("page", 8, 14), constant("bytes", 8, 14), zeros(8 * 14))
ANY = Struct(
    "any page", number("page", 8, *PAGES), number("bytes", 8, 0, 2, 18, 22, 255), number("what", 16, 0, 1), zeros(32)
)
PAGE = either("", CACHING, CACHING, ERRORS, AUDIO, ANY)
RANGE = Struct("range", big("address", 64, *FIRST), big("blocks", 32, *BLOCKS, 0x1000, 0xFFFFFFFF), zeros(32))
PARAMETERS = {
    0x15: (  # SPC-4, 7.5
        Struct("mode parameters (6)", zeros(24), constant("blocks", 8, 0), PAGE, zeros(64)),
        Struct("mode parameters (6) and blocks", zeros(24), constant("blocks", 8, 8), zeros(40), SIZE, PAGE),
    ),
    0x55: (
        Struct("mode parameters (10)", zeros(48), constant("blocks", 16, 0), PAGE, zeros(64)),
        Struct("mode parameters (10) and blocks", zeros(48), big("blocks", 16, 8), zeros(40), SIZE, PAGE),
    ),
    0x42: (  # SBC-3, 5.28
        Struct(
            "ranges",
            big("", 16, 22, 22, 6),
            big("bytes", 16, 16, 16, 0, 15),
            zeros(32),
            RANGE.fields[0],
            *RANGE.fields[1:],
        ),
        Struct("ranges", big("", 16, 38, 54), big("bytes", 16, 32, 48), zeros(32), array("of", RANGE, 3, 2)),
    ),
}
"""By the first byte, what a command takes that it is no use without."""


class Command(NamedTuple):
    """A ``cdb``, as long as its kind is; how many bytes move with it, and whether it ``takes`` them, else gives them;
    and those that it takes, as far as they say something.
    """

    cdb: bytes
    length: int
    takes: bool
    data: bytes


_SIZES = (6, 10, 10, 16, 16, 12, 16, 16)
_TAKE = bytes.fromhex("04070A15181D2A2E3B3F41424C555D5F838A8E93A4AAAEBF")
_MOVE_NOTHING = bytes.fromhex("000B1617191B1E2B343556579091")
_OF_BLOCKS = bytes.fromhex("080A282A2E888A8EA8AAAE")
_CHECKED = bytes.fromhex("2F8FAF")
_PLACES = {0x12: (3, 2), 0xAD: (8, 2), 0xBD: (8, 2), 0xBE: (6, 3)}
_BY_GROUP = ((4, 1), (7, 2), (7, 2), (10, 4), (10, 4), (6, 4), (10, 4), (10, 4))


def _length(cdb: bytes) -> int:
    """How many bytes move with it."""
    code = cdb[0]
    if code in _MOVE_NOTHING or (code in _CHECKED and not cdb[1] & 2):
        return 0
    if code in (0x04, 0x25):
        return 8 if code == 0x25 else cdb[1] & 0x10 and 4
    if code in (0x41, 0x93):  # WRITE SAME, which may bring nothing
        return 0 if cdb[1] & 1 else BLOCK
    at, size = _PLACES.get(code) or _BY_GROUP[code >> 5]
    count = int.from_bytes(cdb[at : at + size], "big")
    if code in _OF_BLOCKS or code in _CHECKED:
        return (count or (256 if code < 0x20 else 0)) * BLOCK
    return count


def command(pen: Pen) -> Command:
    """One of them, with its parameters."""
    drawn = pen.one_of(COMMANDS).draw(pen)
    code = drawn[0]
    drawn = drawn.ljust(_SIZES[code >> 5], b"\0")
    if code in PARAMETERS:
        data = pen.one_of(PARAMETERS[code]).draw(pen)
    else:
        data = pen.random.randbytes(16) if pen.chance(0.4) else b""
    return Command(drawn, _length(drawn), code in _TAKE or code in _CHECKED, data)


def cdb(pen: Pen) -> bytes:
    """A command as its 16 bytes, zeros behind what it is short of."""
    return command(pen).cdb.ljust(16, b"\0")


def pieces(pen: Pen, what: Command, most: int = 4) -> list[tuple[int, int]]:
    """Addresses and lengths of memory for what moves with a command, its parameters laid there: so much as it says,
    but when it is not.
    """
    length = what.length if pen.chance(0.9) else pen.one_of((0, 1, 8, BLOCK, 4096, what.length + 1, 2 * what.length))
    first = pen.room(max(min(length, 4096), 64))
    if what.takes and what.data:
        pen.lay(what.data, at=first)
    cuts = sorted(pen.count(0, length) & -4 for _ in range(pen.count(1, most) - 1)) if pen.chance(0.4) else []
    found = [(pen.address() if at else first, to - at) for at, to in zip((0, *cuts), (*cuts, length), strict=True)]
    # Seldom where nothing is, or registers are: QEMU waits for ever when such a transfer is cancelled, which costs.
    return found if pen.chance(0.99) else [(pen.value(32), size) for _, size in found]
