"""Outcomes of a case as a table, an executor a column."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tabulate import tabulate

from vmtest.compare.outcomes import Aspect, aspects, left_undefined, verdict
from vmtest.forms import forms
from vmtest.model.case import Case, Outcome

__all__ = ["as_dict", "side_by_side"]


def side_by_side(
    case: Case, outcomes: Mapping[str, Outcome], blind: Mapping[str, Collection[str]] | None = None
) -> tuple[str, bool]:
    """The table of what changes or differs, and whether a difference counts. ``blind`` as for ``aspects``."""
    rows = aspects(case, outcomes, blind)
    shown = [_cells(row, outcomes) for row in rows if row.name == "status" or row.changes or row.differs]
    known, lines = forms(case.isa.name), [str(case)]
    lines.append("; ".join(known.text(case.code, case.start)))
    undefined = [f"{name} {_bits(case, name, mask)}" for name, mask in left_undefined(case, outcomes).items()]
    if undefined:
        lines.append(f"left undefined by the manual, and not compared: {', '.join(undefined)}")
    lines += ["", tabulate(shown, headers=("", "began", *outcomes), disable_numparse=True), ""]
    excused = dict[str, list[str]]()
    for row in rows:
        if row.differs and row.excused:
            excused.setdefault(row.excused, []).append(row.name)
    lines += [f"not counted, {' '.join(names)}: {why}" for why, names in excused.items()]
    said = verdict(rows)
    compared = sum(outcome.status != "unsupported" for outcome in outcomes.values())
    lines.append(said or ("no difference" if compared > 1 else "nothing to compare it with"))
    return "\n".join(lines), bool(said)


def as_dict(
    case: Case, outcomes: Mapping[str, Outcome], blind: Mapping[str, Collection[str]] | None = None
) -> dict[str, Any]:
    """The same for JSON: ``rows`` are those that differ, by executor, each with why it does not count, where it does
    not; ``undefined`` are the bits that are not compared.
    """
    rows = aspects(case, outcomes, blind)
    said = verdict(rows)
    return {
        "case": str(case),
        "text": forms(case.isa.name).text(case.code, case.start),
        "differs": bool(said),
        "verdict": said,
        "rows": [
            {"name": row.name, "began": row.began, "values": dict(row.values), "excused": row.excused}
            for row in rows
            if row.differs
        ],
        "undefined": {name: _bits(case, name, mask) for name, mask in left_undefined(case, outcomes).items()},
        "outcomes": {name: outcome.as_dict(case.isa) for name, outcome in outcomes.items()},
    }


def _bits(case: Case, name: str, mask: int) -> str:
    if name not in case.isa.places:
        return ""
    place = case.isa.places[name]
    return f"{mask % (1 << 8 * (place.stop - place.start)):#x}"


def _cells(row: Aspect, outcomes: Mapping[str, Outcome]) -> list[str]:
    mark = "!= " if row.differs and not row.excused else ""
    said = {who: outcomes[who].status if row.name == "status" else "" for who in row.values}
    values = [value for value in row.values.values() if value is not None]
    places = enumerate(zip(*values, strict=False))
    alike = next((at for at, several in places if len(set(several)) > 1), min(map(len, values), default=0))
    cells = [said[who] if value is None else _cut(value, alike) for who, value in row.values.items()]
    return [mark + row.name, row.began, *cells]


def _cut(value: str, alike: int, width: int = 64) -> str:
    """Of a long value the part from a little before ``alike``, where it begins to differ from another's."""
    if len(value) <= width:
        return value
    begin = max(0, alike - width // 2)
    return ("…" if begin else "") + value[begin : begin + width] + ("…" if begin + width < len(value) else "")
