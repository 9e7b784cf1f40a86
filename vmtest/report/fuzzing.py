"""A run of instruction fuzzing, and its findings, as text and as lines of JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    from vmtest.fuzz.campaign import Report
    from vmtest.fuzz.finding import Finding

__all__ = ["as_line", "beginning", "heading", "noted", "summary", "summary_as_dict"]

SHOWN = 40
"""Clusters in the table at the end: the files have all of them."""


def heading(report: Report) -> str:
    """What is going to be run."""
    plan, excluded = report.plan, report.survey.excluded
    lines = [f"{name}: {what}" for name, what in report.executors.items()]
    if plan.names or excluded:
        left_out = sum(excluded.values())
        lines.append(
            f"{len(plan.names):,} forms of {plan.isa} are made" + (f"; {left_out:,} are not:" if left_out else "")
        )
        several = sorted(excluded.items(), key=lambda item: -item[1])
        lines += [f"  {number:5,}  {why}" for why, number in several[:6]]
        if rest := several[6:]:
            lines.append(f"  {sum(number for _, number in rest):5,}  for {len(rest)} other reasons of the kind")
    limit = f"{plan.seconds:g} s" if plan.seconds is not None else f"{plan.cases:,} cases"
    lines.append(f"seed {plan.seed}, {limit}, {plan.jobs} at a time")
    return "\n".join(lines)


def beginning(report: Report) -> dict[str, Any]:
    """The same for JSON."""
    plan = report.plan
    return {
        "isa": plan.isa,
        "seed": plan.seed,
        "seconds": plan.seconds,
        "cases": plan.cases,
        "jobs": plan.jobs,
        "length": plan.length,
        "sources": list(plan.sources),
        "executors": dict(report.executors),
        "forms": len(plan.names),
        "excluded": dict(report.survey.excluded),
    }


def noted(report: Report) -> str:
    """How far it is, in a line."""
    rate = report.cases / report.seconds if report.seconds else 0
    covered = f", {report.covered:,} of {len(report.plan.names):,} forms" if report.plan.names else ""
    deaths = f", {total} deaths" if (total := sum(report.deaths.values())) else ""
    return (
        f"{report.cases:,} cases, {rate:,.0f}/s, {len(report.findings)} clusters ({len(report.new)} new)"
        f"{deaths}{covered}"
    )


def summary(report: Report, folder: str) -> str:
    """What has come of it. ``folder`` is where the findings are."""
    lines = [f"{noted(report)}, {report.seconds:.0f} s" + (", interrupted" if report.interrupted else "")]
    lines.append(
        f"{report.compared:,} could be compared, {report.differing:,} of them differed; {report.alone:,} were run by"
        " fewer than two"
    )
    if report.limits or report.findings:
        lines.append("a case may differ in several ways, and is counted in each of them:")
    lines += [f"  {times:,} put down to a known limit: {what}" for what, times in report.limits.most_common()]
    if report.unclaimed:
        lines.append(f"  {report.unclaimed:,} differed over what an executor does not claim to have, and do not count")
    odd = Counter({key: times for key, times in report.statuses.items() if key[1] not in ("ok", "exception")})
    lines += [f"  {name}: {times:,} {status}" for (name, status), times in odd.most_common()]
    lines += [
        f"  {name}: died {times:,} times, also of cases that were made smaller"
        for name, times in report.deaths.items()
        if times
    ]
    if report.flaky:
        lines.append(
            f"  {len(report.flaky)} differed once, and not a second time on executors begun anew (flaky),"
            f" such as {report.flaky[0]:.100}"
        )
    if not report.findings:
        return "\n".join([*lines, "no difference" + (" until then" if report.interrupted else "")])
    kinds = Counter((finding.key.pair, finding.key.kind) for finding in report.findings.values())
    lines += [
        "",
        tabulate([(*key, number) for key, number in sorted(kinds.items())], ("who", "differs in", "clusters")),
    ]
    together = _together(report)
    if len(together) > 1:
        lines += ["", tabulate(together, ("who differ in the same form and kind", "forms and kinds"))]
    shown = sorted(report.new, key=lambda finding: (-finding.seen, finding.key))
    if shown:
        rows = [_row(finding) for finding in shown[:SHOWN]]
        lines += ["", tabulate(rows, ("who", "differs in", "form", "seen", "the smallest case", "verdict"))]
        if len(shown) > SHOWN:
            lines.append(f"... and {len(shown) - SHOWN} more")
        lines += ["", f"{len(shown)} new clusters, a file each in {folder}; vmtest replay FILE runs one again"]
    else:
        lines += ["", "no new cluster: all are in the baseline"]
    return "\n".join(lines)


def _together(report: Report) -> list[tuple[str, int]]:
    """In how many forms and kinds each set of executors differs: what one version has and another has not."""
    who: dict[tuple[str, str], set[str]] = {}
    for finding in report.findings.values():
        who.setdefault((finding.key.form, finding.key.kind), set()).add(finding.key.who)
    return Counter(" and ".join(sorted(names)) for names in who.values()).most_common()


def _row(finding: Finding) -> Sequence[Any]:
    case = str(finding.case).partition(" ")[2]
    shown = case if len(case) <= 60 else case[:57] + "..."
    verdict = finding.verdict.partition(": ")[0]
    return finding.key.pair, finding.key.kind, finding.key.form, finding.seen, f"{finding.text}: {shown}", verdict


def as_line(what: str, data: dict[str, Any]) -> str:
    """An event as a line of JSON."""
    return json.dumps({"event": what, **data})


def summary_as_dict(report: Report) -> dict[str, Any]:
    """For JSON."""
    statuses: dict[str, dict[str, int]] = {}
    for (name, status), times in sorted(report.statuses.items()):
        statuses.setdefault(name, {})[status] = times
    return {
        "isa": report.plan.isa,
        "seed": report.plan.seed,
        "seconds": round(report.seconds, 2),
        "interrupted": report.interrupted,
        "cases": report.cases,
        "compared": report.compared,
        "alone": report.alone,
        "differing": report.differing,
        "not claimed": report.unclaimed,
        "forms": {"made": len(report.plan.names), "covered": report.covered},
        "excluded": dict(report.survey.excluded),
        "limits": dict(report.limits),
        "statuses": statuses,
        "deaths": dict(report.deaths),
        "flaky": report.flaky,
        "clusters": [
            finding.key._asdict() | {"seen": finding.seen, "new": finding in report.new, "case": str(finding.case)}
            for finding in report.findings.values()
        ],
    }
