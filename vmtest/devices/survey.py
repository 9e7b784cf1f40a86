"""Which device types of a QEMU can be worked on, by trying each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vmtest.devices.bench import Bench
from vmtest.devices.board import Board
from vmtest.devices.models import models
from vmtest.devices.session import Session
from vmtest.devices.target import target
from vmtest.errors import HostError, UsageError
from vmtest.host import Qemu

__all__ = ["Row", "kinds", "survey"]

AT_ONCE = 4
"""Machines that are tried at a time."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A device type: the bytes of registers by which it is reached, the ``models`` that know it, or ``why`` not."""

    kind: str
    registers: int = 0
    models: Sequence[str] = ()
    why: str = ""


def kinds(qemu: Qemu) -> dict[str, bool]:
    """All device types that it knows but for CPUs, and whether a user may add one to a machine."""
    with Session(Board(arguments=("-M", "none")), qemu) as session:
        cpus = {row["name"] for row in session.qmp.execute("qom-list-types", implements="cpu")}
        text = session.qmp.execute("human-monitor-command", command_line="info qdm")
    rows = (re.match(r'name "([^"]+)"', line) and line for line in text.splitlines())
    found = {line.split('"')[1]: "no-user" not in line for line in rows if line}
    return {kind: is_added for kind, is_added in found.items() if kind not in cpus}


def survey(pattern: str = "*", *, binary: str = "", machine: str = "", arguments: Sequence[str] = ()) -> Iterator[Row]:
    """A row each, by name, for those that a ``pattern`` matches. Raises UsageError where there are none, and HostError
    for a QEMU that cannot be asked.
    """
    with Bench(binary=binary, machine=machine, arguments=arguments, memory=0) as bench:
        bench.run(())  # a machine that does not start by itself starts with none of them
    qemu = bench.qemu
    known = {kind: is_added for kind, is_added in kinds(qemu).items() if fnmatchcase(kind, pattern)}
    if not known:
        raise UsageError(f"{qemu.path.name} has no device {pattern!r}", hint="without a pattern --list has them all")

    def tried(kind: str) -> Row:
        if not known[kind]:
            return Row(kind=kind, why="only as part of a machine: give the machine type")
        try:
            found, _ = target(kind, binary=binary, machine=machine, arguments=arguments)
        except UsageError as error:
            return Row(kind=kind, why=error.message.removeprefix(f"{kind} "))
        except HostError as error:
            words = error.evidence.get("QEMU stderr", "").strip().splitlines()
            return Row(kind=kind, why=re.sub(r"^\S+: (-device [^:]+: )?", "", words[-1]) if words else error.message)
        names = [model.name for model, _ in models(found.areas)]
        return Row(kind=kind, registers=sum(area.size for area in found.areas), models=names)

    with ThreadPoolExecutor(AT_ONCE) as several:
        yield from several.map(tried, sorted(known))
