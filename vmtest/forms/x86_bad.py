"""Names for x86 code that is no instruction, so that what fails for one reason has one name."""

from __future__ import annotations

from iced_x86 import Decoder, DecoderOptions

from vmtest.forms.base import BAD

__all__ = ["bad_name"]

_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"
_TELLING = frozenset(b"\x66\xf0\xf2\xf3")
# How many bytes an opcode has, with its escapes.
_SIZES = {b"\x0f": 2, b"\x0f\x38": 3, b"\x0f\x3a": 3, b"\xc5": 3, b"\xc4": 4, b"\x8f": 4, b"\x62": 5}
# Of the byte behind these the bits that say which table of opcodes it is, and the tables that there are: one behind C5,
# and those of 8F are of few CPUs.
_TABLES = {b"\xc4": (31, (1, 2, 3)), b"\xc5": (0, (0,)), b"\x62": (7, (1, 2, 3, 5, 6)), b"\x8f": (0, ())}


def bad_name(code: bytes, bits: int) -> str:
    """By its opcode and the prefixes that tell, such as "(bad) f2 0fae"; "(bad) lock" if that alone is wrong."""
    unchecked = Decoder(bits, code, options=DecoderOptions.NO_INVALID_CHECK).decode()
    if not unchecked.is_invalid and unchecked.has_lock_prefix:
        return f"{BAD} lock"
    at, seen = 0, set()
    while at < len(code) and code[at] in _PREFIXES:
        seen.add(code[at])
        at += 1
    if bits == 64 and at < len(code) and code[at] & 0xF0 == 0x40:
        at += 1
    prefixes = [f"{prefix:02x}" for prefix in sorted(seen & _TELLING)]
    first = code[at : at + 1]
    if first in _TABLES and len(code) > at + 1:
        mask, known = _TABLES[first]
        table = code[at + 1] & mask
        opcode = code[at + _SIZES[first] - 1 : at + _SIZES[first]].hex() if table in known else ""
        said = f"table {table}" if mask else ""
        return " ".join(filter(None, [BAD, *prefixes, first.hex(), said, opcode]))
    size = _SIZES.get(code[at : at + 2], 0) or _SIZES.get(first, 1)
    return " ".join([BAD, *prefixes, code[at : at + size].hex()])
