"""Outcomes of a case as a table, an executor a column."""

from __future__ import annotations

from collections.abc import Mapping

from tabulate import tabulate

from vmtest.compare.outcomes import Aspect, aspects, verdict
from vmtest.forms import x86
from vmtest.model.case import Case, Outcome

__all__ = ["side_by_side"]


def side_by_side(case: Case, outcomes: Mapping[str, Outcome]) -> tuple[str, bool]:
    """The table of what changes or differs, and whether a difference counts."""
    rows = aspects(case, outcomes)
    shown = [_cells(row) for row in rows if row.name == "status" or row.changes or row.differs]
    lines = [str(case)]
    if case.isa.name == "x86_64":
        lines.append("; ".join(x86.disassembly(case)))
        if undefined := x86.undefined_flags(case):
            lines.append(f"flags left undefined by the manual, and not compared: {undefined:#x}")
    lines += ["", tabulate(shown, headers=("", "began", *outcomes), disable_numparse=True), ""]
    excused = {row.excused: row.name for row in rows if row.differs and row.excused}
    lines += [f"not counted, {name}: {why}" for why, name in excused.items()]
    said = verdict(rows)
    compared = sum(outcome.status != "unsupported" for outcome in outcomes.values())
    lines.append(said or ("no difference" if compared > 1 else "nothing to compare it with"))
    return "\n".join(lines), bool(said)


def _cells(row: Aspect) -> list[str]:
    mark = "!= " if row.differs and not row.excused else ""
    blank = "unsupported" if row.name == "status" else ""
    return [mark + row.name, row.began, *(blank if value is None else value for value in row.values.values())]
