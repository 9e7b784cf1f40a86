"""Two outcomes of one case: whether they differ, and in what that says something.

What does not count is data: the bits that the manual leaves undefined (vmtest.forms), the registers that an executor
does not have (Row.blind), and MASKED.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from itertools import groupby
from typing import NamedTuple

from vmtest.forms import forms
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import Isa, isa

__all__ = ["KINDS", "MASKED", "Difference", "beyond", "difference", "masked_error", "undefined_after"]

KINDS = (
    "died", "timeout", "exception", "error code", "address", "end", "memory", "registers", "vectors", "x87", "flags",
    "fp status", "decoding",
)  # fmt: skip
"""What can differ, the first that does being what a difference is called: those behind it follow from it."""

MASKED: Mapping[tuple[str, int], int] = {
    # Intel SDM, volume 3, section 4.7: of a page fault's error code, P, U/S and I/D tell of the page tables and the
    # ring, which executors do not share; W/R is the instruction's.
    ("x86_64", 14): 2,
    ("x86_32", 14): 2,
    ("x86_16", 14): 2,
}
"""By instruction set and vector, the bits of an error code that are compared: all, where it is not here."""


class Difference(NamedTuple):
    """``kind`` is of KINDS. ``bits`` are all registers that differ, each with the bits in which it does: those that
    count.
    """

    kind: str
    bits: tuple[tuple[str, int], ...] = ()


def masked_error(name: str, outcome: Outcome) -> int | None:
    """The error code, as far as it is compared."""
    if outcome.error is None or outcome.vector is None:
        return None
    return outcome.error & MASKED.get((name, outcome.vector), -1)


@cache
def _runs(name: str) -> tuple[tuple[str, str, slice], ...]:
    """The stretches of a state that are of one kind and group, in the order in which they are told."""
    row = isa(name)
    found = []
    for (kind, group), registers in groupby(row.registers, key=lambda register: (register.kind, register.group)):
        several = list(registers)
        place = slice(row.places[several[0].name].start, row.places[several[-1].name].stop)
        found.append((kind, group, place))
    return tuple(sorted(found, key=lambda run: KINDS.index(run[0])))


def difference(case: Case, one: Outcome, other: Outcome, blind: Collection[str] = ()) -> Difference | None:
    """What differs, and None where nothing does that counts. ``blind`` are the groups of registers that one of the two
    executors does not tell.

    What one cannot run or does not tell is no difference, nor what a decoder says: that is for vmtest.compare.decoding.
    """
    if one == other or {"unsupported", "decoded"} & {one.status, other.status}:
        return None
    if one.status != other.status:
        ended = next((kind for kind in ("died", "timeout") if kind in (one.status, other.status)), "exception")
        return Difference(ended)
    if one.status in ("died", "timeout"):
        return None
    said = (
        ("exception", one.vector, other.vector),
        ("error code", masked_error(case.isa.name, one), masked_error(case.isa.name, other)),
        ("address", one.address, other.address),
        ("end", one.end, other.end),
    )
    for kind, mine, its in said:
        if mine is not None and its is not None and mine != its:
            return Difference(kind)
    if one.writes == other.writes and one.state == other.state:
        return None
    undefined = undefined_after(case, one.end if other.end is None else other.end)
    found = _registers(case, one.state, other.state, undefined, blind)
    bits = tuple((name, bits) for _, name, bits in found)
    if one.writes != other.writes and "memory" not in undefined:
        return Difference("memory", bits)
    return Difference(found[0][0], bits) if found else None


def beyond(case: Case, found: Difference) -> Difference | None:
    """What differs besides the kind that a difference is called by; None where that is all."""
    kinds = {register.name: register.kind for register in case.isa.registers}
    left = tuple((name, bits) for name, bits in found.bits if kinds[name] != found.kind)
    return Difference(kinds[left[0][0]], left) if left else None


def undefined_after(case: Case, end: int | None) -> Mapping[str, int]:
    """By register, the bits that are undefined by the instructions before ``end``, where that is in the case; else by
    all of it.
    """
    done = (end or 0) - case.start
    return forms(case.isa.name).undefined(case, done if 0 <= done < len(case.code) else None)


def _registers(
    case: Case, one: bytes, other: bytes, undefined: Mapping[str, int], blind: Collection[str]
) -> list[tuple[str, str, int]]:
    """Of each register that differs its kind, its name, and in which bits."""
    found = []
    for kind, group, place in _runs(case.isa.name):
        if group in blind or one[place] == other[place]:
            continue
        for name in _within(case.isa, place):
            mine, its = (int.from_bytes(state[case.isa.places[name]], "little") for state in (one, other))
            bits = (mine ^ its) & ~undefined.get(name, 0)
            if bits and not forms(case.isa.name).alike(case, name, mine, its):
                found.append((kind, name, bits))
    return found


def _within(row: Isa, place: slice) -> list[str]:
    return [name for name, at in row.places.items() if place.start <= at.start < place.stop]
