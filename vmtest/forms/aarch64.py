"""A64: the base instructions, scalar floating point, Advanced SIMD, cryptography, and what v8.1 and later add to those.

Source: Arm Architecture Reference Manual for A-profile (DDI 0487), chapter C4. The forms: data/aarch64*.txt. There
``@offset`` is a base and an offset, ``@base`` a base alone, ``@exact`` one that must be aligned, ``@ordered`` an offset
too, ``@index`` one with a register, ``@literal`` an offset from the instruction, ``@branch`` too, ``@jump`` a register.
SVE and SME are not here.

Exclusives are made as others are: that a store may fail at any time is told by its rule, and one without a load in its
case always fails if each case begins with the monitor open.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import ClassVar

from vmtest.forms.base import BAD
from vmtest.forms.encoding import Field, Row, Term, read
from vmtest.forms.words import UNPREDICTABLE, Words, address, branch, target
from vmtest.model.case import Case
from vmtest.model.isa import Isa

__all__ = ["Table"]

_FILES = ("base", "memory", "structures", "float", "vector", "vector_more", "scalar")
_SP = 31
# By the beginning of the form, what a difference is judged by; of several the longest. Sections are of DDI 0487, the
# instructions' own ones of its chapters C6 and C7.
_RULES = {
    "stxr": "may fail for no reason, and must with the monitor open; not aligned: a fault (B2.9)",
    "stlxr": "may fail for no reason, and must with the monitor open; not aligned: a fault (B2.9)",
    "stxp": "may fail for no reason, and must with the monitor open; not aligned: a fault (B2.9)",
    "stlxp": "may fail for no reason, and must with the monitor open; not aligned: a fault (B2.9)",
    "ldxr": "not aligned: a fault (B2.9)",
    "ldaxr": "not aligned: a fault (B2.9)",
    "ldxp": "not aligned to both registers: a fault (B2.9)",
    "ldaxp": "not aligned to both registers: a fault (B2.9)",
    **dict.fromkeys(("cas", "stlur", "ldapur"), "not aligned: a fault, or none within 16 bytes with FEAT_LSE2 (B2.5)"),
    "udiv": "by zero: zero, no exception (C6.2)",
    "sdiv": "by zero: zero; the least by -1: the least; no exception (C6.2)",
    "lslv": "the amount is taken modulo the width (C6.2)",
    "lsrv": "the amount is taken modulo the width (C6.2)",
    "asrv": "the amount is taken modulo the width (C6.2)",
    "rorv": "the amount is taken modulo the width (C6.2)",
    "smulh": "Ra is ignored where it should be ones (C6.2)",
    "umulh": "Ra is ignored where it should be ones (C6.2)",
    "hint": "what is not allocated is NOP (C4.1)",
    "mrs_f": "bits of what is not there read as zero (C5.2.8, C5.2.10)",
    "msr_f": "bits of what is not there read as zero (C5.2.8, C5.2.10)",
    **{f"fcvt{how}{sign}": "saturates, NaN is zero, Invalid Operation (FPToFixed)" for how in "anpmz" for sign in "su"},
    "fjcvtzs": "modulo 2^32, Z if exact (C7.2)",
    "fmin": "NaN if one is; minus zero is below plus zero (FPMin, FPMax)",
    "fmax": "NaN if one is; minus zero is below plus zero (FPMin, FPMax)",
    "fminnm": "the number if the other is a quiet NaN (FPMinNum, FPMaxNum)",
    "fmaxnm": "the number if the other is a quiet NaN (FPMinNum, FPMaxNum)",
    "fmadd": "rounded once; of NaNs the addend is first (FPProcessNaNs3)",
    "fmla": "rounded once; of NaNs the addend is first (FPProcessNaNs3)",
    "frecpe": "the table of estimates, exactly (FPRecipEstimate)",
    "frsqrte": "the table of estimates, exactly (FPRSqrtEstimate)",
    "fmulx": "zero by infinity is two (FPMulX)",
    "tbl": "an index out of range gives zero, in tbx leaves the destination (C7.2)",
    "sqrdm": "saturates, and sets FPSR.QC (C7.2)",
    "sqdm": "saturates, and sets FPSR.QC (C7.2)",
    "bfdot": "rounds to odd, flushes, one NaN (BFDotAdd); with FEAT_EBF16 by FPCR.EBF",
    "bfmmla": "rounds to odd, flushes, one NaN (BFDotAdd); with FEAT_EBF16 by FPCR.EBF",
}
_FLOAT = "a NaN is quieted and passed on, a signaling one first, then the first operand's (FPProcessNaNs)"


class Table(Words):
    """See the module."""

    groups: ClassVar = {4: 0x1E000000}
    majors: ClassVar = {4: 0xFFE00000}
    aligned = ("exact", "ordered")
    reasons: ClassVar = {
        "privileged": "an instruction for more than user mode",
        "system": "a system instruction or register that tells the time or the machine, or is not the program's",
        "waits": "it waits for what never comes",
        "debug": "it is for debuggers, and semihosting",
        "pauth": "keys and algorithm of pointer authentication are the implementation's choice",
        "tags": "there is no memory that has tags, and random ones are random",
        "mops": "three that are run in a row, and what registers hold between them is the implementation's choice",
    }

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa, [row for name in _FILES for row in read(f"aarch64_{name}.txt", {"bitmask": _bitmask})])

    def length(self, first: int) -> int:
        """See Words."""
        return 4

    def reach(self, random: Random, row: Row, word: int) -> tuple[int, dict[str, int]]:
        """See Words."""
        kind, _, size = row.access.partition(":")
        fields = row.fields
        moved = fields.get("simm") or fields.get("uimm")
        if kind in ("branch", "literal") and moved:
            # Of a literal: the page of code, which is zeros before the case.
            step = branch(random, 4) if kind == "branch" else -4 * int(random.random() * 900)
            if step is not None or not moved.get(word):  # to itself it would never end
                word = word & ~moved.mask | moved.put(step or 4)
            return word, {}
        base = _base(row, word)
        if kind == "jump":
            return word, {base: target(random)} if base != "sp" else {}  # which is zero there
        to = address(random, int(size))
        if kind == "index":
            return word, _indexed(random, row, word, to)
        if kind in ("offset", "ordered") and moved:
            to -= moved.get(word)
        return word, _aligned(random, base, to)

    def reached(self, case: Case, row: Row, word: int) -> int:
        """See Words."""
        at = self.value(case, _base(row, word))
        kind = row.access.partition(":")[0]
        if kind in ("offset", "ordered"):
            moved = row.fields.get("simm") or row.fields["uimm"]
            at += moved.get(word)
        elif kind == "index":
            at += _extended(row, word, self.value(case, f"x{row.fields['Rm'].get(word)}"))
        return at % (1 << 64)

    def causes(self, case: Case) -> frozenset[str]:
        """See Words; and whether an address has a top byte, which the one mode ignores and the other does not."""
        found = set(super().causes(case))
        for row, word in self.rows_of(case):
            if row is None or "Rn" not in row.fields or not row.access:
                continue
            to_register = row.access == "jump"
            at = self.value(case, _base(row, word)) if to_register else self.reached(case, row, word)
            if at >> 56:
                found.add("top byte")
        return frozenset(found)

    def rule(self, name: str, kind: str) -> str:
        """See Forms."""
        if name.startswith(BAD):
            return "unallocated: an undefined-instruction exception where no extension defines it (C4.1)"
        if name.endswith(UNPREDICTABLE):
            return "CONSTRAINED UNPREDICTABLE: undefined, NOP, or an unknown result (K1.1)"
        if kind == "exception" and (needed := self.features(name)):
            return f"needs {', '.join(sorted(needed))}; without it an undefined-instruction exception"
        if found := max((beginning for beginning in _RULES if name.startswith(beginning)), key=len, default=""):
            return _RULES[found]
        if name not in self.rows:
            return ""
        if self.rows[name].access.startswith(("offset", "base", "index")):
            return "not aligned it is reached all the same, with SCTLR_EL1.A clear (B2.5)"
        return _FLOAT if name.startswith("f") and not name.startswith(("fmov", "fcsel")) else ""


def _bitmask(fields: Mapping[str, Field]) -> Term:
    """Whether N, immr and imms say a mask: pseudocode function DecodeBitMasks."""
    n, imms = fields["N"], fields["imms"]

    def is_mask(word: int) -> bool:
        ones = imms.get(word)
        length = (n.get(word) << 6 | ~ones & 63).bit_length() - 1
        levels = (1 << max(0, length)) - 1
        return length >= 1 and ones & levels != levels

    return is_mask


def _base(row: Row, word: int) -> str:
    """The register that an address begins with."""
    number = row.fields["Rn"].get(word)
    return f"x{number}" if number != _SP else "sp"


def _aligned(random: Random, register: str, value: int) -> dict[str, int]:
    """The base register; the stack pointer is mostly aligned, as is demanded of it (D1.8.2)."""
    value %= 1 << 64
    if register == "sp" and random.random() < 0.9:
        value &= ~15
    return {register: value}


def _extended(row: Row, word: int, value: int) -> int:
    """What an index register adds: extended and shifted, pseudocode function ExtendReg."""
    option = row.fields["option"].get(word)
    if option & 1 == 0:
        value %= 1 << 32
        if option & 4:
            value = (value ^ 1 << 31) - (1 << 31)
    return value << (int(row.access.partition(":")[2]).bit_length() - 1) * row.fields["S"].get(word)


def _indexed(random: Random, row: Row, word: int, to: int) -> dict[str, int]:
    """Base and index that lead there together."""
    base, index = _base(row, word), f"x{row.fields['Rm'].get(word)}"
    if index == f"x{_SP}":  # is zero
        return _aligned(random, base, to)
    if index == base:
        return {}
    value = (int(random.random() * 512) - 256 if random.random() < 0.8 else random.getrandbits(64)) % (1 << 64)
    if row.fields["option"].get(word) & 1 == 0:  # the upper half does not count
        value = value % (1 << 32) | random.getrandbits(32) << 32
    return {index: value} | _aligned(random, base, to - _extended(row, word, value))
