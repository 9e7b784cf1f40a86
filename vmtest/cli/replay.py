"""``vmtest replay``: findings, run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmtest.errors import UsageError, VmtestError

if TYPE_CHECKING:
    from vmtest.fuzz.again import Again
    from vmtest.fuzz.finding import Finding
    from vmtest.model.case import Case

__all__ = ["replay"]


@click.command()
@click.argument("paths", metavar="FINDING...", nargs=-1, required=True, type=Path)
@click.option("--executors", metavar="NAMES", help="instead of the finding's own, with commas")
@click.option(
    "--qemu",
    "qemus",
    metavar="BINARY",
    multiple=True,
    help="add the executor qemu:BINARY; for a device's crash, that QEMU alone; more than once",
)
@click.option("--first", is_flag=True, help="run the case as it was found, and not the smallest one")
@click.option("--json", "as_json", is_flag=True, help="print a line of JSON a finding")
def replay(paths: Sequence[Path], executors: str | None, qemus: tuple[str, ...], first: bool, as_json: bool) -> int:
    """Run findings again, and say whether each is still there.

    FINDING is a file that ``vmtest fuzz insn`` has written (*.json), a reproducer of a device's crash (*.toml), or a
    folder of them.

    A difference is still there where the case is of the same cluster again: the same kind, on the same form, between
    the same two executors; on other executors or versions, between any two. A crash of a device is where it ends the
    QEMU that it was found on, or with --qemu those instead, in whatever way.

    The exit code is 1 where one is still there, 0 where none is, 2 where a file could not be read, its executors are
    not to be had, or fewer than two of them can run it: the others are run all the same.
    """
    files = [file for path in paths for file in _within(path)]
    if not files:
        raise UsageError(
            f"there is no finding in {', '.join(map(str, paths))}", hint="they are *.json and *.toml files"
        )
    tally = _Tally(as_json=as_json)
    _instructions([file for file in files if file.suffix != ".toml"], executors, qemus, first, tally)
    _devices([file for file in files if file.suffix == ".toml"], qemus, tally)
    if not as_json and tally.total:
        told = tally.total - tally.untold
        words = [f"{tally.there} of {told} are still there"] if told else []
        words += [f"{tally.otherwise} of them otherwise than they were"] if tally.otherwise else []
        words += [f"{tally.untold} could not be compared"] if tally.untold else []
        words += [f"{tally.failed} could not be run"] if tally.failed else []
        click.echo(", ".join(words))
    return 2 if tally.failed or tally.untold else int(bool(tally.there))


@dataclass(kw_only=True)
class _Tally:
    """What has come of the findings: run, still there, not to be told; and files that failed."""

    as_json: bool
    total: int = 0
    there: int = 0
    otherwise: int = 0
    untold: int = 0
    failed: int = 0


def _within(path: Path) -> list[Path]:
    return sorted([*path.glob("*.json"), *path.glob("*.toml")]) if path.is_dir() else [path]


def _instructions(
    files: Sequence[Path], executors: str | None, qemus: tuple[str, ...], first: bool, tally: _Tally
) -> None:
    from vmtest.cli.insn import names_of
    from vmtest.fuzz.again import again
    from vmtest.fuzz.finding import read

    groups: dict[tuple[str, ...], list[tuple[Path, Finding]]] = {}
    for file in files:
        try:
            finding = read(file)
            names = names_of(executors or ",".join(finding.executors), finding.case.isa.name, qemus)
            groups.setdefault((finding.case.isa.name, *names), []).append((file, finding))
        except VmtestError as error:
            tally.failed += _told(error)
    for (_, *names), group in groups.items():
        cases = [(finding, finding.first if first else finding.case) for _, finding in group]
        try:
            results = again(cases, names)
        except VmtestError as error:
            tally.failed += _told(error, group[0][0])
            continue
        for (file, _), (finding, case), result in zip(group, cases, results, strict=True):
            tally.total, tally.there = tally.total + 1, tally.there + bool(result.keys)
            tally.untold += _is_open(result)
            click.echo(_as_json(file, case, result) if tally.as_json else _as_text(file, finding, case, result))


def _devices(files: Sequence[Path], qemus: tuple[str, ...], tally: _Tally) -> None:
    from vmtest.cli.reproducers import run_again
    from vmtest.devices.reproducer import read
    from vmtest.host import find_emulator

    for file in files:
        try:
            found = read(file)
            ends = [run_again(found, find_emulator(binary)) for binary in qemus or (found.binary,)]
        except VmtestError as error:
            tally.failed += _told(error, None if str(file) in error.message else file)
            continue
        is_there = any(there for _, there in ends)
        tally.otherwise += is_there and not any(": it is still there" in how for how, _ in ends)
        tally.total, tally.there = tally.total + 1, tally.there + is_there
        if tally.as_json:
            click.echo(json.dumps({"finding": str(file), "differs": is_there, "ends": [how for how, _ in ends]}))
        else:
            click.echo(
                "\n".join([str(file), *([found.signature] if found.signature else []), *(h for h, _ in ends), ""])
            )


def _told(error: VmtestError, file: Path | None = None) -> int:
    """An error that does not keep us from the other findings; it is one."""
    click.echo(f"vmtest: {error.whose}: {f'{file}: ' if file else ''}{error}", err=True)
    return 1


def _is_open(result: Again) -> bool:
    """Whether nothing could be compared."""
    return result.compared < 2 and not result.keys


def _as_json(file: Path, case: Case, result: Again) -> str:
    from vmtest.report.insn import as_dict

    data = {"finding": str(file)} | as_dict(case, result.outcomes, result.blind)
    data |= {"differs": None if _is_open(result) else bool(result.keys), "limits": list(result.limits)}
    return json.dumps(data | {"others": [key._asdict() for key in result.others]})


def _as_text(file: Path, finding: Finding, case: Case, result: Again) -> str:
    from vmtest.report.insn import side_by_side

    table, _ = side_by_side(case, result.outcomes, result.blind)
    lines = [str(file), table, f"found as: {finding.key}, {finding.verdict}"]
    lines += [f"the manual: {finding.rule}"] if finding.rule else []
    if _is_open(result):
        lines.append(f"it cannot be told whether it is still there: {result.compared} of these can run it, and have it")
    else:
        lines.append("it is still there" if result.keys else "it is gone")
    lines += [f"put down to a known limit: {what}" for what in result.limits]
    lines += [f"other differences remain: {key}" for key in result.others]
    return "\n".join([*lines, ""])
