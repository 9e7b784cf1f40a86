"""Instruction sets whose instructions are words of 16 or 32 bits: all that tables (encoding.py) are enough for."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from random import Random
from typing import ClassVar

from vmtest.forms.base import BAD, Draft, Forms, Instruction
from vmtest.forms.encoding import Row
from vmtest.model.case import Case
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE, Isa

__all__ = ["UNPREDICTABLE", "Words", "address", "branch", "target"]

UNPREDICTABLE = " (unpredictable)"
"""What follows the form of a word that the manual says nothing certain of."""
OF_A_MODE = frozenset({"privileged", "system", "csr", "debug", "waits"})
"""Of the tables' ``!`` options those whose rows do what the mode lets them."""
EDGES = CODE, CODE + PAGE, DATA, DATA + DATA_SIZE
RESERVED = 1 / 32
"""Share of the words that are drawn without a look at what the table says is none: for the decoders."""


class Words(Forms):
    """``majors`` are, by size in bytes, the bits by which words are told apart first, and ``groups`` those by which the
    manual's first table does it. ``reasons`` is what the tables' ``!`` options stand for, and ``aligned`` what ``@``
    says of accesses that must be aligned.
    """

    majors: ClassVar[Mapping[int, int]]
    groups: ClassVar[Mapping[int, int]]
    reasons: ClassVar[Mapping[str, str]]
    aligned: ClassVar[tuple[str, ...]]

    def __init__(self, isa: Isa, rows: Iterable[Row]) -> None:
        super().__init__(isa)
        self.rows = {row.name: row for row in rows}
        self.names = tuple(self.rows)
        self._index: dict[int, dict[int, list[Row]]] = {size: defaultdict(list) for size in self.majors}
        # Of rows that fit the one with more fixed bits comes first.
        for row in sorted(self.rows.values(), key=lambda row: -row.mask.bit_count()):
            major = self.majors[row.size]
            for free in _submasks(major & ~row.mask):
                self._index[row.size][row.match & major | free].append(row)

    @abstractmethod
    def length(self, first: int) -> int:
        """How many bytes an instruction has whose first byte is that."""

    @abstractmethod
    def reach(self, random: Random, row: Row, word: int) -> tuple[int, dict[str, int]]:
        """What a word that has an ``@`` becomes, so that it gets somewhere, and the registers that it needs for it."""

    @abstractmethod
    def reached(self, case: Case, row: Row, word: int) -> int:
        """The address that a word of a row with an ``@`` and a size reaches, with the registers of the case."""

    def value(self, case: Case, register: str) -> int:
        """What a register of the case begins with; one that there is not is zero."""
        return int.from_bytes(case.state[self.isa.places.get(register, slice(0))], "little")

    def find(self, word: int, size: int) -> Row | None:
        """The row of a word, None where there is none."""
        for row in self._index[size].get(word & self.majors[size], ()):
            if row.fits(word):
                return row
        return None

    def _name(self, row: Row | None, word: int, size: int) -> str:
        """The form of a word; of what is none the form that is most like it, so that one reason has one name."""
        if row is not None:
            return row.name + UNPREDICTABLE if row.odd and row.unpredictable(word) else row.name
        near = self._index[size].get(word & self.majors[size])
        if not near:
            return f"{BAD} group {word & self.groups[size]:#x}"
        return f"{BAD} like {min(near, key=lambda row: ((word ^ row.match) & row.mask).bit_count()).name}"

    def make(self, random: Random, name: str) -> Draft:
        """See Forms."""
        row = self.rows[name]
        if random.random() >= 1 - RESERVED:
            word = row.careless(random)
            if random.random() < 0.5:
                word ^= 1 << int(random.random() * 8 * row.size)
            code = word.to_bytes(row.size, "little")
            if self.length(code[0]) == row.size and self.find(word, row.size) in (None, row):
                return Draft(code, {})
        word = row.draw(random)
        registers: dict[str, int] = {}
        if row.access:
            word, registers = self.reach(random, row, word)
        return Draft(word.to_bytes(row.size, "little"), registers)

    def decode(self, code: bytes, start: int = 0) -> list[Instruction]:
        """See Forms."""
        found = []
        at, end = 0, len(code)
        while at < end:
            size = self.length(code[at])
            if at + size > end:
                found.append(Instruction(BAD, end - at))
                break
            word = int.from_bytes(code[at : at + size], "little")
            row = self.find(word, size)
            found.append(Instruction(self._name(row, word, size), size))
            at += size
        return found

    def text(self, code: bytes, start: int = 0) -> list[str]:
        """Each as its form and its fields, such as "addi rd=1 rs1=0 simm=-1"."""
        said = []
        for form, size in self.decode(code, start):
            word, code = int.from_bytes(code[:size], "little"), code[size:]
            row = self.rows.get(form.removesuffix(UNPREDICTABLE))
            fields = [f"{name}={one.get(word)}" for name, one in row.fields.items()] if row else [f"{word:#x}"]
            said.append(" ".join([form, *fields]))
        return said

    def features(self, name: str) -> frozenset[str]:
        """See Forms."""
        row = self.rows.get(name.removesuffix(UNPREDICTABLE))
        return row.features if row else frozenset()

    def banned(self, name: str) -> str:
        """See Forms."""
        row = self.rows.get(name.removesuffix(UNPREDICTABLE))
        return self.reasons[row.banned] if row and row.banned else ""

    def privileged(self, case: Case) -> bool:
        """See Forms."""
        return any(row is not None and row.banned in OF_A_MODE for row, _ in self.rows_of(case))

    def causes(self, case: Case) -> frozenset[str]:
        """See Forms. Addresses are those that the case begins with."""
        found = {"privileged"} if self.privileged(case) else set[str]()
        for row, word in self.rows_of(case):
            kind, _, size = row.access.partition(":") if row else ("", "", "")
            if row and (kind == "jump" or (kind == "branch" and row.fields["simm"].get(word) <= 0)):
                found.add("loop")
            if row is None or not size or kind == "literal":
                continue
            at = self.reached(case, row, word)
            if kind in self.aligned and at % int(size):
                found.add("misaligned")
            if any(at < edge < at + int(size) for edge in EDGES):
                found.add("over an edge")
        decoded = self.decode(case.code)
        if decoded[-1].size < self.length(case.code[-decoded[-1].size]):
            found.add("cut off")
        if any(one.form.startswith(BAD) for one in decoded):
            found.add("no instruction")
        if any(one.form.endswith(UNPREDICTABLE) for one in decoded):
            found.add("unpredictable")
        return frozenset(found)

    def rows_of(self, case: Case) -> Iterable[tuple[Row | None, int]]:
        """Row and word of each instruction of a case; None for what is none."""
        at = 0
        for form, size in self.decode(case.code):
            yield self.rows.get(form.removesuffix(UNPREDICTABLE)), int.from_bytes(case.code[at : at + size], "little")
            at += size


def _submasks(mask: int) -> Iterable[int]:
    """All values of the bits of a mask."""
    value = mask
    while True:
        yield value
        if not value:
            return
        value = value - 1 & mask


def address(random: Random, size: int) -> int:
    """Where so many bytes are reached: in the data window and aligned, mostly; else not aligned, at its edges, over
    them.
    """
    chance = random.random()
    if chance < 0.8:
        return DATA + int(random.random() * (DATA_SIZE // size)) * size
    if chance < 0.9:
        return DATA + int(random.random() * (DATA_SIZE - size + 1))
    edge = (DATA, DATA + PAGE, DATA + DATA_SIZE)[int(random.random() * 3)]
    return edge - int(random.random() * (size + 1))


def branch(random: Random, step: int) -> int | None:
    """How far a branch goes: mostly forward by a few steps, so to the end of most cases; None for anywhere."""
    if random.random() < 1 / 16:
        return None
    return step * (1 if random.random() < 0.5 else 1 + int(random.random() * 4))


def target(random: Random) -> int:
    """Where a jump to a register goes: mostly to the end of the case, at times beside it or anywhere."""
    chance = random.random()
    if chance < 0.8:
        return CODE + PAGE
    if chance < 0.95:
        return CODE + PAGE + int(random.random() * 5)  # not before: most that lie there never end
    return random.getrandbits(64)
