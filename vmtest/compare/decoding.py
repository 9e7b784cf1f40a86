"""Decoders against what really happened: where instructions begin, and which bytes are one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from vmtest.forms import BAD, forms
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import PAGE

__all__ = ["decoding"]

COMPLETE, REFUSED, INVALID, CUT, VALID = "complete", "refused", "invalid", "cut off", "valid"

TELLS_NO_PLACE = {("unicorn", "riscv64"), ("unicorn", "riscv32"), ("unicorn", "mips32")}
"""Executors that tell of an exception the place behind it (unicorn-engine/unicorn#1990)."""


class Seen(NamedTuple):
    """What an executor, or a decoder, says of the byte ``at`` that place in the code."""

    kind: str
    at: int

    def __str__(self) -> str:
        return self.kind if self.kind == COMPLETE else f"{self.kind} at +{self.at:#x}"


def decoding(case: Case, outcomes: Mapping[str, Outcome]) -> dict[str, str | None]:
    """By executor, what it says of the case's bytes; a decoder that does not contradict what happened says the same.

    What happened is told by the first that has run the case. None is one who says nothing of it.
    """
    ran = {who: _happened(who, case, outcome) for who, outcome in outcomes.items() if outcome.status != "decoded"}
    happened = next((seen for seen in ran.values() if seen is not None), None)
    values: dict[str, str | None] = {}
    for who, outcome in outcomes.items():
        if outcome.status != "decoded":
            values[who] = str(happened) if ran[who] is not None and ran[who] == happened else None
        elif happened is None:
            values[who] = _sizes(case, outcome)
        else:
            values[who] = _sizes(case, outcome) if contradicts(case, outcome, happened) else str(happened)
    return values


def _happened(who: str, case: Case, outcome: Outcome) -> Seen | None:
    """What an executor has shown of the code, None for nothing."""
    end = case.isa.code + PAGE
    if outcome.status == "ok":
        return Seen(COMPLETE, len(case.code)) if outcome.end == end else None
    if outcome.status != "exception" or outcome.end is None or (who.partition(":")[0], case.isa.name) in TELLS_NO_PLACE:
        return None
    if not case.start <= outcome.end < end:
        return None
    at = outcome.end - case.start
    if outcome.address == end:
        return Seen(CUT, at)
    return Seen(REFUSED if outcome.vector == case.isa.illegal else VALID, at)


def _stop(case: Case, outcome: Outcome) -> Seen:
    """Where a decoder has come to."""
    assert outcome.end is not None
    at = outcome.end - case.start
    if at == len(case.code):
        return Seen(COMPLETE, at)
    return Seen(INVALID if outcome.address is None else CUT, at)


def contradicts(case: Case, outcome: Outcome, happened: Seen) -> bool:
    """Whether a decoder says what cannot be, from what happened.

    Where the code may jump only its first instruction is known to have run. What is no instruction and what is cut
    off are one to a decoder: the manuals do not say which comes first.
    """
    stop, at = _stop(case, outcome), happened.at
    if forms(case.isa.name).jumps(case):
        if happened.kind == COMPLETE:
            return stop.at == 0
        if at:
            return False
    if happened.kind == COMPLETE:
        return stop.kind != COMPLETE
    if not (outcome.begins >> at & 1 or stop.at == at):
        return True  # to it that is the middle of an instruction, or it has given up before
    if happened.kind == VALID:
        return stop.at == at
    if happened.kind == REFUSED and not _is_bad(case, at):
        return False  # an instruction that this CPU does not have, or one that is there to be refused
    return stop.at != at


def _is_bad(case: Case, at: int) -> bool:
    """Whether there is no instruction by the manual, as far as one is known."""
    first = forms(case.isa.name).decode(case.code[at:], case.start + at)[0]
    return first.form.startswith((BAD, "?"))


def _sizes(case: Case, outcome: Outcome) -> str:
    """What a decoder says in full: each instruction's bytes, and what it stopped at."""
    stop = _stop(case, outcome)
    places = [at for at in range(len(case.code)) if outcome.begins >> at & 1] + [stop.at]
    sizes = "+".join(str(after - at) for at, after in pairwise(places))
    return " ".join([*([f"{sizes} bytes,"] if sizes else []), str(stop)])
