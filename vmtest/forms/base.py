"""What can be known of an instruction set, and what is said where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from random import Random
from typing import NamedTuple

from vmtest.model.case import Case, Outcome
from vmtest.model.isa import Isa

__all__ = ["BAD", "Draft", "Forms", "Instruction"]

BAD = "(bad)"
"""The form, and the text, of what is no instruction."""


class Instruction(NamedTuple):
    """One that has been decoded: its form and how many bytes it has. What is none has the form BAD."""

    form: str
    size: int


class Draft(NamedTuple):
    """One that has been made: its code, and what registers must hold for it to do something, such as an address."""

    code: bytes
    registers: Mapping[str, int]


class Forms:
    """The forms of one instruction set. This class knows none: its subclasses do.

    ``names`` are all forms that can be made, in an order that does not change.
    """

    names: tuple[str, ...] = ()

    def __init__(self, isa: Isa) -> None:
        self.isa = isa

    def make(self, random: Random, name: str) -> Draft:
        """An instruction of that form, all else drawn: operands, prefixes, values at the boundaries more often than
        others. The same ``random`` makes the same.
        """
        raise LookupError(f"{self.isa.name} has no form {name!r}")

    def decode(self, code: bytes, start: int = 0) -> list[Instruction]:
        """The instructions that the code has, to its end; one that is cut off is bad, as is all behind it."""
        return [Instruction("?", len(code))]

    def text(self, code: bytes, start: int = 0) -> list[str]:
        """Each as people write it, such as "blsr rax,rbx"."""
        return [code.hex()]

    def features(self, name: str) -> frozenset[str]:
        """Which extensions of the instruction set a form needs."""
        return frozenset()

    def probes(self) -> list[Case]:
        """Cases whose outcomes tell which extensions an executor has: some instructions of each."""
        random, found = Random(0), list[Case]()
        for name in self._probed:
            draft = self.make(random, name)
            found.append(Case(isa=self.isa, code=draft.code, state=self.isa.state(draft.registers)))
        return found

    def said(self, outcomes: Sequence[Outcome]) -> frozenset[str]:
        """The extensions that the outcomes of ``probes`` show: those of which an instruction is not refused."""
        ran = zip(self._probed, outcomes, strict=True)
        return frozenset(
            feature
            for name, outcome in ran
            if outcome.status == "ok"
            or (outcome.status == "exception" and outcome.vector not in (None, self.isa.illegal))
            for feature in self.features(name)
        )

    @cached_property
    def _probed(self) -> list[str]:
        """Up to some forms of each set of extensions, several times each: a draw may be refused for another reason."""
        by_features: dict[frozenset[str], list[str]] = {}
        for name in self.names:
            if not self.banned(name):
                by_features.setdefault(self.features(name), []).append(name)
        return [name for names in by_features.values() for name in names[:4] for _ in range(4)]

    def banned(self, name: str) -> str:
        """Why a form is not made unless it is asked for, such as that it tells the time; "" where it is."""
        return ""

    def privileged(self, case: Case) -> bool:
        """Whether an instruction of the case is not for user mode."""
        return False

    def jumps(self, case: Case) -> bool:
        """Whether an instruction of the case may go on elsewhere than behind itself; also where that is not known."""
        return True

    def causes(self, case: Case) -> frozenset[str]:
        """What of the case may lead to an exception that not every executor knows: words that vmtest.compare.limits
        has, such as "misaligned".
        """
        return frozenset()

    def undefined(self, case: Case, done: int | None = None) -> Mapping[str, int]:
        """By register, the bits that the manual leaves undefined after the first ``done`` bytes of the case, or after
        all of it; "memory" is what it has written. Where a jump may have left some out, also those undefined without.
        """
        return {}

    def tainted(self, case: Case) -> Mapping[str, int]:
        """By register, the bits that go by flags which the case leaves undefined; "memory" is what it writes, "end"
        where it goes and whether it fails.
        """
        return {}

    def alike(self, case: Case, register: str, one: int, other: int) -> bool:
        """Whether the manual allows both of two values that a register holds after the case."""
        return False

    def rule(self, name: str, kind: str) -> str:
        """What the manual says of a form, where a difference of that kind is judged by it; "" where that is not
        known.
        """
        return ""
