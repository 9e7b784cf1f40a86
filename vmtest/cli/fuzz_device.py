"""``vmtest fuzz device``: a device of a stock QEMU, until QEMU ends by it."""

from __future__ import annotations

from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING

import click

from vmtest.errors import HostError, UsageError

if TYPE_CHECKING:
    from vmtest.devices.reproducer import Reproducer

__all__ = ["INTERRUPTED", "SECONDS", "device"]

SECONDS = 60.0
INTERRUPTED = 130


@click.command()
@click.argument("name", metavar="DEVICE", required=False)
@click.option(
    "--list", "listed", is_flag=True, help="say of each device type (DEVICE: a pattern) whether it can be fuzzed"
)
@click.option("--machine", default="", help="the machine type  [q35; virt for other architectures than x86]")
@click.option("--qemu", "binary", metavar="BINARY", default="", help="on PATH, or a path  [qemu-system-x86_64]")
@click.option("--arg", "arguments", metavar="WORD", multiple=True, help="an argument more for QEMU; more than once")
@click.option("--accel", metavar="NAME", default="", help="qtest, tcg or kvm  [qtest where the build has it, else tcg]")
@click.option(
    "--time",
    "seconds",
    metavar="SECONDS",
    type=float,
    default=SECONDS,
    help=f"for how long; crashes may take as long again  [{SECONDS:g}]",
)
@click.option("--jobs", "-j", metavar="N", type=int, default=1, help="processes, each with a seed of its own  [1]")
@click.option(
    "--seed", metavar="N", type=int, help="with --no-feedback the same seed draws the same  [drawn, and printed]"
)
@click.option("--no-feedback", is_flag=True, help="draw all, whatever has been reached by what")
@click.option("--findings", metavar="DIR", type=Path, default=Path("findings"), help="where they go  [findings]")
@click.option("--json", "as_json", is_flag=True, help="print events as lines of JSON")
def device(
    name: str | None,
    listed: bool,
    machine: str,
    binary: str,
    arguments: tuple[str, ...],
    accel: str,
    seconds: float,
    jobs: int,
    seed: int | None,
    no_feedback: bool,
    findings: Path,
    as_json: bool,
) -> int:
    """Work on a device until QEMU ends by it.

    DEVICE is a type of the installed QEMU, which is added to a machine with what it stands on, and may have properties
    as -device takes them; or a machine type, all of whose registers are worked on:

    \b
      vmtest fuzz device edu
      vmtest fuzz device virtio-net-pci,packed=on --time 300 -j 2
      vmtest fuzz device xlnx-zcu102 --qemu qemu-system-aarch64
      vmtest fuzz device scsi-hd,bus=hba.0 --arg=-device --arg=megasas,id=hba
      vmtest fuzz device --list

    Each way in which QEMU ends is run again on a QEMU that was just started, made as small as it will go, and written
    to a file; when the time is over that goes on for as long again at most, and 30 s at least where it takes that.
    Ctrl-C ends it at once, with the files as they are. The exit code is 1 where there is a crash, and 130 where there
    is none and Ctrl-C has ended it.
    """
    if listed:
        return _list(name or "*", binary, machine, arguments, as_json)
    if name is None:
        raise UsageError("DEVICE is missing", hint="such as e1000e; vmtest fuzz device --list says which can be")
    from vmtest.cli.reproducers import write_text
    from vmtest.devices.target import target
    from vmtest.fuzz.campaign import above_zero
    from vmtest.fuzz.device import Report
    from vmtest.fuzz.finding import prepared
    from vmtest.fuzz.hunters import hunt
    from vmtest.report.devices import as_dict, heading, noted, summary
    from vmtest.report.fuzzing import as_line
    from vmtest.report.progress import shown

    above_zero(**{"--time": seconds, "--jobs": jobs})
    prepared(findings)
    found, qemu = target(name, binary=binary, machine=machine, arguments=arguments, accel=accel)
    last = Report(target=found, seed=SystemRandom().getrandbits(32) if seed is None else seed)
    click.echo(as_line("begin", as_dict(last)) if as_json else heading(last, qemu.version_text))
    interrupted, trouble, written, kept = False, None, set[Path](), set[Path]()
    with shown() as progress:
        progress.step(f"fuzzing {name}")

        def told(report: Report, made: Reproducer | None) -> None:
            nonlocal last
            last = report
            progress.note(noted(report))
            if made is not None:
                file = findings / made.name
                if _is_smaller_there(file, made):
                    kept.add(file)
                else:
                    write_text(file, made.dumps())
                    kept.discard(file)
                event = "smaller" if file in written else "crash"
                if as_json:
                    said = {"file": str(file), "signature": made.signature, "operations": len(made.accesses)}
                    click.echo(as_line(event, said | {"unfinished": made.unfinished}))
                elif event == "crash":
                    progress.step(f"{event}: {made.title}: {file}")
                written.add(file)

        try:
            hunt(found, qemu, seed=last.seed, seconds=seconds, told=told, jobs=jobs, feedback=not no_feedback)
        except KeyboardInterrupt:
            interrupted = True
        except HostError as error:
            trouble = error
    click.echo(as_line("end", as_dict(last)) if as_json else summary(last, findings, kept))
    if trouble:
        raise trouble
    return 1 if last.crashes else INTERRUPTED if interrupted else 0


def _is_smaller_there(file: Path, made: Reproducer) -> bool:
    """Whether an earlier run has left the same crash there, by fewer operations."""
    from vmtest.devices.reproducer import read

    try:
        before = read(file)
    except UsageError:
        return False
    is_same = before.board == made.board and made.seen.items() <= before.seen.items()
    return is_same and len(before.accesses) < len(made.accesses)


def _list(pattern: str, binary: str, machine: str, arguments: tuple[str, ...], as_json: bool) -> int:
    """The device types that a pattern matches, as each has been tried."""
    from dataclasses import asdict

    from vmtest.devices.survey import survey
    from vmtest.report.devices import survey_table
    from vmtest.report.fuzzing import as_line
    from vmtest.report.progress import shown

    rows = []
    with shown() as progress:
        progress.step("trying each device type")
        for row in survey(pattern, binary=binary, machine=machine, arguments=arguments):
            progress.note(row.kind)
            rows.append(row)
    click.echo("\n".join(as_line("device", asdict(row)) for row in rows) if as_json else survey_table(rows))
    return 0
