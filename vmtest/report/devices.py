"""A run on a device, for people and for programs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from vmtest.devices.models import models
from vmtest.devices.reproducer import Reproducer
from vmtest.devices.survey import Row
from vmtest.fuzz.device import Report

__all__ = ["as_dict", "heading", "noted", "summary", "survey_table"]


def heading(report: Report, version: str) -> str:
    """What is worked on, before anything is."""
    areas = [
        (area.name, f"{area.address:#x}", f"{area.size:#x}", "ports" if area.is_port else "memory")
        for area in report.target.areas
    ]
    shown = areas if len(areas) <= 12 else areas[:10]
    lines = [f"{report.target.name}, {version}", tabulate(shown, ("registers", "address", "size", "in"))]
    lines += [f"... and {len(areas) - len(shown)} more"] if len(shown) < len(areas) else []
    known = sorted({model.name for model, _ in models(report.target.areas)})
    lines += [f"known here: {', '.join(known)}" if known else "no model knows it: its registers are tried blindly"]
    return "\n".join([*lines, f"seed {report.seed}", ""])


def noted(report: Report) -> str:
    """How far it has come, in a line."""
    rate = report.operations / max(report.fuzzing, 0.001)
    words = [f"{report.operations:,} operations", f"{rate:,.0f}/s", f"{report.sequences:,} sequences"]
    words += [f"{report.resets:,} resets", f"{report.events} kinds of events", f"{report.corpus:,} sequences kept"]
    crashes = len(report.crashes)
    words += [f"{crashes} crash{'' if crashes == 1 else 'es'}", f"{report.ends} ends of QEMU"]
    return ", ".join([*words, f"{report.seconds:.0f} s", *filter(None, [report.doing])])


def summary(report: Report, folder: Path, kept: Collection[Path] = ()) -> str:
    """What has come of it; ``kept`` are files of earlier runs that have the same crash by fewer operations."""
    lines = ["", noted(report)]
    if report.shrinking >= 1:
        lines.append(f"beside it {report.shrinking:.0f} s to confirm crashes and make them smaller")
    if report.clean:
        lines.append(f"{report.clean} times QEMU ended in order, which is no crash")
    if report.unconfirmed:
        said = ", ".join(sorted(report.unconfirmed))
        lines.append(f"{len(report.unconfirmed)} did not come again on a QEMU that was just started: {said}")
    if others := _others(report):
        said = ", ".join(f"{key} ({times} times)" for key, times in others.items())
        lines.append(f"not looked into, or as another one: {said}")
    if not report.crashes:
        return "\n".join([*lines, "no crash that was confirmed" if report.seen else "no crash"])
    rows = [
        (
            made.title.rpartition(": ")[2].split()[0],
            signature,
            report.seen.get(signature, 1),
            len(made.accesses),
            "not yet" if made.unfinished else "yes",
            _mode(made),
        )
        for signature, made in report.crashes.items()
    ]
    lines += ["", tabulate(rows, ("kind", "signature", "seen", "operations", "smallest", "sent"))]
    lines += ["", f"a file each in {folder}; vmtest replay FILE runs one again, vmtest reproducer FILE is for upstream"]
    if kept:
        lines.append(f"kept, since an earlier run has it by fewer operations: {', '.join(map(str, sorted(kept)))}")
    if any(made.unfinished for made in report.crashes.values()):
        lines.append("not yet smallest: the time was over before all was tried; vmtest shrink FILE goes on")
    return "\n".join(lines)


def _others(report: Report) -> dict[str, int]:
    """Ways in which QEMU ended that nothing more is said of, and how often."""
    return {key: times for key, times in report.seen.items() if key not in {*report.crashes, *report.unconfirmed}}


def _mode(made: Reproducer) -> str:
    return "in lockstep" if made.lockstep else "pipelined"


def as_dict(report: Report) -> dict[str, Any]:
    """For JSON."""
    return {
        "target": report.target.name,
        "seed": report.seed,
        "seconds": round(report.seconds, 1),
        "fuzzing": round(report.fuzzing, 1),
        "shrinking": round(report.shrinking, 1),
        "operations": report.operations,
        "sequences": report.sequences,
        "resets": report.resets,
        "ends": report.ends,
        "events": report.events,
        "features": report.features,
        "corpus": report.corpus,
        "clean": report.clean,
        "crashes": [
            {
                "signature": signature,
                "seen": report.seen.get(signature, 1),
                "operations": len(made.accesses),
                "unfinished": made.unfinished,
            }
            for signature, made in report.crashes.items()
        ],
        "unconfirmed": sorted(report.unconfirmed),
        "others": _others(report),
    }


def survey_table(rows: Sequence[Row]) -> str:
    """What can be fuzzed, then what cannot, and why."""
    can = [(row.kind, f"{row.registers:#x}", ", ".join(row.models)) for row in rows if not row.why]
    cannot = [(row.kind, row.why) for row in rows if row.why]
    lines = [tabulate(can, ("device", "bytes of registers", "known here")), ""]
    lines += [tabulate(cannot, ("device", "why not"), maxcolwidths=[None, 90]), ""] if cannot else []
    return "\n".join([*lines, f"{len(can)} of {len(rows)} device types can be fuzzed"])
