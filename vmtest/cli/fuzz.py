"""``vmtest fuzz``: cases by the thousand, and what comes of them."""

from __future__ import annotations

from pathlib import Path
from random import SystemRandom
from typing import Any

import click

from vmtest.cli.fuzz_device import INTERRUPTED, SECONDS, device
from vmtest.errors import HostError, UsageError

__all__ = ["fuzz"]


@click.group()
def fuzz() -> None:
    """Fuzz emulators and hypervisors.

    \b
      vmtest fuzz insn --isa x86_64 --executors unicorn,kvm,native --time 60
      vmtest fuzz device e1000e --time 60
    """


@fuzz.command()
@click.option("--isa", "isa_name", metavar="ISA", default="x86_64", help="the instruction set  [x86_64]")
@click.option("--executors", metavar="NAMES", help="two or more, with commas  [the fast ones that can run it here]")
@click.option("--qemu", "qemus", metavar="BINARY", multiple=True, help="add the executor qemu:BINARY; more than once")
@click.option("--time", "seconds", metavar="SECONDS", type=float, help=f"how long  [{SECONDS:g}, without --cases]")
@click.option("--cases", metavar="N", type=int, help="how many cases")
@click.option("--seed", metavar="N", type=int, help="the same seed makes the same cases  [drawn, and printed]")
@click.option("--forms", metavar="PATTERNS", help='only these, by name or extension: "*cmpxchg*,BMI2"  [all]')
@click.option("--length", metavar="N", type=int, default=1, help="instructions that a case has at most  [1]")
@click.option("--sources", metavar="NAMES", help="of forms, bytes, mutants  [all; with --forms, those]")
@click.option("--corpus", metavar="FILE", type=Path, help="cases to mutate, a line each")
@click.option("--findings", metavar="DIR", type=Path, default=Path("findings"), help="where they go  [findings]")
@click.option("--baseline", metavar="FILE", type=Path, help="clusters that are accepted: only others make it fail")
@click.option("--accept", is_flag=True, help="add what is found to --baseline")
@click.option("-j", "--jobs", metavar="N", type=int, default=1, help="processes  [1]")
@click.option("--json", "as_json", is_flag=True, help="print events as lines of JSON")
def insn(
    isa_name: str,
    executors: str | None,
    qemus: tuple[str, ...],
    seconds: float | None,
    cases: int | None,
    seed: int | None,
    forms: str | None,
    length: int,
    sources: str | None,
    corpus: Path | None,
    findings: Path,
    baseline: Path | None,
    accept: bool,
    jobs: int,
    as_json: bool,
) -> int:
    """Run instructions on several executors, and cluster what differs.

    Cases are made from the instruction set's forms, random bytes and mutants. Differences that are one (the same form,
    the same kind, the same two executors) are a cluster, of which the smallest case is found and written to a file.

    The exit code is 1 where there is a cluster that the baseline does not hold, and 130 where there is none and Ctrl-C
    has ended it: what was found until then is told, too.
    """
    from vmtest.cli.insn import names_of
    from vmtest.fuzz import baseline as accepted
    from vmtest.fuzz.campaign import Plan, Report, above_zero, run
    from vmtest.fuzz.finding import Finding, prepared, write
    from vmtest.fuzz.generate import SOURCES, select
    from vmtest.model.isa import isa
    from vmtest.report.fuzzing import as_line, beginning, heading, noted, summary, summary_as_dict
    from vmtest.report.progress import shown

    row = isa(isa_name)
    names = names_of(executors, row.name, qemus, bulk=True)
    if len(names) < 2:
        why = f"there is nothing to compare {names[0]} with"
        raise UsageError(why, hint="--executors with two names; vmtest insn list")
    above_zero(**{"--time": seconds, "--cases": cases, "--length": length, "--jobs": jobs})
    if accept and baseline is None:
        raise UsageError("--accept writes to a baseline", hint="--baseline FILE")
    known = accepted.known(baseline, accept)
    chosen = _sources(sources or ("forms" if forms else None), SOURCES)
    if forms and "forms" not in chosen:
        raise UsageError("--forms is for the source forms, which is not one of --sources", hint="--sources forms,…")
    if corpus is not None and "mutants" not in chosen:
        raise UsageError("a corpus is for mutants, and none are made", hint="--sources mutants, or forms,mutants")
    prepared(findings)
    plan = Plan(
        isa=row.name,
        executors=names,
        names=select(row, forms),
        seed=SystemRandom().getrandbits(32) if seed is None else seed,
        seconds=SECONDS if seconds is None and cases is None else seconds,
        cases=cases,
        length=length,
        sources=chosen,
        corpus=_corpus(corpus, row.name),
        jobs=jobs,
    )
    reports, trouble = list[Report](), list[HostError]()
    with shown() as progress:
        progress.step("asking the executors what they can run")

        def told(report: Report, first: list[Finding]) -> None:
            progress.note(noted(report))
            for finding in first:
                if finding.key not in known:
                    write(findings, finding)
                    if as_json:
                        click.echo(as_line("finding", finding.as_dict()))

        def begun(report: Report) -> None:
            reports.append(report)
            click.echo(as_line("begin", beginning(report)) if as_json else heading(report))
            progress.step("fuzzing")

        try:
            run(plan, known, told, begun)
        except (KeyboardInterrupt, HostError) as error:
            if not reports:
                raise
            reports[0].interrupted = True
            trouble += [error] if isinstance(error, HostError) else []
    (report,) = reports
    try:
        for finding in report.new:
            write(findings, finding)
    except HostError as error:
        trouble.append(error)
    click.echo(as_line("end", summary_as_dict(report)) if as_json else "\n" + summary(report, str(findings)))
    if accept and baseline is not None:
        accepted.save(baseline, report.findings.values())
    if trouble:
        raise trouble[0]
    if report.new and not accept:
        return 1
    return INTERRUPTED if report.interrupted else 0


def _sources(said: str | None, known: dict[str, str]) -> tuple[str, ...]:
    if said is None:
        return tuple(known)
    names = tuple(filter(None, (word.strip() for word in said.split(","))))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(
            f"--sources {said!r} names {' and '.join(map(repr, unknown)) or 'none'}", hint=f"of {', '.join(known)}"
        )
    return names


def _corpus(path: Path | None, isa_name: str) -> tuple[Any, ...]:
    from vmtest.model.case import Case

    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the corpus {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    cases = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            try:
                cases.append(Case.parse(line))
            except UsageError as error:
                raise UsageError(f"{path}:{number}: {error.message}", hint=error.hint) from None
            if cases[-1].isa.name != isa_name:
                raise UsageError(f"{path}:{number}: a case of {cases[-1].isa.name}, and this is {isa_name}")
    return tuple(cases)


fuzz.add_command(device)
