"""What of an x86 case goes by flags that an instruction before has left undefined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from iced_x86 import InstructionInfoFactory, OpAccess, RegisterExt

from vmtest.forms.x86_access import JUMPS, WRITES, undefined_behind
from vmtest.model.case import Case

__all__ = ["tainted"]

_FACTORY = InstructionInfoFactory()


def tainted(case: Case, decoded: list[Any], mask: Callable[[int], int]) -> Mapping[str, int]:
    """See Forms.tainted: all that the first one that reads such flags writes, and those behind it. ``mask`` is of
    iced's flags the bits of the flags register.
    """
    undefined, found = 0, dict[str, int]()
    places = {one.ip for one in decoded} | {case.end}
    for one in decoded:
        if found or undefined & one.rflags_read:
            if one.flow_control in JUMPS and (one.near_branch_target <= one.ip or one.near_branch_target not in places):
                return dict.fromkeys((*case.isa.places, "memory", "end"), -1)
            _add(case, one, found)
            if one.flow_control in JUMPS:
                found["end"] = -1
            flags = mask(one.rflags_modified)
            found[case.isa.flags] = found.get(case.isa.flags, 0) | flags
        undefined = undefined_behind(one, undefined)
    return found


def _add(case: Case, one: Any, found: dict[str, int]) -> None:
    """What one instruction writes. Where it reaches may go by what is tainted too, and so whether that fails."""
    info = _FACTORY.info(one)
    memory = [used.access for used in info.used_memory() if used.access != OpAccess.NO_MEM_ACCESS]
    if memory:
        found["end"] = -1
    if any(access in WRITES for access in memory):
        found["memory"] = -1
    for used in info.used_registers():
        if used.access in WRITES:
            found.update(dict.fromkeys(_names(case, used.register), -1))


def _names(case: Case, register: Any) -> list[str]:
    """The registers of a case that a register is a part of, with the state of floating point that it may change."""
    if RegisterExt.is_gpr(register):
        return [case.isa.registers[RegisterExt.number(RegisterExt.full_register(register))].name]
    if RegisterExt.is_vector_register(register):
        number = RegisterExt.number(register)
        return [name for name in (f"xmm{number}", f"ymm{number}h", "mxcsr") if name in case.isa.places]
    if RegisterExt.is_st(register) or RegisterExt.is_mm(register):
        return [*(f"st{number}" for number in range(8)), "fsw", "ftw"]
    return []
