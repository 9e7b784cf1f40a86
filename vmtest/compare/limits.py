"""What an executor is known not to do at all, whatever the instruction: differences that follow from it are counted and
named, and make no cluster. A difference is only put down to a limit where the other one did what the manual says.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmtest.compare import limits_other, limits_x86
from vmtest.compare.limit import STATE, Limit
from vmtest.compare.pairs import Difference
from vmtest.forms import forms
from vmtest.model.case import Case, Outcome

__all__ = ["LIMITS", "Limit", "limit"]

LIMITS = (*limits_x86.ROWS, *limits_other.ROWS)


def limit(case: Case, found: Difference, pair: tuple[str, str], outcomes: tuple[Outcome, Outcome]) -> Limit | None:
    """The limit of one of the two executors that a difference between them follows from, None where there is none. Of
    several that together explain all bits that differ it is the last one.
    """
    causes = forms(case.isa.name).causes(case)
    kinds = {register.name: register.kind for register in case.isa.registers}
    differing = {name: bits for name, bits in found.bits if kinds[name] == found.kind}
    left = [dict(differing), dict(differing)]
    for row in LIMITS:
        if not case.isa.name.startswith(row.isa) or found.kind not in row.kinds:
            continue
        if row.cause and row.cause not in causes:
            continue
        for mine, name in enumerate(pair):
            one, other = outcomes[mine], outcomes[1 - mine]
            if row.executor not in ("", name.partition(":")[0]) or not _follows(row, case, found, one, other):
                continue
            if not row.lacks and not row.extra:
                return row
            before, left[mine] = left[mine], _unexplained(row, case, left[mine], one, other)
            if before and not left[mine]:
                return row
    return None


def _follows(row: Limit, case: Case, found: Difference, mine: Outcome, other: Outcome) -> bool:
    """Whether the two outcomes, of which the other is to be as the manual says, are what the limit leads to."""
    if row.at_the_end and case.end not in (mine.address, other.address):
        return False
    if row.further and (other.end is None or mine.end != other.end + row.further):
        return False
    if row.vectors and (other.status != "exception" or other.vector not in row.vectors):
        return False
    if row.error and not (other.error or 0) & ~(mine.error or 0) & row.error:
        return False
    if row.told and not any(_lacking(case, mine, other, name) & bits for name, bits in row.told.items()):
        return False
    return not row.tainted or _is_tainted(case, found)


def _lacking(case: Case, mine: Outcome, other: Outcome, register: str) -> int:
    """The bits that the other one has set in a register, and mine has not."""
    if not mine.state or not other.state:
        return 0
    place = case.isa.places[register]
    one, two = (int.from_bytes(outcome.state[place], "little") for outcome in (mine, other))
    return two & ~one


def _unexplained(row: Limit, case: Case, differing: Mapping[str, int], mine: Outcome, other: Outcome) -> dict[str, int]:
    """By register, the bits that differ and are not those that the row has, or not in its direction."""
    found = {}
    for name, bits in differing.items():
        lacks = row.lacks.get(name, 0) & _lacking(case, mine, other, name)
        if left := bits & ~(lacks | row.extra.get(name, 0) & _lacking(case, other, mine, name)):
            found[name] = left
    return found


def _is_tainted(case: Case, found: Difference) -> bool:
    """Whether it differs in nothing but what goes by undefined flags."""
    tainted = forms(case.isa.name).tainted(case)
    if found.kind not in STATE:
        return "end" in tainted
    if found.kind == "memory" and "memory" not in tainted:
        return False
    return not any(bits & ~tainted.get(name, 0) for name, bits in found.bits)
