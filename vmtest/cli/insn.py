"""``vmtest insn``: single cases, run by several executors."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click

from vmtest.errors import HostError, UsageError

__all__ = ["insn", "names_of"]


@click.group()
def insn() -> None:
    """Run instructions on several executors, and see where they differ.

    \b
      vmtest insn run c4e2f8f3db --set rbx=1
      vmtest insn run f3480fbdc3 --set rbx=16 --executors kvm,native
      vmtest insn list
    """


@insn.command()
@click.argument("words", metavar="CODE", nargs=-1, required=True)
@click.option("--isa", "isa_name", metavar="ISA", help="the instruction set  [x86_64, or the case's own]")
@click.option("--set", "registers", metavar="REGISTER=NUMBER", multiple=True, help="what a register begins with")
@click.option("--mem", "memory", metavar="PLACE=HEX", multiple=True, help="bytes of the data window at 0x20000000")
@click.option("--executors", metavar="NAMES", help="which, with commas  [all that can run it here]")
@click.option("--qemu", "qemus", metavar="BINARY", multiple=True, help="add the executor qemu:BINARY; more than once")
@click.option("--json", "as_json", is_flag=True, help="print a JSON object instead of a table")
def run(
    words: tuple[str, ...],
    isa_name: str | None,
    registers: tuple[str, ...],
    memory: tuple[str, ...],
    executors: str | None,
    qemus: tuple[str, ...],
    as_json: bool,
) -> int:
    """Run one case on each executor, and print what came of it side by side.

    CODE is the instructions' bytes in hex, or a case as it is printed: "x86_64 c4e2f8f3db rbx=0x1". The data window
    is 8 KiB of zeros at 0x20000000, the stack pointer in its middle; nothing else is mapped.

    All that differs is shown, also what fuzzing puts down to an executor's known limits. The exit code is 1 where there
    is a difference that counts.
    """
    from vmtest.executors import fleet
    from vmtest.model.case import Case
    from vmtest.report.insn import as_dict, side_by_side

    line = _line(" ".join(words).split(), isa_name)
    places = [f"[{place.partition('=')[0]}]={place.partition('=')[2]}" for place in memory]
    case = Case.parse(" ".join([*line, *registers, *places]))
    with fleet(names_of(executors, case.isa.name, qemus), case.isa) as several:
        outcomes = {name: outcome for name, (outcome,) in several.run([case]).items()}
        table, differs = side_by_side(case, outcomes, several.blind)
    if as_json:
        click.echo(json.dumps(as_dict(case, outcomes, several.blind), indent=2))
    else:
        click.echo(table)
    return int(differs)


def _line(words: list[str], isa_name: str | None) -> list[str]:
    """A case's words: its instruction set, its code in one, and the rest."""
    from vmtest.model.isa import ISAS

    own = words.pop(0) if words and (words[0] in ISAS or not re.fullmatch(r"(0x)?[0-9a-fA-F]*", words[0])) else None
    if own and isa_name and own != isa_name:
        raise UsageError(f"the case is of {own}, and --isa says {isa_name}")
    at = next((at for at, word in enumerate(words) if "=" in word), len(words))
    code = "".join(word.removeprefix("0x") for word in words[:at])
    if not code:
        raise UsageError("there is no code to run", hint="its bytes in hex, such as c4e2f8f3db")
    return [own or isa_name or "x86_64", code, *words[at:]]


@insn.command("list")
def list_() -> None:
    """List the executors, what each can run, and what it is here, or why it cannot be had."""
    from tabulate import tabulate

    from vmtest.executors import EXECUTORS
    from vmtest.model.isa import isa

    rows = []
    for name, row in EXECUTORS.items():
        here: dict[str, list[str]] = {}
        for isa_name in row.isas:
            module = import_module(row.module)
            here.setdefault(module.lacks(isa(isa_name)) or module.describe(isa(isa_name)), []).append(isa_name)
        rows += [(name, row.what, " ".join(isas), what) for what, isas in here.items()]
    click.echo(tabulate(rows, headers=("executor", "what", "runs", "here")))


def names_of(said: str | None, isa_name: str, qemus: Sequence[str] = (), *, bulk: bool = False) -> list[str]:
    """The executors that were asked for, or all that can be had, with ``bulk`` the fast ones.

    Raises UsageError or HostError where that is none.
    """
    from vmtest.executors import EXECUTORS, available

    more = [f"qemu:{Path(path).resolve() if '/' in path else path}" for path in qemus]
    if said is not None:
        names = [name.strip() for name in said.split(",") if name.strip()]
        if not names:
            raise UsageError("--executors names none", hint=f"known: {', '.join(EXECUTORS)}")
        return list(dict.fromkeys(names + more))
    names = available(isa_name, bulk=bulk)
    if not names:
        raise HostError(f"no executor for {isa_name} can be had here", hint="vmtest insn list")
    return names + more
