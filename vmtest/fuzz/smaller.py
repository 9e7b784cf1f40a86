"""A reproducer made smaller, whoever has written it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from vmtest.devices.access import MOST, Access, Fill, Store
from vmtest.devices.reproducer import Reproducer
from vmtest.devices.target import Target
from vmtest.errors import UsageError
from vmtest.fuzz.confirm import Confirmer
from vmtest.host import Qemu

__all__ = ["smaller"]

TURN = 2.0
"""Seconds after which it is told how small it is."""


def smaller(
    made: Reproducer, qemu: Qemu, *, seconds: float, told: Callable[[Reproducer], None]
) -> tuple[Reproducer, bool]:
    """The same crash on that QEMU by fewer operations and simpler values, as small as so many seconds allow; and
    whether there is nothing more to be tried. ``told`` is called now and then with what there is. Raises UsageError
    where QEMU does not end as the reproducer says. What other versions were seen to do is left out: not by these.
    """
    target = Target(name=made.title, board=made.board, areas=(), arena=_memory(made.accesses))
    confirmer = Confirmer(target, qemu, made.source)
    until = time.monotonic() + seconds
    found = confirmer.confirmed([made.accesses], "hang" if made.signature.startswith("no answer") else "", ())
    if found is None or isinstance(found, str):
        raise UsageError("QEMU lives: there is nothing to be made smaller", hint="vmtest replay FILE --qemu OTHER")
    if not made.is_same(found.crash, qemu):
        raise UsageError(
            f"QEMU ends otherwise than the file says: {found.crash.key}", hint="vmtest import writes down how it does"
        )
    while (left := until - time.monotonic()) > 0 and not found.is_smallest:
        found = confirmer.smaller(found, seconds=min(TURN, left))
        now = found.reproducer
        made = replace(made, accesses=now.accesses, lockstep=now.lockstep, seen=now.seen)
        told(made)
    return made, found.is_smallest


def _memory(accesses: Sequence[Access]) -> tuple[int, int]:
    """What is written of it: its address, and how many bytes."""
    spans = [(one.address, one.address + len(one.data)) for one in accesses if isinstance(one, Store)]
    spans += [(one.address, one.address + one.length) for one in accesses if isinstance(one, Fill)]
    first = min((begin for begin, _ in spans), default=0)
    return first, min(max((end for _, end in spans), default=1) - first, MOST)
