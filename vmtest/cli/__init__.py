"""The command ``vmtest``: one file a sub-command."""

from __future__ import annotations

import sys
import traceback
import warnings
from importlib import import_module
from keyword import iskeyword

import click

from vmtest.errors import VmtestError

__all__ = ["main"]

COMMANDS = {
    "run": "vmtest.cli.run",
    "shell": "vmtest.cli.shell",
    "list": "vmtest.cli.list",
    "doctor": "vmtest.cli.doctor",
    "image": "vmtest.cli.image",
    "snapshot": "vmtest.cli.snapshot",
    "insn": "vmtest.cli.insn",
    "fuzz": "vmtest.cli.fuzz",
    "replay": "vmtest.cli.replay",
    "shrink": "vmtest.cli.shrink",
    "import": "vmtest.cli.reproducers",
    "reproducer": "vmtest.cli.reproducers",
}


class _Lazy(click.Group):
    """Imports a sub-command when it is needed: `vmtest run` does not pay for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name]), f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A guest is an image (vmtest list) or one declared in your pyproject.toml. First steps: `vmtest doctor`"
    " tells what this host can do, `vmtest run -- uname -a` boots the default guest.",
)
@click.version_option(package_name="pytest-vmtest", prog_name="vmtest")
def vmtest() -> None:
    """Boot real guests under QEMU or KVM, run commands in them, look at their consoles.

    Where vmtest itself fails, one error goes to stderr and the exit code is 2.
    """


def _shown(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as people read it: without the line of our source that gave it."""
    print(f"vmtest: warning: {message}", file=sys.stderr)


def main() -> None:
    """The console script. Exits with the sub-command's code; 2 for any error of ours, 130 for Ctrl-C."""
    warnings.showwarning = _shown
    try:
        code = vmtest.main(prog_name="vmtest", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = 2
    except click.Abort:
        code = 130
    except VmtestError as error:
        print(f"vmtest: {error.whose}: {error}", file=sys.stderr)
        code = 2
    except Exception:  # 1 is for what was looked for, and found
        traceback.print_exc()
        print("vmtest: internal error: this is a bug of vmtest", file=sys.stderr)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
