"""``vmtest shell``: the console of a fresh guest on this terminal."""

from __future__ import annotations

import sys
from typing import Any

import click

from vmtest.cli.options import guest_options, spec_of

__all__ = ["shell"]


@click.command()
@click.argument("guest", required=False)
@guest_options
def shell(guest: str | None, **said: Any) -> None:
    """Boot GUEST and connect this terminal to its serial console. Ctrl-] leaves and ends the guest.

    The console is connected from the first byte on, so this is also the way to watch a boot that goes wrong; add
    --no-trim to see all that the kernel says, and --append as you need it.
    """
    if not sys.stdin.isatty():
        raise click.UsageError("standard input is no terminal; to run a command, use: vmtest run -- COMMAND")
    spec = spec_of(guest, said)
    from vmtest.booting import boot
    from vmtest.report.progress import shown

    with shown() as progress:
        started = boot(spec, wait=False, progress=progress)
    with started:
        prompt = ", Enter brings its prompt" if started.origin else ""  # it was printed before the snapshot
        print(f"{started.name} under {started.accel}: this is its console, Ctrl-] leaves{prompt}", file=sys.stderr)
        started.console.interact()
    print("\r\nthe guest has ended", file=sys.stderr)
