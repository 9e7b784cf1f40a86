"""RV64GC, with bit manipulation, scalar cryptography, Zfh, Zfa, Zacas and Zicond: the unprivileged instructions, of the
CSRs those of floating point. Vectors are not here, nor Zcb.

Source: The RISC-V Instruction Set Manual, volume I (20240411), whose chapters are named. The forms: data/riscv64*.txt.
There ``@mem`` is base and offset, ``@atomic`` a base alone, ``@branch`` an offset from the instruction, ``@jump`` a
register.

lr and sc are made as others are: that sc may fail at any time is told by its rule, and one without an lr in its case
always fails if each case begins without a reservation.
"""

from __future__ import annotations

from random import Random
from typing import ClassVar

from vmtest.forms.base import BAD
from vmtest.forms.encoding import Row, read
from vmtest.forms.words import UNPREDICTABLE, Words, address, branch, target
from vmtest.model.case import Case
from vmtest.model.isa import Isa

__all__ = ["Table"]

_FILES = "riscv64.txt", "riscv64c.txt", "riscv64x.txt"
_STACK = 2
# By the beginning of the form, what a difference is judged by. The first that fits counts.
_RULES = (
    ("sc.", 'may fail for no reason, and must without a reservation; any non-zero code (chapter "A", LR/SC)'),
    ("lr.", 'an address that is not aligned raises an exception (chapter "A", LR/SC)'),
    ("amo", 'an address that is not aligned raises an exception, rd is sign-extended (chapter "A")'),
    ("div", 'by zero: all ones; overflow: the dividend; no exception (chapter "M", table of division by zero)'),
    ("rem", 'by zero: the dividend; overflow: zero; no exception (chapter "M", table of division by zero)'),
    ("fminm", 'NaN if one is (chapter "Zfa")'),
    ("fmaxm", 'NaN if one is (chapter "Zfa")'),
    ("fmin", 'the number if one is NaN, -0.0 below +0.0, a signaling NaN sets NV (chapter "F")'),
    ("fmax", 'the number if one is NaN, -0.0 below +0.0, a signaling NaN sets NV (chapter "F")'),
    ("fcvt.w", 'out of range and NaN: the table of domains; 32 bits are sign-extended (chapter "F")'),
    ("fcvt.l", 'out of range and NaN: the table of domains (chapter "F")'),
    ("fmv.w.x", 'NaN-boxed (chapter "D", NaN Boxing of Narrower Values)'),
    ("fmv.x.w", 'the lower 32 bits, sign-extended, boxed or not (chapter "F")'),
    ("fsgnj", 'what is not NaN-boxed is the canonical NaN; no exceptions (chapter "D", NaN Boxing)'),
    ("fmadd", 'rounded once; inf * 0 sets NV also with a quiet NaN addend (chapter "F")'),
    ("fmsub", 'rounded once; inf * 0 sets NV also with a quiet NaN addend (chapter "F")'),
    ("fnm", 'rounded once; inf * 0 sets NV also with a quiet NaN addend (chapter "F")'),
    ("fleq", 'NV for a signaling NaN only (chapter "Zfa")'),
    ("fltq", 'NV for a signaling NaN only (chapter "Zfa")'),
    ("fle", 'NV for any NaN (chapter "F")'),
    ("flt", 'NV for any NaN (chapter "F")'),
    ("feq", 'NV for a signaling NaN only (chapter "F")'),
    ("flw", 'NaN-boxed (chapter "D", NaN Boxing of Narrower Values)'),
    ("fence", 'fields that are not used are to be ignored (chapter "RV32I", Memory Ordering)'),
    ("jalr", 'the lowest bit of the target is cleared, rs1 is read before rd is written (chapter "RV32I")'),
    ("csr", 'fflags, frm and fcsr are the parts of one register; frm takes any 3 bits (chapter "F")'),
    ("sll", 'the lower 6 bits of rs2, 5 of a W form (chapter "RV64I")'),
    ("srl", 'the lower 6 bits of rs2, 5 of a W form (chapter "RV64I")'),
    ("sra", 'the lower 6 bits of rs2, 5 of a W form (chapter "RV64I")'),
)
_FLOAT = 'a NaN is the canonical one, as is an operand not NaN-boxed; results are NaN-boxed (chapters "F", "D")'


_FLOATING = (0x53, 0x43, 0x47, 0x4B, 0x4F)  # OP-FP and the fused ones
_BOX = 0xFFFFFFFF


class Table(Words):
    """See the module."""

    groups: ClassVar = {4: 0x7F, 2: 0xE003}
    majors: ClassVar = {4: 0x7000707C, 2: 0xFC03}
    aligned = ("atomic",)
    reasons: ClassVar = {
        "privileged": "an instruction for more than user mode",
        "csr": "a control and status register that tells the time or the machine, or is not the program's",
        "cache": "how large a block of the cache is, and whether user mode may, is the implementation's choice",
    }

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa, [row for name in _FILES for row in read(name)])

    def length(self, first: int) -> int:
        """See Words; longer ones than 4 bytes are reserved."""
        return 4 if first & 3 == 3 else 2

    def reach(self, random: Random, row: Row, word: int) -> tuple[int, dict[str, int]]:
        """See Words."""
        kind, _, size = row.access.partition(":")
        if kind == "branch":
            offset = row.fields["simm"]
            if (step := branch(random, 2)) is not None or not offset.get(word):  # to itself it would never end
                word = word & ~offset.mask | offset.put(step or 4)
            return word, {}
        for _ in range(4):  # x0 is no base, mostly
            if base := _base(row, word):
                break
            word = row.draw(random)
        to = target(random) if kind == "jump" else address(random, int(size))
        return word, {f"x{base}": (to - _offset(row, word)) % (1 << 64)} if base else {}

    def reached(self, case: Case, row: Row, word: int) -> int:
        """See Words."""
        return (self.value(case, f"x{_base(row, word)}") + _offset(row, word)) % (1 << 64)

    def causes(self, case: Case) -> frozenset[str]:
        """See Forms. "single" is of what gives a number of 32 bits, "not boxed" of what is given one in a register that
        does not hold it as it should (chapter "D", NaN Boxing).
        """
        found = set(super().causes(case))
        for row, word in self.rows_of(case):
            if row is None or row.match & 0x7F not in _FLOATING or (".s" not in row.name and row.name != "fmv.w.x"):
                continue
            found.add("single")
            sources = [row.fields[name].get(word) for name in ("rs1", "rs2", "rs3") if name in row.fields]
            if row.name.endswith(".s") and any(self.value(case, f"f{number}") >> 32 != _BOX for number in sources):
                found.add("not boxed")
        return frozenset(found)

    def rule(self, name: str, kind: str) -> str:
        """See Forms."""
        name = name.removesuffix(UNPREDICTABLE)
        if name.startswith(BAD):
            return 'reserved: an illegal-instruction exception where no extension defines it (chapter "Introduction")'
        if kind == "exception" and (needed := self.features(name)):
            return f"needs {', '.join(sorted(needed))}; without it an illegal-instruction exception"
        for beginning, said in _RULES:
            if name.startswith(beginning):
                return said
        row = self.rows.get(name)
        if row and row.match & 0x7F in _FLOATING:
            return _FLOAT
        if row and row.access.startswith("mem"):
            return 'an address that is not aligned is reached, or raises an exception (chapter "RV32I", Load and Store)'
        return ""


def _base(row: Row, word: int) -> int:
    """The register that an address begins with."""
    if "rs1" in row.fields:
        return row.fields["rs1"].get(word)
    return 8 + row.fields["rs1c"].get(word) if "rs1c" in row.fields else _STACK


def _offset(row: Row, word: int) -> int:
    moved = row.fields.get("simm") or row.fields.get("uimm")
    return moved.get(word) if moved else 0
