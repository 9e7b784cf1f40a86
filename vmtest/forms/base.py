"""What can be known of an instruction set, and what is said where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from vmtest.model.case import Case
from vmtest.model.isa import Isa

__all__ = ["Draft", "Forms", "Instruction"]

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
        raise NotImplementedError

    def decode(self, code: bytes, start: int = 0) -> list[Instruction]:
        """The instructions that the code has, to its end; one that is cut off is bad, as is all behind it."""
        return [Instruction("?", len(code))]

    def text(self, code: bytes, start: int = 0) -> list[str]:
        """Each as people write it, such as "blsr rax,rbx"."""
        return [code.hex()]

    def features(self, name: str) -> frozenset[str]:
        """Which extensions of the instruction set a form needs."""
        return frozenset()

    def banned(self, name: str) -> str:
        """Why a form is not made unless it is asked for, such as that it tells the time; "" where it is."""
        return ""

    def privileged(self, case: Case) -> bool:
        """Whether an instruction of the case is not for user mode."""
        return False

    def undefined(self, case: Case) -> Mapping[str, int]:
        """By register, the bits that the manual leaves undefined after the case."""
        return {}

    def rule(self, name: str, kind: str) -> str:
        """What the manual says of a form, where a difference of that kind is judged by it; "" where that is not
        known.
        """
        return ""
