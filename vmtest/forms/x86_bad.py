"""Names for x86 code that is no instruction, so that what fails for one reason has one name."""

from __future__ import annotations

from iced_x86 import Decoder, DecoderOptions

from vmtest.forms.base import BAD
from vmtest.forms.x86_rules import PREFIXES

__all__ = ["bad_name"]

_TELLING = frozenset(b"\x66\xf0\xf2\xf3")
_MANDATORY = frozenset(b"\x66\xf2\xf3")
# How many bytes an opcode has, with its escapes.
_SIZES = {b"\x0f": 2, b"\x0f\x38": 3, b"\x0f\x3a": 3}
# Of the byte behind these the bits that say which table of opcodes it is. They are named by that: who does not know
# them takes them for what the opcode is without them, whichever it is.
_TABLES = {b"\xc4": 31, b"\xc5": 0, b"\x62": 7, b"\x8f": 0}


def bad_name(code: bytes, bits: int) -> str:
    """By its opcode and the prefixes that tell, such as "(bad) f2 0fae"; "(bad) lock" if that alone is wrong."""
    unchecked = Decoder(bits, code, options=DecoderOptions.NO_INVALID_CHECK).decode()
    if not unchecked.is_invalid and unchecked.has_lock_prefix:
        return f"{BAD} lock"
    at, seen = 0, set()
    while at < len(code) and (code[at] in PREFIXES or (bits == 64 and code[at] & 0xF0 == 0x40)):
        seen.add(code[at])
        at += 1
    prefixes = [f"{prefix:02x}" for prefix in sorted(seen & _TELLING)]
    first = code[at : at + 1]
    if first in _TABLES and len(code) > at + 1:
        table = [f"table {code[at + 1] & _TABLES[first]}"] if _TABLES[first] else []
        return " ".join([BAD, *prefixes, first.hex(), *table])
    size = _SIZES.get(code[at : at + 2], 0) or _SIZES.get(first, 1)
    if len(seen & _MANDATORY) > 1 and size > 1:  # which of them counts is what is not known, whichever the opcode
        size -= 1
    return " ".join([BAD, *prefixes, code[at : at + size].hex()])
