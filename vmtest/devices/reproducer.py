"""A reproducer: a machine, operations, and how QEMU ends by them; as a file."""

from __future__ import annotations

import hashlib
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from vmtest.devices.access import (
    FLUSH,
    RESET,
    UNSAID,
    Access,
    encode,
)
from vmtest.devices.board import Board
from vmtest.devices.crash import Crash
from vmtest.devices.lines import parse
from vmtest.devices.session import Session
from vmtest.errors import UsageError
from vmtest.host import Qemu

__all__ = ["FORMAT", "Reproducer", "confirmed", "operations", "read", "run"]

FORMAT = 1
"""Of the files: another one is not read."""
SETTLE = 0.5
"""Seconds in which timers may still end QEMU."""
TRIES = 5
"""How often a crash is tried before it is gone."""


@dataclass(frozen=True, kw_only=True)
class Reproducer:
    """``binary`` is QEMU's name, such as qemu-system-x86_64. In ``lockstep`` each operation waits for the last one's
    answer; else they are sent as fast as QEMU takes them, up to each Flush. ``signature`` is what it is to end with, ""
    where it is not to end. ``words`` are what QEMU said when it did. ``seen`` is how QEMUs of some versions have ended,
    "" for one that has not; ``issue`` is upstream's, where it is known there. It is ``unfinished`` where the time for
    making it smaller was over before all was tried.
    """

    binary: str
    board: Board
    accesses: Sequence[Access]
    lockstep: bool = False
    signature: str = ""
    words: str = ""
    unfinished: bool = False
    title: str = ""
    source: str = ""
    issue: str = ""
    seen: Mapping[str, str] = field(default_factory=dict)

    def dumps(self) -> str:
        """As a file's text."""
        import tomli_w

        lines = "\n".join(encode(access).decode() for access in self.accesses)
        data: dict[str, Any] = {
            "format": FORMAT,
            **({"title": self.title} if self.title else {}),
            **({"source": self.source} if self.source else {}),
            **({"issue": self.issue} if self.issue else {}),
            "binary": self.binary,
            "arguments": shlex.join(self.board.arguments),
            **({"accel": self.board.accel} if self.board.accel else {}),
            "lockstep": self.lockstep,
            "signature": self.signature,
            **({"words": self.words} if self.words else {}),
            **({"unfinished": True} if self.unfinished else {}),
            "operations": f"{lines}\n",
            **({"seen": dict(self.seen)} if self.seen else {}),
        }
        return tomli_w.dumps(data, multiline_strings=True)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """What ``dumps`` has written. Raises UsageError for anything else."""
        if "format" not in data:
            raise UsageError("this is no reproducer", hint="vmtest import makes one of a shell script")
        if data["format"] != FORMAT:
            raise UsageError(f"a reproducer of format {data['format']!r}, and this vmtest reads {FORMAT}")
        for name, value in data.items():
            if not isinstance(value, kind := _KINDS.get(name, str)):
                raise UsageError(f"{name} = {value!r}: this is to be a {kind.__name__}")
        if missing := {"binary", "arguments", "operations"} - set(data):
            raise UsageError(f"this reproducer has no {' and no '.join(sorted(missing))}")
        return cls(
            binary=data["binary"],
            board=Board.parse(data["arguments"], accel=data.get("accel", "")),
            accesses=tuple(operations(data["operations"].splitlines())),
            lockstep=data.get("lockstep", False),
            signature=data.get("signature", ""),
            words=data.get("words", ""),
            unfinished=data.get("unfinished", False),
            title=data.get("title", ""),
            source=data.get("source", ""),
            issue=data.get("issue", ""),
            seen={version: str(how) for version, how in data.get("seen", {}).items()},
        )

    @property
    def name(self) -> str:
        """Of its file: readable, and of no other signature."""
        words = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
        return f"{words[:60]}-{hashlib.sha256(f'{self.title} {self.signature}'.encode()).hexdigest()[:8]}.toml"

    @property
    def size(self) -> tuple[int, int, bool]:
        """Its operations, their bytes, and whether fewer might do."""
        said = (access for access in self.accesses if not isinstance(access, UNSAID))
        return len(self.accesses), sum(len(encode(access)) for access in said), self.unfinished

    def place(self, qemu: Qemu) -> str:
        """How a QEMU of that version ended, where its place in that build is a part of that; else ""."""
        how = self.seen.get(".".join(map(str, qemu.version)), "")
        return how if " at +" in how else ""

    def is_same(self, crash: Crash, qemu: Qemu) -> bool:
        """Whether it is what that QEMU is to end with."""
        place = self.place(qemu)
        return crash.key == place if place and crash.where else crash.signature == self.signature


_KINDS: Mapping[str, type] = {"format": int, "lockstep": bool, "unfinished": bool, "seen": dict}
"""By a file's field its type: a string where it is not here."""


def read(path: Path) -> Reproducer:
    """The reproducer in a file. Raises UsageError that names it."""
    try:
        return Reproducer.parse(tomllib.loads(path.read_text()))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None


def run(reproducer: Reproducer, qemu: Qemu) -> Crash | None:
    """How a QEMU that was just started ends by it, None where it lives. What depends on when QEMU's main loop runs does
    not come each time: it is tried up to TRIES times, with more and with less time for that by turns. Raises HostError
    where it does not start.
    """
    crash = None
    for number in range(TRIES if reproducer.signature else 1):
        is_traced, is_eager = reproducer.place(qemu) != "", number % 2 == 1
        with Session(reproducer.board, qemu, traced=is_traced, eager=is_eager) as session:
            crash = session.run(reproducer.accesses, lockstep=reproducer.lockstep, settle=SETTLE).crash
        if crash and reproducer.is_same(crash, qemu):
            break
    return crash


def confirmed(reproducer: Reproducer, qemu: Qemu) -> Reproducer:
    """The same with what it comes to on that QEMU: in lockstep where that ends it, else as fast as can be."""
    version = ".".join(map(str, qemu.version))
    for lockstep in (True, False):
        found = run(replace(reproducer, lockstep=lockstep), qemu)
        if found and not found.is_clean:
            break
    if found is None or found.is_clean:
        return replace(reproducer, lockstep=False, signature="", words="", seen={**reproducer.seen, version: ""})
    seen = {**reproducer.seen, version: found.signature}
    return replace(reproducer, lockstep=lockstep, signature=found.signature, words=found.last_words, seen=seen)


def operations(lines: Sequence[str]) -> list[Access]:
    """Those that some lines say, but for comments. Raises UsageError that counts the lines."""
    found = []
    for number, line in enumerate(lines, 1):
        if not (said := line.strip()) or (said.startswith("#") and said not in (FLUSH, RESET)):
            continue
        try:
            found.append(parse(line))
        except UsageError as error:
            raise UsageError(f"line {number} of its operations: {error.message}", hint=error.hint) from None
    if not found:
        raise UsageError("it has no operations", hint="such as: outl 0xcf8 0x80000804")
    return found
