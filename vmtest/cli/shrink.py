"""``vmtest shrink``: a reproducer of a device's crash, made smaller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmtest.cli.fuzz_device import INTERRUPTED, SECONDS
from vmtest.cli.reproducers import write_text

if TYPE_CHECKING:
    from vmtest.devices.reproducer import Reproducer

__all__ = ["shrink"]


@click.command()
@click.argument("path", metavar="FILE", type=Path)
@click.option("-o", "--output", metavar="FILE", type=Path, help="where to  [the same file]")
@click.option("--qemu", metavar="BINARY", help="on that QEMU  [the one that the file names]")
@click.option("--time", "seconds", metavar="SECONDS", type=float, default=SECONDS, help=f"at most  [{SECONDS:g}]")
def shrink(path: Path, output: Path | None, qemu: str | None, seconds: float) -> int:
    """Make a reproducer of a device's crash smaller.

    FILE is one that ``vmtest fuzz device`` or ``vmtest import`` has written, and is written anew: QEMU still ends by it
    in the same way, by fewer operations, and simpler values. Ctrl-C ends it with what there is by then.
    """
    from vmtest.devices.reproducer import read
    from vmtest.fuzz.campaign import above_zero
    from vmtest.fuzz.smaller import smaller
    from vmtest.host import find_emulator
    from vmtest.report.progress import shown

    above_zero(**{"--time": seconds})
    before = last = read(path)
    is_smallest, is_interrupted = False, False
    with shown() as progress:
        progress.step(f"making {path} smaller")

        def told(made: Reproducer) -> None:
            nonlocal last
            last = made
            progress.note(f"{len(made.accesses)} operations")

        try:
            _, is_smallest = smaller(before, find_emulator(qemu or before.binary), seconds=seconds, told=told)
        except KeyboardInterrupt:
            is_interrupted = True
    write_text(output or path, last.dumps())
    more = "" if is_smallest else "; there is more to be tried, in more --time"
    click.echo(f"{output or path}: {len(before.accesses)} operations before, {len(last.accesses)} now{more}")
    return INTERRUPTED if is_interrupted else 0
