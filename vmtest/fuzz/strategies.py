"""Strategies for hypothesis on the same tables that cases are made from: instructions, states, and cases of both.

>>> @given(instructions("x86_64", max_size=4), states("x86_64"))
... def test_my_emulator(code, state): ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from hypothesis import strategies as st

from vmtest.devices.access import Access
from vmtest.devices.target import Target
from vmtest.errors import UsageError
from vmtest.forms import Draft, forms
from vmtest.fuzz.generate import EDGES, select
from vmtest.fuzz.sequences import Drawer
from vmtest.model.case import Case
from vmtest.model.isa import DATA_SIZE, Isa, Register, isa

__all__ = ["accesses", "cases", "instructions", "states"]

MOST = 6
"""Registers that a state sets at most."""


def instructions(isa_name: str, *, max_size: int = 1, forms: str | None = None) -> st.SearchStrategy[bytes]:
    """Code of one to ``max_size`` instructions, which shrinks to fewer and simpler ones.

    ``forms`` are patterns of their forms or extensions, such as ``"*cmpxchg*,BMI2"``; by default all that do not tell
    the time or the machine. Raises UsageError for an unknown instruction set, and a pattern that matches nothing.
    """
    return _drafts(isa_name, max_size, forms).map(lambda draft: draft.code)


def accesses(target: Target) -> st.SearchStrategy[list[Access]]:
    """Sequences of operations on a device, by what is known of it, which shrink to fewer and simpler ones. What makes
    the machine ready for them is ``target.begin``; where its registers are is not changed.
    """
    return _sequences(Drawer(replace(target, functions=())))


@st.composite
def _sequences(draw: st.DrawFn, drawer: Drawer) -> list[Access]:
    return drawer.sequence(_Drawn(draw))


class _Drawn(Random):
    """Numbers that hypothesis draws: evenly, which its own strategy of Randoms does not, and the least is simplest."""

    def __init__(self, draw: st.DrawFn) -> None:
        super().__init__(0)
        self._draw = draw

    def random(self) -> float:
        return self._draw(_SIXTEEN_BITS) / (1 << 16)

    def getrandbits(self, k: int) -> int:
        return self._draw(st.integers(0, (1 << k) - 1))


_SIXTEEN_BITS = st.integers(0, (1 << 16) - 1)


def states(isa_name: str) -> st.SearchStrategy[Mapping[str, int]]:
    """What registers begin with, by name: a few that are not the default ones, and their values, edges more often than
    others. It shrinks to fewer registers and smaller values. ``vmtest.model.isa.isa(NAME).state(...)`` has all of them.
    """
    row = isa(isa_name)
    registers = st.sampled_from([register for register in row.registers if register.kind != "fp status"])
    return st.lists(registers, max_size=MOST, unique_by=lambda register: register.name).flatmap(
        lambda several: _values(row, several)
    )


def cases(isa_name: str, *, max_size: int = 1, forms: str | None = None) -> st.SearchStrategy[Case]:
    """Cases: instructions, a state in which their addresses are good ones, and something in memory there."""
    row = isa(isa_name)
    memory = st.lists(st.tuples(st.integers(0, DATA_SIZE - 16), st.binary(min_size=1, max_size=16)), max_size=2)

    def put_together(draft: Draft, values: Mapping[str, int], patches: list[tuple[int, bytes]]) -> Case:
        places = [value - row.data for value in draft.registers.values() if 0 <= value - row.data < DATA_SIZE - 16]
        moved = [(place, data) for place, (_, data) in zip(places, patches, strict=False)] or patches
        state = row.state({**values, **draft.registers})
        return Case(isa=row, code=draft.code, state=state, memory=tuple(moved))

    return st.builds(put_together, _drafts(isa_name, max_size, forms), states(isa_name), memory)


def _drafts(isa_name: str, max_size: int, patterns: str | None) -> st.SearchStrategy[Draft]:
    row, known = isa(isa_name), forms(isa_name)
    names = select(row, patterns)
    if not names:
        raise UsageError(f"there is no table of the forms of {isa_name}")
    # hypothesis draws what the table draws at random, and so can shrink it.
    one = st.builds(known.make, st.randoms(use_true_random=False), st.sampled_from(names))

    def put_together(drafts: list[Draft]) -> Draft:
        code, registers = b"", dict[str, int]()
        for draft in drafts:
            if len(code) + len(draft.code) <= row.code_most:
                code, registers = code + draft.code, {**registers, **draft.registers}
        return Draft(code, registers)

    return st.lists(one, min_size=1, max_size=max_size).map(put_together)


def _values(row: Isa, registers: list[Register]) -> st.SearchStrategy[Mapping[str, int]]:
    return st.fixed_dictionaries({register.name: _value(row, register) for register in registers})


def _value(row: Isa, register: Register) -> st.SearchStrategy[int]:
    most = (1 << 8 * register.size) - 1
    mask, kept = row.fixed.get(register.name, (0, 0))
    edges = st.sampled_from(sorted({edge & most for edge in EDGES}))
    return st.one_of(edges, st.integers(0, most)).map(lambda value: value & ~mask | kept)
