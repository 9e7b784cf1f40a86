"""What QEMU's developers have, and take: here-documents for ``-qtest stdio``, and tests in C."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmtest.devices.access import Access, ClockStep, Fill, Flush, In, Load, Out, Read, Reset, Store, Write, encode
from vmtest.devices.board import Board
from vmtest.devices.reproducer import Reproducer, operations
from vmtest.errors import UsageError

__all__ = ["as_c", "as_shell", "from_shell"]

SECOND = 1_000_000_000
"""Nanoseconds, in which timers may still end a QEMU whose clock stands still by itself."""
OURS = ("-qtest", "-qtest-log", "-display")
"""Options with a value that are ours to give."""


def from_shell(text: str) -> Reproducer:
    """What a here-document for ``-qtest stdio`` says. Raises UsageError where there is none."""
    joined = re.sub(r"\\\n\s*", " ", text)
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
        accesses=tuple(operations(re.sub(r"/\*.*?\*/", "", body).splitlines())),
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


def as_shell(made: Reproducer) -> str:
    """A here-document for ``-qtest stdio``, as upstream's reports have it. Raises UsageError where that cannot say
    it.
    """
    if any(isinstance(access, Reset) for access in made.accesses):
        raise UsageError(
            "it has a reset of the machine, as what is not yet made small may: a here-document cannot say that",
            hint="vmtest replay FILE runs it; vmtest shrink FILE may leave it out",
        )
    lines = [encode(access).decode() for access in made.accesses if not isinstance(access, Flush)]
    command = f"{Path(made.binary).name} {shlex.join(made.board.arguments)} -display none -accel qtest -qtest stdio"
    waits = made.lockstep or any(isinstance(access, Flush) for access in made.accesses)
    said = ["# found with QEMU's main loop run between operations, as a test in C has it"] if waits else []
    said = [*(f"# {words}" for words in _origin(made)), *said]
    said += [f"# {version}: {how or 'lives'}" for version, how in made.seen.items()]
    lines += [encode(access).decode() for access in _later(made)]
    return "\n".join([*said, f"cat << EOF | {command}", *lines, "EOF", ""])


def as_c(made: Reproducer, name: str = "crash") -> str:
    """A test for QEMU's own suite (tests/qtest/libqtest.h)."""
    body = [_C[type(access)](access) for access in made.accesses if type(access) in _C]
    if lacking := [access for access in made.accesses if type(access) not in {*_C, Flush}]:
        raise UsageError(
            f"a C test can be made of ports, memory and its contents alone, and not of {lacking[0]}",
            hint="vmtest replay FILE runs it",
        )
    body += [_C[type(access)](access) for access in _later(made)]
    arguments = shlex.join((*made.board.arguments, "-display", "none")).replace("\\", "\\\\").replace('"', '\\"')
    told = (words.replace("*/", "* /") for words in (*_origin(made), made.signature) if words)
    said = "\n".join(f" * {words}" for words in told)
    said += "" if made.lockstep else "\n * Found with all sent at once: this waits for each, and may not end by it."
    return _TEST.format(said=said, name=re.sub(r"\W", "_", name), arguments=arguments, body="\n".join(body))


def _origin(made: Reproducer) -> Sequence[str]:
    """What it is, and who has found it, in a line each."""
    issue = f"known as {made.issue}" if made.issue else ""
    return [" ".join(words.split()) for words in (made.title, made.source, issue) if words]


def _later(made: Reproducer) -> Sequence[Access]:
    """What upstream's forms need at the end: there time stands still by itself, and timers with it."""
    return () if isinstance(made.accesses[-1], ClockStep) else (ClockStep(SECOND),)


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
