"""The smallest case of a cluster: less code, fewer registers that matter, simpler values. The result is always the same
for the same case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from vmtest.model.case import Case, Patch
from vmtest.model.isa import Register

__all__ = ["minimise"]

ROUNDS = 4
"""How often all ways to make a case simpler are gone through, until none helps."""
Same = Callable[[Sequence[Case]], Iterable[bool]]
"""Whether each of several cases is of the cluster; the rest is not asked for behind the first that is."""


def minimise(case: Case, same: Same) -> Case:
    """The smallest case that is the same, by ``same``, as this one."""
    for _ in range(ROUNDS):
        before = case
        case = _shorter(case, same)
        case = _fewer(case, same)
        case = _simpler(case, same)
        if case == before:
            break
    return case


def _first(candidates: Sequence[Case], same: Same) -> Case | None:
    """The first candidate that is the same; they are tried together."""
    if not candidates:
        return None
    return next((case for case, is_same in zip(candidates, same(candidates), strict=True) if is_same), None)


def _shorter(case: Case, same: Same) -> Case:
    """Bytes left out, and others zeroed."""
    while found := _first([replace(case, code=code) for code in _without(case.code, case.isa.step)], same):
        case = found
    end = len(case.code)
    while found := _first([_with_zero(case, at) for at in reversed(range(1, end)) if case.code[at]], same):
        end = next(at for at in range(end) if found.code[at] != case.code[at])  # those behind it have failed
        case = found
    return case


def _without(code: bytes, step: int) -> Iterator[bytes]:
    """The code without some of its bytes, the shortest first, in steps of its instructions."""
    for size in (8, 4, 2, 1):
        for at in range(0, len(code) - size + 1, step) if len(code) > size and size % step == 0 else ():
            yield code[:at] + code[at + size :]


def _with_zero(case: Case, at: int) -> Case:
    return replace(case, code=case.code[:at] + b"\0" + case.code[at + 1 :])


def _fewer(case: Case, same: Same) -> Case:
    """What registers and memory need not hold: by halves, as delta debugging does."""
    parts: list[Register | Patch] = [r for r in case.isa.registers if not _is_default(case, r)]
    parts += case.memory
    size = len(parts)
    while parts and size:
        pieces = [parts[at : at + size] for at in range(0, len(parts), size)]
        found = _first([_less(case, piece) for piece in pieces], same)
        if found is None:
            size = size // 2 if size > 1 else 0
            continue
        case = found
        parts = [part for part in parts if (part in case.memory) or _is_there(case, part)]
        size = min(size, len(parts))
    return case


def _is_default(case: Case, register: Register) -> bool:
    place = case.isa.places[register.name]
    return case.state[place] == case.isa.default[place]


def _is_there(case: Case, part: Register | Patch) -> bool:
    return isinstance(part, Register) and not _is_default(case, part)


def _less(case: Case, parts: Sequence[Register | Patch]) -> Case:
    state = bytearray(case.state)
    for part in parts:
        if isinstance(part, Register):
            place = case.isa.places[part.name]
            state[place] = case.isa.default[place]
    return replace(case, state=bytes(state), memory=tuple(patch for patch in case.memory if patch not in parts))


def _simpler(case: Case, same: Same) -> Case:
    """Values with fewer bits and bytes."""
    for register in case.isa.registers:
        if not _is_default(case, register):
            place, fixed = case.isa.places[register.name], case.isa.fixed.get(register.name, (0, 0))
            while found := _first([_with(case, place, value) for value in _smaller(case.state[place], *fixed)], same):
                case = found
    for number in range(len(case.memory)):
        while number < len(case.memory) and (found := _first(list(_smaller_patches(case, number)), same)):
            case = found
    return case


def _with(case: Case, place: slice, value: bytes) -> Case:
    return replace(case, state=case.state[: place.start] + value + case.state[place.stop :])


def _smaller(value: bytes, mask: int = 0, kept: int = 0) -> Iterator[bytes]:
    """Each with fewer bits set than the one that is given, the simplest first; bits of the mask are as they have to be
    (Isa.fixed).
    """
    number, size = int.from_bytes(value, "little"), len(value)
    tried = [1, *(number & (1 << bits) - 1 for bits in (8, 16, 32, 64) if bits < 8 * size)]
    tried += [number & ~(0xFFFFFFFF << at) for at in range(0, 8 * size, 32)]
    tried += [number & ~(0xFF << at) for at in range(0, 8 * size, 8)] if number.bit_count() < 24 or size <= 8 else []
    tried += [number & ~(1 << at) for at in range(8 * size) if number >> at & 1] if number.bit_count() <= 12 else []
    for candidate in dict.fromkeys(candidate & ~mask | kept for candidate in tried):
        if candidate != number and (candidate.bit_count(), candidate) < (number.bit_count(), number):
            yield candidate.to_bytes(size, "little")


def _smaller_patches(case: Case, number: int) -> Iterator[Case]:
    """A patch cut to a part of it, and with zeros."""
    at, data = case.memory[number]
    half = len(data) // 2
    pieces = [(at, data[:half]), (at + half, data[half:]), (at + 1, data[1:]), (at, data[:-1])] if half else []
    if len(data) <= 16:
        pieces += [(at, data[:k] + b"\0" + data[k + 1 :]) for k in range(len(data)) if data[k]]
    for piece in pieces:
        yield replace(case, memory=(*case.memory[:number], piece, *case.memory[number + 1 :]))
