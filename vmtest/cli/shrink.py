"""``vmtest shrink``: a reproducer of a device's crash, made smaller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmtest.cli.fuzz_device import INTERRUPTED, SECONDS
from vmtest.cli.reproducers import can_be_written, write_text
from vmtest.errors import HostError, UsageError

if TYPE_CHECKING:
    from vmtest.devices.reproducer import Reproducer

__all__ = ["shrink"]


@click.command()
@click.argument("path", metavar="FILE", type=Path)
@click.option("-o", "--output", metavar="FILE", type=Path, help="where to  [the same file]")
@click.option("--qemu", metavar="BINARY", help="on that QEMU, to --output  [the one that the file names]")
@click.option("--time", "seconds", metavar="SECONDS", type=float, default=SECONDS, help=f"at most  [{SECONDS:g}]")
def shrink(path: Path, output: Path | None, qemu: str | None, seconds: float) -> int:
    """Make a reproducer of a device's crash smaller.

    FILE is one that ``vmtest fuzz device`` or ``vmtest import`` has written, and is written anew: QEMU still ends by it
    in the same way, by fewer operations, and simpler values. Where none are found it stays as it is. Ctrl-C ends it
    with what there is by then.
    """
    from vmtest.devices.reproducer import read
    from vmtest.fuzz.campaign import above_zero
    from vmtest.fuzz.smaller import smaller
    from vmtest.host import find_emulator
    from vmtest.report.progress import shown

    above_zero(**{"--time": seconds})
    if qemu and not output:
        raise UsageError("--qemu is for another file", hint="-o FILE: this one says what its own QEMU does")
    before = last = read(path)
    can_be_written(output or path)  # or nobody is to wait for it
    trouble, is_interrupted, is_all = None, False, False
    with shown() as progress:
        progress.step(f"making {path} smaller")

        def told(made: Reproducer) -> None:
            nonlocal last
            last = made
            progress.note(f"{len(made.accesses)} operations")

        try:
            last, is_all = smaller(before, find_emulator(qemu or before.binary), seconds=seconds, told=told)
        except KeyboardInterrupt:
            is_interrupted = True
        except HostError as error:
            trouble = error
    if output or last is not before:
        write_text(output or path, last.dumps())
    more = "" if is_all else "; not all was tried: more --time goes on"
    if last is not before:
        click.echo(f"{output or path}: {len(before.accesses)} operations before, {len(last.accesses)} now{more}")
    elif not trouble:
        click.echo(f"{path}: {len(before.accesses)} operations, and nothing smaller was found{more}")
    if trouble:
        raise trouble
    return INTERRUPTED if is_interrupted else 0
