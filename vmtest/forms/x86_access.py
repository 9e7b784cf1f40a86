"""Where x86 instructions reach, by the registers that a case begins with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iced_x86 import (
    EncodingKind,
    FlowControl,
    InstructionInfoFactory,
    MemorySizeExt,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
    RflagsBits,
)
from iced_x86 import Mnemonic as M

from vmtest.model.case import Case
from vmtest.model.isa import DATA_SIZE

__all__ = [
    "JUMPS",
    "WRITES",
    "accesses",
    "flags_written",
    "is_read_and_written",
    "may_go_back",
    "may_jump",
    "read",
    "register_value",
    "target",
    "undefined_behind",
]

JUMPS = {
    FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH, FlowControl.CONDITIONAL_BRANCH, FlowControl.RETURN,
    FlowControl.CALL, FlowControl.INDIRECT_CALL,
}  # fmt: skip
"""Branches: not what raises an exception, calls a kernel or is no instruction."""
_BOTH = {OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE}
WRITES = {OpAccess.WRITE, OpAccess.COND_WRITE, *_BOTH}
_MOST = (1 << 64) - 1
# Intel SDM, volume 1, section 4.1.1.1 and table 14-22: 16-byte operands are to be aligned but of these, and with VEX
# only of those.
_UNALIGNED = {
    M.MOVUPS, M.MOVUPD, M.MOVDQU, M.LDDQU, M.PCMPESTRI, M.PCMPESTRM, M.PCMPISTRI, M.PCMPISTRM, M.PCMPESTRI64,
    M.PCMPESTRM64, M.MASKMOVDQU,
}  # fmt: skip
_ALIGNED = {M.VMOVAPS, M.VMOVAPD, M.VMOVDQA, M.VMOVNTPS, M.VMOVNTPD, M.VMOVNTDQ, M.VMOVNTDQA, M.CMPXCHG16B}
_BIT_TESTS = {M.BT, M.BTS, M.BTR, M.BTC}
_FACTORY = InstructionInfoFactory()


def register_value(case: Case, register: Any) -> int:
    """What a general register, or a part of one, begins with; 0 for any other."""
    if not RegisterExt.is_gpr(register):
        return 0
    full, size = RegisterExt.full_register(register), RegisterExt.size(register)
    at = RegisterExt.number(full)
    place = case.isa.places[case.isa.registers[at].name]
    value = int.from_bytes(case.state[place], "little")
    if register in (Register.AH, Register.BH, Register.CH, Register.DH):
        value >>= 8
    return value % (1 << 8 * size)


def accesses(case: Case, one: Any) -> Iterator[tuple[int, int, bool]]:
    """Of each access to memory its address, how many bytes it has, and whether it must be aligned to that."""
    for memory in _FACTORY.info(one).used_memory():
        size = MemorySizeExt.size(memory.memory_size)
        address = memory.displacement
        address += register_value(case, memory.base) + register_value(case, memory.index) * memory.scale
        if one.mnemonic in _BIT_TESTS and RegisterExt.is_gpr(one.op1_register):
            bits = 8 * RegisterExt.size(one.op1_register)
            index = register_value(case, one.op1_register)
            index -= (index >> bits - 1) << bits
            address += index // bits * (bits // 8)
        address %= 1 << 8 * max(1, 1 << memory.address_size) if memory.address_size else _MOST + 1
        yield address, size, _is_aligned(one, size)


def flags_written(one: Any) -> int:
    """The flags that it writes in any case, as iced-x86 has them: a repeated one may have nothing to do."""
    if one.is_string_instruction and (one.has_rep_prefix or one.has_repne_prefix):
        return 0
    return int(one.rflags_written | one.rflags_cleared | one.rflags_set)


def may_jump(one: Any) -> bool:
    """Whether it may go on elsewhere than behind itself."""
    return one.flow_control not in (FlowControl.NEXT, FlowControl.EXCEPTION)


def may_go_back(one: Any) -> bool:
    """Whether it may go on at itself or before; also where it is not known."""
    if not may_jump(one):
        return False
    says_where = one.op0_kind in (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)
    return not says_where or bool(one.near_branch_target <= one.ip)


def undefined_behind(one: Any, before: int) -> int:
    """The flags that are undefined behind an instruction, with IF where it writes that: if it does goes by the ring."""
    return int(before & ~flags_written(one) | one.rflags_undefined | one.rflags_written & RflagsBits.IF)


def is_read_and_written(one: Any) -> bool:
    """Whether it has an operand in memory that it reads, and then writes."""
    return any(memory.access in _BOTH for memory in _FACTORY.info(one).used_memory())


def read(case: Case, one: Any) -> int | None:
    """What its operand in memory begins with, None where that is not in the data window."""
    address, size, _ = next(accesses(case, one))
    address -= case.isa.data
    return int.from_bytes(case.window[address : address + size], "little") if 0 <= address <= DATA_SIZE - size else None


def target(case: Case, one: Any) -> int | None:
    """Where a branch goes that does not say so itself, None where that is not known."""
    if one.flow_control not in (FlowControl.INDIRECT_BRANCH, FlowControl.INDIRECT_CALL, FlowControl.RETURN):
        return None
    if one.op_count and one.op0_kind == OpKind.REGISTER:
        return register_value(case, one.op0_register)
    address = next((address for address, _, _ in accesses(case, one)), 0) - case.isa.data
    return int.from_bytes(case.window[address : address + 8], "little") if 0 <= address <= DATA_SIZE - 8 else None


def _is_aligned(one: Any, size: int) -> bool:
    if one.mnemonic in _ALIGNED:
        return True
    return bool(one.encoding == EncodingKind.LEGACY and size == 16 and one.mnemonic not in _UNALIGNED)
