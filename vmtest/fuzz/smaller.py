"""A reproducer made smaller, whoever has written it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from vmtest.devices.access import MOST, Access, Fill, Store
from vmtest.devices.layout import Area
from vmtest.devices.reproducer import Reproducer
from vmtest.devices.session import Session
from vmtest.devices.target import Target, memory
from vmtest.errors import UsageError
from vmtest.fuzz.confirm import Confirmer
from vmtest.host import Qemu

__all__ = ["cleared", "smaller"]

TURN = 2.0
"""Seconds after which it is told how small it is."""
HANG_TURN = 20.0
"""The same for a hang, which is waited for for long after each."""
NEAR = 4096
"""Bytes between two pieces of memory that are cleared together."""


def smaller(
    made: Reproducer, qemu: Qemu, *, seconds: float, told: Callable[[Reproducer], None]
) -> tuple[Reproducer, bool]:
    """The same crash on that QEMU by fewer operations and simpler values, as small as so many seconds allow; and
    whether all was tried. ``told`` is called each time that it has become smaller. Raises UsageError where QEMU does
    not end as the reproducer says. What other versions were seen to do is left out: not by these.
    """
    with Session(made.board, qemu) as session:
        clear = list(cleared(made.accesses, memory(session)))
    target = Target(name=made.title, board=made.board, areas=(), arena=(0, 0))
    confirmer = Confirmer(target, qemu, made.source, clear=clear)
    until = time.monotonic() + seconds
    if (found := confirmer.again(made)) is None:
        raise UsageError(
            f"this QEMU does not end as the file says: {made.signature or 'it lives'}",
            hint="vmtest replay FILE says how it ends, --qemu OTHER runs another one",
        )
    turn = HANG_TURN if found.crash.kind == "hang" else TURN
    place = found.crash.key.removeprefix(found.crash.signature)
    title = re.sub(r" at \+\S+$", place, made.title)  # which is of one build
    while (left := until - time.monotonic()) > 0 and not found.is_smallest:
        found = confirmer.smaller(found, seconds=min(turn, left))
        now = found.reproducer
        less = replace(made, title=title, binary=qemu.name, accesses=now.accesses, lockstep=now.lockstep, seen=now.seen)
        less = replace(less, words=now.words, unfinished=found.is_unfinished)
        if less.size < made.size:
            made = less
            told(made)
    return made, not found.is_unfinished


def cleared(accesses: Sequence[Access], ram: Sequence[Area]) -> Iterator[Fill]:
    """Zeros for all of the memory that is written, and for no register."""
    spans = [(one.address, one.address + len(one.data)) for one in accesses if isinstance(one, Store)]
    spans += [(one.address, one.address + one.length) for one in accesses if isinstance(one, Fill)]
    for area in ram:
        first, last = area.address, area.address + area.size
        within = [(max(begin, first), min(end, last)) for begin, end in spans if begin < last and end > first]
        for begin, end in _joined(sorted(within)):
            yield Fill(begin, end - begin, 0)


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that are near each other as one, of as many bytes as one operation takes."""
    found = list[tuple[int, int]]()
    for begin, end in spans:
        if found and begin - found[-1][1] <= NEAR and max(end, found[-1][1]) - found[-1][0] <= MOST:
            begin, end = found[-1][0], max(end, found.pop()[1])
        found.append((begin, end))
    return found
