"""A case, which is code and the state that it begins in, and the outcome of running it: as text, and as bytes."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from vmtest.errors import UsageError
from vmtest.model.isa import DATA_SIZE, PAGE, Isa, isa

__all__ = ["Case", "Outcome", "Patch", "differences"]

Patch = tuple[int, bytes]
"""Bytes of the data window, and where in it they are."""

_ZEROS = bytes(DATA_SIZE)
_CHANGED = re.compile(rb"[^\0](?:\0{0,7}[^\0])*")
_CASE = struct.Struct("<BH")
_PATCH = struct.Struct("<HH")
_OUTCOME = struct.Struct("<BBQQQQH")


@dataclass(frozen=True, kw_only=True)
class Case:
    """``state`` is laid out as Isa says; ``memory`` patches the data window, which is zeros otherwise."""

    isa: Isa
    code: bytes
    state: bytes
    memory: tuple[Patch, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.code) <= self.isa.code_most:
            raise UsageError(f"a case has 1 to {self.isa.code_most} bytes of code, and this one {len(self.code)}")
        for at, data in self.memory:
            if not 0 <= at <= at + len(data) <= DATA_SIZE:
                raise UsageError(f"the data window has {DATA_SIZE} bytes: {len(data)} at {at:#x} are not in it")

    @property
    def start(self) -> int:
        """The address of its first instruction."""
        return self.end - len(self.code)

    @property
    def end(self) -> int:
        """The address behind its last one, where nothing is."""
        return self.isa.code + PAGE

    @property
    def window(self) -> bytes:
        """The data window as it begins."""
        if not self.memory:
            return _ZEROS
        window = bytearray(_ZEROS)
        for at, data in self.memory:
            window[at : at + len(data)] = data
        return bytes(window)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The case that a line says, such as ``x86_64 c4e2f8f3db rbx=1 [0x10]=00ff``.

        After the instruction set and the code come registers, as numbers, and bytes of the data window by their
        place in it, as hex. Raises UsageError.
        """
        words = text.split()
        if len(words) < 2:
            raise UsageError(f"{text!r} is not a case", hint="such as: x86_64 c4e2f8f3db rbx=1 [0x10]=00ff")
        row = isa(words[0])
        values: dict[str, int] = {}
        memory = []
        for word in words[2:]:
            name, equals, value = word.partition("=")
            if place := re.fullmatch(r"\[(.+)\]", name):
                memory.append((number(place[1]), hexadecimal(value)))
            elif equals:
                values[name] = number(value)
            else:
                raise UsageError(f"{word!r} is neither REGISTER=NUMBER nor [PLACE]=HEX")
        return cls(isa=row, code=hexadecimal(words[1]), state=row.state(values), memory=tuple(memory))

    def __str__(self) -> str:
        registers = [f"{name}={value:#x}" for name, value in self.isa.said(self.state).items()]
        memory = [f"[{at:#x}]={data.hex()}" for at, data in self.memory]
        return " ".join([self.isa.name, self.code.hex(), *registers, *memory])

    def pack(self) -> bytes:
        """As bytes, of which those who know the instruction set can make it again."""
        # Each executor that runs it asks, and cached_property takes as long as to pack anew.
        kept: bytes | None = self.__dict__.get("_packed")
        if kept is None:
            kept = _CASE.pack(len(self.code), len(self.memory)) + self.code + self.state
            for at, data in self.memory:
                kept += _PATCH.pack(at, len(data)) + data
            self.__dict__["_packed"] = kept
        return kept

    @classmethod
    def unpack(cls, row: Isa, data: bytes, at: int) -> tuple[Self, int]:
        """The case whose bytes begin ``at``, and where they end."""
        length, patches = _CASE.unpack_from(data, at)
        at += _CASE.size
        code, state = data[at : at + length], data[at + length : at + length + row.size]
        memory, at = _patches(data, at + length + row.size, patches)
        return cls(isa=row, code=code, state=state, memory=memory), at


STATUSES = ("ok", "exception", "unsupported", "timeout", "died", "decoded")
_DECODED = STATUSES.index("decoded")


class Outcome(NamedTuple):
    """How a case went.

    ``status`` is "ok" (it came to its end), "exception", "unsupported" (the executor cannot run it, which says nothing
    of the machine), "timeout", "died" (the executor crashed: ``signal`` is by which signal, 0 for an error of its own),
    or "decoded" (by what runs nothing). Only the first two have a ``state`` and ``writes`` (to the data window: what
    differs from what it began with).

    ``end`` is the address of the instruction that was next, or that raised the exception; ``vector`` is the exception
    as the instruction set numbers it, ``error`` its error code and ``address`` the address whose access failed. Each is
    None where there is none, or the executor cannot tell.

    Of a decoder ``begins`` has a bit for each byte of the code where an instruction begins. ``end`` is where it
    stopped, behind the code or at what is no instruction; if that is one which is cut off, ``address`` is the code's
    end.
    """

    status: str
    state: bytes = b""
    writes: tuple[Patch, ...] = ()
    end: int | None = None
    vector: int | None = None
    error: int | None = None
    address: int | None = None
    signal: int = 0
    begins: int = 0

    def pack(self) -> bytes:
        """As bytes, of which those who know the instruction set can make it again."""
        status, state, writes, end, vector, error, address, signal, begins = self
        known = (vector is not None) | (error is not None) << 1 | (address is not None) << 2 | (end is not None) << 3
        index = STATUSES.index(status)
        told = (vector or 0, error or begins, address or 0, end or 0)  # a decoder tells no error code
        head = _OUTCOME.pack(index | signal << 3, known, *told, len(writes)) + (state if index < 2 else b"")
        return head + b"".join([_PATCH.pack(at, len(data)) + data for at, data in writes]) if writes else head

    @classmethod
    def unpack(cls, row: Isa, data: bytes, number: int) -> list[Outcome]:
        """So many outcomes, whose bytes follow each other."""
        found, at, size = [], 0, row.size
        for _ in range(number):
            index, known, vector, error, address, end, patches = _OUTCOME.unpack_from(data, at)
            at += _OUTCOME.size
            index, signal = index & 7, index >> 3
            state = b""
            writes: tuple[Patch, ...] = ()
            if index < 2:
                state = data[at : at + size]
                at += size
            if patches:
                writes, at = _patches(data, at, patches)
            told = (
                STATUSES[index],
                state,
                writes,
                end if known & 8 else None,
                vector if known & 1 else None,
                error if known & 2 else None,
                address if known & 4 else None,
                signal,
                error if index == _DECODED else 0,
            )
            found.append(tuple.__new__(cls, told))  # in a third of the time that NamedTuple's own takes
        return found

    def as_dict(self, row: Isa) -> dict[str, Any]:
        """For JSON: registers by name, bytes as hex; what does not apply is left out."""
        found: dict[str, Any] = {"status": self.status}
        if self.state:
            found["registers"] = row.values(self.state)
            found["writes"] = {f"{at:#x}": data.hex() for at, data in self.writes}
        told = {"end": self.end, "vector": self.vector, "error": self.error, "address": self.address}
        told |= {"signal": self.signal or None, "begins": self.begins or None}
        return found | {name: value for name, value in told.items() if value is not None}

    @classmethod
    def of_dict(cls, row: Isa, data: Mapping[str, Any]) -> Self:
        """What ``as_dict`` has made. Raises UsageError for anything else."""
        try:
            state = row.state(data["registers"]) if "registers" in data else b""
            writes = tuple((number(at), hexadecimal(found)) for at, found in data.get("writes", {}).items())
            told = {
                name: int(data[name])
                for name in ("end", "vector", "error", "address", "signal", "begins")
                if name in data
            }
            if data["status"] not in STATUSES:
                raise UsageError(f"an outcome is none of {', '.join(STATUSES)}: {data['status']!r}")
            return cls(data["status"], state, writes, **told)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"this is no outcome: {error!r}") from None


def _patches(data: bytes, at: int, number: int) -> tuple[tuple[Patch, ...], int]:
    found = []
    for _ in range(number):
        place, length = _PATCH.unpack_from(data, at)
        at += _PATCH.size
        found.append((place, data[at : at + length]))
        at += length
    return tuple(found), at


def number(text: str) -> int:
    """A number as people write it: 10, 0x1f, -1, ~0. Raises UsageError."""
    digits = text.removeprefix("~")
    try:
        value = int(digits, 0)
    except ValueError:
        raise UsageError(f"{text!r} is not a number", hint="such as 10, 0x1f or -1") from None
    return ~value if digits != text else value


def hexadecimal(text: str) -> bytes:
    """Bytes written in hex. Raises UsageError."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        odd = f": {len(text)} digits" if len(text) % 2 else ""
        raise UsageError(
            f"{text!r} are not bytes in hex{odd}", hint="two digits a byte, such as 90 or c4e2f8f3db"
        ) from None


def differences(before: bytes, after: bytes) -> tuple[Patch, ...]:
    """What of a window has changed, as patches; those that fewer than 8 bytes lie between are one."""
    if before == after:
        return ()
    # From the first byte that differs to the last one, since most cases write in one place.
    start, end, step = 0, len(before), len(before)
    while step > 1:
        step //= 2  # the size of a window is a power of two
        if before[start : start + step] == after[start : start + step]:
            start += step
        if before[end - step : end] == after[end - step : end]:
            end -= step
    changed = (int.from_bytes(before[start:end]) ^ int.from_bytes(after[start:end])).to_bytes(end - start)
    found = ((start + run.start(), start + run.end()) for run in _CHANGED.finditer(changed))
    return tuple((first, after[first:last]) for first, last in found)
