"""Operations as requests of qtest: what is sent together, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from vmtest.devices.access import (
    UNSAID,
    Access,
    ClockSet,
    ClockStep,
    Csr,
    Endianness,
    In,
    Load,
    Read,
    Reset,
    Rtas,
    encode,
)
from vmtest.errors import HostError

__all__ = ["pieces", "until", "values"]

STEP, LONGEST = 0.2, 1.0
"""Seconds that pass for a step of the clock up to the next timer, and at most for one of a given length, where the
build has no accelerator qtest."""


def pieces(accesses: Sequence[Access], has_clock: bool) -> Iterator[list[Access] | float | Reset]:
    """Those that are sent together; resets; and, where the clock cannot be told, seconds that are to pass."""
    apart = {*UNSAID} if has_clock else {*UNSAID, ClockStep, ClockSet}
    together: list[Access] = []
    for access in accesses:
        if type(access) not in apart:
            together.append(access)
            continue
        if together:
            yield together
            together = []
        if isinstance(access, Reset):
            yield access
        elif isinstance(access, ClockStep | ClockSet):
            ns = access.ns if isinstance(access, ClockStep) else None
            yield STEP if ns is None else min(ns / 1e9, LONGEST)
    if together:
        yield together


def values(accesses: Sequence[Access], replies: Sequence[bytes]) -> list[int | bytes | None]:
    """What each of the operations that were answered is answered by. Raises HostError where QEMU refuses one."""
    said = [access for access in accesses if type(access) not in UNSAID]
    found: list[int | bytes | None] = []
    for access, reply in zip(said, replies, strict=False):
        if reply == b"OK":  # as most are
            found.append(None)
            continue
        if reply[:2] != b"OK":
            raise HostError(
                f"QEMU refuses {encode(access).decode()!r}: {reply.decode(errors='replace')}",
                hint="it needs the accelerator qtest, which this build may not have, or a newer QEMU"
                if reply.startswith(b"FAIL Unknown command")
                else "",
            )
        value = _VALUES.get(type(access))
        found.append(value and value(reply))
    return found


_VALUES: Mapping[type, Callable[[bytes], int | bytes]] = {
    **dict.fromkeys((In, Read), lambda reply: int(reply[3:], 16)),
    Load: lambda reply: bytes.fromhex(reply[5:].decode()),
    Rtas: lambda reply: int(reply[3:]),
    Csr: lambda reply: int(reply.split()[2], 16),
    Endianness: lambda reply: reply[3:],
}
"""By what is asked what it is answered by."""


def until(accesses: Sequence[Access], done: int) -> Sequence[Access]:
    """Up to the operation behind so many that were answered."""
    answered = 0
    for at, access in enumerate(accesses):
        answered += not isinstance(access, UNSAID)
        if answered > done:
            return accesses[: at + 1]
    return accesses
