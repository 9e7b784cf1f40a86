"""A reproducer: a machine, operations, and how QEMU ends by them; as a file, and as what upstream takes."""

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
    ClockStep,
    Fill,
    Flush,
    In,
    Load,
    Out,
    Read,
    Reset,
    Store,
    Write,
    encode,
)
from vmtest.devices.crash import Crash
from vmtest.devices.lines import parse
from vmtest.devices.session import Board, Session
from vmtest.errors import UsageError
from vmtest.host import Qemu

__all__ = ["FORMAT", "Reproducer", "confirmed", "from_shell", "read", "run"]

FORMAT = 1
"""Of the files: another one is not read."""
SECOND = 1_000_000_000
"""Nanoseconds, in which timers may still end a QEMU whose clock stands still by itself."""
SETTLE = 0.5
"""Seconds in which timers may still end QEMU."""
TRIES = 5
"""How often a crash is tried before it is gone."""
OURS = ("-qtest", "-qtest-log", "-display")
"""Options with a value that are ours to give."""


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
            accesses=tuple(_operations(data["operations"].splitlines())),
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

    def as_shell(self) -> str:
        """A here-document for ``-qtest stdio``, as upstream's reports have it. Raises UsageError where that cannot say
        it.
        """
        if any(isinstance(access, Reset) for access in self.accesses):
            raise UsageError(
                "it has a reset of the machine, as what is not yet made small may: a here-document cannot say that",
                hint="vmtest replay FILE runs it; vmtest shrink FILE may leave it out",
            )
        lines = [encode(access).decode() for access in self.accesses if not isinstance(access, Flush)]
        command = f"{Path(self.binary).name} {shlex.join(self.board.arguments)} -display none -accel qtest -qtest stdio"
        waits = self.lockstep or any(isinstance(access, Flush) for access in self.accesses)
        said = ["# found with QEMU's main loop run between operations, as a test in C has it"] if waits else []
        said = [*(f"# {words}" for words in self._origin), *said]
        said += [f"# {version}: {how or 'lives'}" for version, how in self.seen.items()]
        lines += [encode(access).decode() for access in self._later()]
        return "\n".join([*said, f"cat << EOF | {command}", *lines, "EOF", ""])

    @property
    def _origin(self) -> Sequence[str]:
        """What it is, and who has found it, in a line each."""
        issue = f"known as {self.issue}" if self.issue else ""
        return [" ".join(words.split()) for words in (self.title, self.source, issue) if words]

    def _later(self) -> Sequence[Access]:
        """What upstream's forms need at the end: there time stands still by itself, and timers with it."""
        return () if isinstance(self.accesses[-1], ClockStep) else (ClockStep(SECOND),)

    def as_c(self, name: str = "crash") -> str:
        """A test for QEMU's own suite (tests/qtest/libqtest.h)."""
        body = [_C[type(access)](access) for access in self.accesses if type(access) in _C]
        if lacking := [access for access in self.accesses if type(access) not in {*_C, Flush}]:
            raise UsageError(
                f"a C test can be made of ports, memory and its contents alone, and not of {lacking[0]}",
                hint="vmtest replay FILE runs it",
            )
        body += [_C[type(access)](access) for access in self._later()]
        arguments = shlex.join((*self.board.arguments, "-display", "none")).replace("\\", "\\\\").replace('"', '\\"')
        said = "\n".join(f" * {words}" for words in (*self._origin, self.signature) if words)
        said += "" if self.lockstep else "\n * Found with all sent at once: this waits for each, and may not end by it."
        return _TEST.format(said=said, name=re.sub(r"\W", "_", name), arguments=arguments, body="\n".join(body))


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
    not come each time: it is tried up to TRIES times. Raises HostError where it does not start.
    """
    crash = None
    for _ in range(TRIES if reproducer.signature else 1):
        with Session(reproducer.board, qemu, traced=reproducer.place(qemu) != "") as session:
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


def _operations(lines: Sequence[str]) -> list[Access]:
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


# -- what upstream has, and takes ------------------------------------------------------------------------------------


def from_shell(text: str) -> Reproducer:
    """What a here-document for ``-qtest stdio`` says. Raises UsageError where there is none."""
    joined = re.sub(r"/\*.*?\*/", "", re.sub(r"\\\n\s*", " ", text))
    heading = re.search(r"<<-?\s*['\"]?(\w+)['\"]?[^\n]*\n", joined)
    command = re.search(r"(?:\S*/)?(qemu-system-[\w]+)([^\n|<]*)", joined)
    if not heading or not command:
        raise UsageError(
            "there is no here-document for QEMU in this",
            hint="such as: cat << EOF | qemu-system-x86_64 -M q35 … -qtest stdio, operations, EOF",
        )
    body = re.split(rf"^\s*{heading[1]}\s*$", joined[heading.end() :], maxsplit=1, flags=re.M)[0]
    return Reproducer(
        binary=command[1],
        board=Board(arguments=_without_ours(re.sub(r"\s\d*&?>{1,2}&?\s*\S+", " ", command[2]))),
        accesses=tuple(_operations(body.splitlines())),
    )


def _without_ours(text: str) -> tuple[str, ...]:
    """QEMU's arguments, but for those that say how it is spoken to."""
    words = iter(Board.parse(text).arguments)
    kept = []
    for word in words:
        if word in OURS:
            next(words, None)
        elif word in ("-machine", "-M", "-accel"):
            value = re.sub(r",?\baccel=qtest\b|^qtest\b.*", "", next(words, "")).lstrip(",")
            kept += [word, value] if value else []
        else:
            kept.append(word)
    return tuple(kept)


def _c_store(access: Store) -> str:
    octets = "".join(f"\\x{octet:02x}" for octet in access.data)
    return f'    qtest_bufwrite(s, 0x{access.address:x}, "{octets}", 0x{len(access.data):x});'


_SUFFIX = {1: "b", 2: "w", 4: "l", 8: "q"}
_C: Mapping[type, Any] = {
    In: lambda access: f"    qtest_in{_SUFFIX[access.size]}(s, 0x{access.port:x});",
    Out: lambda access: f"    qtest_out{_SUFFIX[access.size]}(s, 0x{access.port:x}, 0x{access.value:x});",
    Read: lambda access: f"    qtest_read{_SUFFIX[access.size]}(s, 0x{access.address:x});",
    Write: lambda access: f"    qtest_write{_SUFFIX[access.size]}(s, 0x{access.address:x}, 0x{access.value:x});",
    Load: lambda access: f"    {{ char b[0x{access.length:x}]; qtest_bufread(s, 0x{access.address:x}, b, sizeof b); }}",
    Store: _c_store,
    ClockStep: lambda access: (
        "    qtest_clock_step_next(s);" if access.ns is None else f"    qtest_clock_step(s, {access.ns});"
    ),
    Fill: lambda access: f"    qtest_memset(s, 0x{access.address:x}, 0x{access.byte:x}, 0x{access.length:x});",
}
_TEST = """\
/*
{said}
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"

#include "libqtest.h"

static void test_{name}(void)
{{
    QTestState *s = qtest_init("{arguments}");

{body}
    qtest_quit(s);
}}

int main(int argc, char **argv)
{{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("fuzz/{name}", test_{name});
    return g_test_run();
}}
"""
