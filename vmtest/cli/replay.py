"""``vmtest replay``: findings, run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from vmtest.errors import UsageError

__all__ = ["replay"]


@click.command()
@click.argument("paths", metavar="FINDING...", nargs=-1, required=True, type=Path)
@click.option("--executors", metavar="NAMES", help="instead of the finding's own, with commas")
@click.option("--qemu", "qemus", metavar="BINARY", multiple=True, help="add the executor qemu:BINARY; more than once")
@click.option("--first", is_flag=True, help="run the case as it was found, and not the smallest one")
@click.option("--json", "as_json", is_flag=True, help="print a line of JSON a finding")
def replay(paths: Sequence[Path], executors: str | None, qemus: tuple[str, ...], first: bool, as_json: bool) -> int:
    """Run findings again, and say whether each is still there.

    FINDING is a file that ``vmtest fuzz insn`` has written, or a folder of them.

    The exit code is 1 where one is still there, 0 where none is.
    """
    from vmtest.cli.insn import names_of
    from vmtest.executors import fleet
    from vmtest.fuzz.finding import read
    from vmtest.report.insn import side_by_side

    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not files:
        raise UsageError(f"there is no finding in {', '.join(map(str, paths))}", hint="they are *.json files")
    findings = [(file, read(file)) for file in files]
    there = 0
    for file, finding in findings:
        case = finding.first if first else finding.case
        names = names_of(executors or ",".join(finding.executors), case.isa.name, qemus)
        with fleet(names, case.isa) as several:
            outcomes = {name: outcome for name, (outcome,) in several.run([case]).items()}
            table, differs = side_by_side(case, outcomes, several.blind)
        there += differs
        if as_json:
            said = {name: outcome.as_dict(case.isa) for name, outcome in outcomes.items()}
            click.echo(json.dumps({"finding": str(file), "case": str(case), "differs": differs, "outcomes": said}))
            continue
        click.echo(f"{file}\n{table}")
        click.echo(f"found as: {finding.key}, {finding.verdict}")
        if finding.rule:
            click.echo(f"the manual: {finding.rule}")
        click.echo("it is still there\n" if differs else "it is gone\n")
    if not as_json:
        click.echo(f"{there} of {len(findings)} are still there")
    return int(bool(there))
