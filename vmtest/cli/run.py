"""``vmtest run``: a command in a fresh guest."""

from __future__ import annotations

import math
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from vmtest.cli.options import guest_options, spec_of

if TYPE_CHECKING:
    from vmtest.guest import Guest
    from vmtest.model.observation import Result
    from vmtest.model.spec import GuestSpec

__all__ = ["WithCommand", "run", "run_shown"]


class WithCommand(click.Command):
    """Everything after the first ``--`` is the guest's command, whatever it looks like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, for what comes before the ``--``."""
        if "--" in args:
            at = args.index("--")
            args, ctx.meta["command"] = args[:at], args[at + 1 :]
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(f"{error.format_message()} The guest's command goes after --.", ctx) from None

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """As click's, with the command."""
        return [*super().collect_usage_pieces(ctx), "-- COMMAND…"]


@click.command(cls=WithCommand)
@click.argument("guest", required=False)
@click.option("-i", "--stdin", "stdin", is_flag=True, help="give the command this process's standard input")
@guest_options
@click.pass_context
def run(ctx: click.Context, /, guest: str | None, stdin: bool, **said: Any) -> int:
    """Boot GUEST, run COMMAND in it, print what it writes as it comes, and exit with its exit code.

    A COMMAND of one word is for the guest's shell, several words are an argument list:

    \b
      vmtest run -- uname -a
      vmtest run linux-aarch64 -- 'dmesg | tail'
      vmtest run --kernel arch/x86/boot/bzImage --append panic_on_warn=1 -- ./selftest
      tar c src | vmtest run -i -- tar t

    The exit code is the command's (128 + N for signal N), or 2 with an error on stderr where vmtest or the guest
    failed: an unknown guest, no QEMU, a guest that does not boot, a kernel panic, a command that runs into --timeout.
    """
    command = ctx.meta.get("command")
    if not command:
        raise click.UsageError("there is no command to run; put it after --, as in: vmtest run -- uname -a")
    spec = spec_of(guest, said)
    # Imported late: a usage error or --help answers at once.
    from vmtest.booting import boot
    from vmtest.report.progress import shown

    data = sys.stdin.buffer.read() if stdin else None
    with shown() as progress:
        started = boot(spec, progress=progress)
    with started:
        return run_shown(started, command, spec, data).exit_code


def run_shown(guest: Guest, command: list[str], spec: GuestSpec, data: bytes | None = None) -> Result:
    """Run the command of a command line in a guest, and show what it writes as it comes."""
    return guest.run(
        command[0] if len(command) == 1 else command,
        input=data,
        stream=_write,
        timeout=None if spec.timeout else math.inf,
    )


def _write(stream: str, data: bytes) -> None:
    target = (sys.stdout if stream == "stdout" else sys.stderr).buffer
    try:
        target.write(data)
        target.flush()
    except BrokenPipeError:  # `| head` has seen enough. What is flushed at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), target.fileno())
        sys.exit(0)
