"""The outcomes of one case by several executors, put side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from vmtest.compare.decoding import decoding
from vmtest.compare.pairs import masked_error, undefined_after
from vmtest.forms import forms
from vmtest.model.case import Case, Outcome

__all__ = ["Aspect", "aspects", "left_undefined", "verdict"]


@dataclass(frozen=True, kw_only=True)
class Aspect:
    """One thing that executors tell of a case: by executor what each says, None where it says nothing of it.

    ``began`` is what it was before. ``excused`` is why a difference in it does not count, "" where it does.
    """

    name: str
    began: str
    values: Mapping[str, str | None]
    excused: str = ""

    @property
    def differs(self) -> bool:
        """Whether two executors say different things of it."""
        return len({value for value in self.values.values() if value is not None}) > 1

    @property
    def changes(self) -> bool:
        """Whether an executor says of it anything but what it was before."""
        return any(value not in (None, self.began) for value in self.values.values())


def aspects(
    case: Case, outcomes: Mapping[str, Outcome], blind: Mapping[str, Collection[str]] | None = None
) -> list[Aspect]:
    """All that can be compared of a case: how it ended, the exception, each register, what was written.

    What an executor cannot run or does not tell is no difference to what others say; ``blind`` are, by executor, the
    groups of registers that it does not tell.
    """
    known, blind = forms(case.isa.name), blind or {}
    beyond = "an instruction of ring 0: not all run it there" if known.privileged(case) else ""
    able = _able(outcomes)
    # The registers of one that has come to another end are not comparable: how it ended says it all.
    alike = _ended_alike(outcomes, able)
    undefined = left_undefined(case, outcomes)

    def row(
        name: str,
        began: str,
        said: Callable[[Outcome], str | None],
        excused: str = "",
        who: Collection[str] = able,
        group: str = "",
    ) -> Aspect:
        telling = {name for name in who if not group or group not in blind.get(name, ())}
        values = {name: said(outcome) if name in telling else None for name, outcome in outcomes.items()}
        return Aspect(name=name, began=began, values=values, excused=excused or beyond)

    rows = [Aspect(name="status", began="", values={who: _status(o) for who, o in outcomes.items()}, excused=beyond)]
    rows.append(row("exception", "", lambda o: None if o.status == "ok" or o.vector is None else str(o.vector)))
    rows.append(row("error code", "", lambda o: _hex(masked_error(case.isa.name, o))))
    rows.append(row("address", "", lambda o: _hex(o.address)))
    rows.append(row("end", "", lambda o: _place(o.end, case.start)))
    if any(outcome.status == "decoded" for outcome in outcomes.values()):
        rows.append(Aspect(name="decoding", began="", values=decoding(case, outcomes)))
    if not alike:
        return rows
    for register in case.isa.registers:
        place, mask = case.isa.places[register.name], ~undefined.get(register.name, 0)

        def value(state: bytes, place: slice = place, mask: int = mask) -> str:
            return f"{int.from_bytes(state[place], 'little') & mask:#x}"

        def said(outcome: Outcome, value: Callable[[bytes], str] = value) -> str:
            return value(outcome.state)

        found = row(register.name, value(case.state), said, who=alike, group=register.group)
        numbers = [int(value, 16) for value in found.values.values() if value is not None]
        if found.differs and all(known.alike(case, register.name, numbers[0], other) for other in numbers[1:]):
            found = replace(found, excused="the manual allows both values")
        rows.append(found)
    why = "the manual leaves it undefined" if "memory" in undefined else ""
    rows.append(row("written", "", _written, why, alike))
    return rows


def left_undefined(case: Case, outcomes: Mapping[str, Outcome]) -> Mapping[str, int]:
    """By register, the bits that the manual leaves undefined where those that are compared have ended."""
    ends = (outcomes[who].end for who in _ended_alike(outcomes, _able(outcomes)))
    return undefined_after(case, next((end for end in ends if end is not None), None))


def _able(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Those that came to an end."""
    return [who for who, outcome in outcomes.items() if outcome.status in ("ok", "exception")]


def _ended_alike(outcomes: Mapping[str, Outcome], able: Sequence[str]) -> Sequence[str]:
    """Those that came to the same end as the first of them, whom we believe; where that was alone, the most that did so
    together. None where no two did, and others tried. One that does not tell where it was goes with all.
    """
    groups = []
    for which in able:
        status, end = outcomes[which].status, outcomes[which].end
        groups.append([who for who in able if outcomes[who].status == status and outcomes[who].end in (None, end)])
    most = max(groups, key=lambda group: (len(group) > 1 and group[0] == able[0], len(group)), default=[])
    return most if len(most) > 1 or len(able) == 1 else []


def _written(outcome: Outcome) -> str:
    return " ".join(f"[{at:#x}]={data.hex()}" for at, data in outcome.writes)


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def _place(address: int | None, start: int) -> str | None:
    """Relative to the first instruction, where it is behind that."""
    if address is None:
        return None
    return f"+{address - start:#x}" if start <= address <= start + 64 else f"{address:#x}"


def _status(outcome: Outcome) -> str | None:
    if outcome.status in ("unsupported", "decoded"):
        return None
    if outcome.status != "died":
        return outcome.status
    return f"died of signal {outcome.signal}" if outcome.signal else "died of an error"


def verdict(rows: list[Aspect]) -> str:
    """In a line: what differs, and who stands alone against all others; "" where nothing does that counts."""
    found = [row for row in rows if row.differs and not row.excused]
    if not found:
        return ""
    alone: Counter[str] = Counter()
    for row in found:
        said = Counter(value for value in row.values.values() if value is not None)
        singles = [who for who, value in row.values.items() if value is not None and said[value] == 1]
        if len(singles) == 1 and len(said) == 2 and sum(said.values()) > 2:
            alone[singles[0]] += 1
    what = ", ".join(row.name for row in found)
    who = next((who for who, times in alone.items() if times == len(found)), None)
    return f"{who} stands alone: {what}" if who else f"they differ: {what}"
