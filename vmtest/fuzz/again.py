"""Findings that are run again, and judged as they were when they were found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from vmtest.executors import fleet
from vmtest.forms import forms
from vmtest.fuzz.finding import Finding, Key
from vmtest.fuzz.judge import Judge, Verdict
from vmtest.fuzz.survey import survey
from vmtest.model.case import Case, Outcome

__all__ = ["Again", "again"]


class Again(NamedTuple):
    """What has come of a case. ``compared`` is how many could run it, and say that they have what it needs. ``keys``
    are those of its clusters that are the finding's, and ``others`` the rest; ``limits`` is what is put down to known
    limits. ``blind`` are as Fleet has them.
    """

    outcomes: Mapping[str, Outcome]
    compared: int
    keys: Sequence[Key]
    others: Sequence[Key]
    limits: Sequence[str]
    blind: Mapping[str, Collection[str]]


def again(findings: Sequence[tuple[Finding, Case]], names: Sequence[str]) -> list[Again]:
    """Each finding's case on these executors, which are started once for all. The cases are of one instruction set.

    Raises UsageError and HostError.
    """
    cases = [case for _, case in findings]
    known = forms(cases[0].isa.name)
    having = {one.form for case in cases for one in known.decode(case.code, case.start)}
    with fleet(names, cases[0].isa) as several:
        judge = Judge(several, survey(several, [name for name in known.names if name in having]))
        blind, labels, found = several.blind, {*several.labels.values()}, []
        for finding, case in findings:
            several.renew()  # as it was found: what one remembers of other cases is no difference
            said = {name: outcome for name, (outcome,) in several.run([case]).items()}
            found.append(_again(finding.key, said, judge.judge(case, said), labels, blind))
    return found


def _again(
    key: Key,
    outcomes: Mapping[str, Outcome],
    verdict: Verdict,
    labels: Collection[str],
    blind: Mapping[str, Collection[str]],
) -> Again:
    # On other executors, or other versions of them, it is the same where the same of the same form differs.
    same = key if {key.who, key.against} <= {*labels} else key[:3]
    keys = [other for other in verdict.keys if other[: len(same)] == same]
    others = [other for other in verdict.keys if other not in keys]
    counting = [
        name
        for name in verdict.compared
        if name not in verdict.unclaimed and (key.kind == "decoding" or outcomes[name].status != "decoded")
    ]
    return Again(outcomes, len(counting), keys, others, [row.what for row in verdict.limits], blind)
