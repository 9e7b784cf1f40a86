"""What of an x86 case leads to differences that say nothing of one instruction: the words of compare/limits_*.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iced_x86 import CpuidFeature, Decoder, DecoderError, Mnemonic, RegisterExt, RflagsBits

from vmtest.forms.x86_access import JUMPS, accesses, is_read_and_written, target, undefined_behind
from vmtest.forms.x86_rules import BANNED, PREFIXES, mnemonic
from vmtest.model.case import Case
from vmtest.model.isa import DATA_SIZE, PAGE, Isa

__all__ = ["causes"]

_X87 = {CpuidFeature.FPU, CpuidFeature.FPU287, CpuidFeature.FPU387}
_COMPARES = {
    Mnemonic.CMPSB, Mnemonic.CMPSW, Mnemonic.CMPSD, Mnemonic.CMPSQ,
    Mnemonic.SCASB, Mnemonic.SCASW, Mnemonic.SCASD, Mnemonic.SCASQ,
}  # fmt: skip
_DIVISIONS = {
    Mnemonic.FDIV, Mnemonic.FDIVP, Mnemonic.FDIVR, Mnemonic.FDIVRP, Mnemonic.FIDIV, Mnemonic.FIDIVR,
}  # fmt: skip


def causes(case: Case, bits: int) -> frozenset[str]:
    """See Forms.causes. Addresses are told from what the case begins with: where an instruction behind another one, or
    one that is jumped to, may have others, any register that has no good one counts.
    """
    found: set[str] = set()
    code = b"\0" + case.code  # behind zeros, which are add [rax],al: of two bytes each
    number, seen, starts = 0, set[int](), [1]
    while starts:  # the first instruction, and each that one jumps to
        at, undefined, is_jumped_to = starts.pop(), 0, bool(seen)
        decoder = Decoder(bits, code[at:], ip=case.start + at - 1)
        for one in decoder:
            if at in seen:
                break
            seen.add(at)
            if one.is_invalid or decoder.last_error == DecoderError.NO_MORE_BYTES:  # CPUs read operands of both
                found.add("cut off")
            if undefined & one.rflags_read:
                found.add("undefined flags")
            undefined = undefined_behind(one, undefined)
            found.update(_of_one(case, one, code[at : at + one.len], bits))
            if is_jumped_to and mnemonic(one.op_code()) in BANNED:
                found.add("banned")
            if case.isa.code <= one.near_branch_target < case.end:
                to = one.near_branch_target - case.start + 1
                starts.append(to if to > 0 else to & 1)
            at, number = at + one.len, number + 1
    if ("jumps away" in found or number > 1) and not all(map(is_canonical, _registers(case))):
        found.add("not canonical")
    if {"misaligned", "not canonical"} <= found:
        found.add("two faults")
    if {"segment override", "not canonical"} <= found:
        found.add("not canonical with an override")
    return frozenset(found)


def _of_one(case: Case, one: Any, code: bytes, bits: int) -> Iterator[str]:
    prefixes = _prefixes(code, bits)
    if bits == 64 and any(byte >> 4 == 4 for byte in prefixes[:-1]):  # void: Intel SDM, volume 2, section 2.2.1
        yield "misplaced REX"
    if one.is_invalid:
        yield "no instruction"
        if 0x66 in prefixes and _has_target(code[len(prefixes) :]):  # which is cut off where it has four bytes
            yield "size of a branch"
    if any(RegisterExt.is_mm(one.op_register(at)) for at in range(one.op_count)):
        yield "MMX"
        if CpuidFeature.SSSE3 in one.cpuid_features():
            yield "MMX of SSSE3"
    if _X87 & set(one.cpuid_features()) and one.mnemonic != Mnemonic.FXAM:  # whose C1 is the sign
        yield "C1 of rounding"
    if one.mnemonic in _DIVISIONS:
        yield "x87 division"
    if one.mnemonic in (Mnemonic.MASKMOVQ, Mnemonic.MASKMOVDQU):
        yield "masked store"
    if one.is_privileged or one.rflags_written & RflagsBits.IF:
        yield "privileged"
    if {0x26, 0x2E, 0x36, 0x3E} & set(prefixes):
        yield "segment override"
    if _is_ambiguous(one, prefixes, code[len(prefixes) :]):
        yield "several prefixes"
    if one.mnemonic == Mnemonic.RESERVEDNOP and code[len(prefixes) :][:2] == b"\x0f\x0d":
        yield "prefetch of a register"
    if one.mnemonic in _COMPARES and {0xF2, 0xF3} & set(prefixes):
        yield "repeated compare"
    if is_read_and_written(one):
        yield "read and written"
    if one.flow_control in JUMPS:
        to = one.near_branch_target or target(case, one) or 0
        if case.isa.code <= to <= one.ip:
            yield "loop"
        if 0x66 in prefixes:
            yield "size of a branch"
        if {0xF2, 0xF3} & set(prefixes):
            yield "repeated branch"
        if (
            case.isa.code <= to < case.start or case.isa.data <= to < case.isa.data + DATA_SIZE
        ):  # to add [rax],al mostly
            yield from ("cut off", "jumps away", "read and written")
        if not is_canonical(target(case, one) or 0):
            yield "not canonical"
    reached = list(accesses(case, one))
    if len(reached) > 1:
        yield "two operands"
    for address, size, aligned in reached:
        if size > 8:
            yield "wide"
        if any(address < edge < address + size for edge in _edges(case.isa)):
            yield "over an edge"
        if not is_canonical(address) or (size and not is_canonical(address + size - 1)):
            yield "not canonical"
        if aligned and address % size:
            yield "misaligned"


def _prefixes(code: bytes, bits: int) -> bytes:
    """Those of an instruction, with REX in 64-bit mode, also where another one follows it."""
    return code[: next((at for at, byte in enumerate(code) if not _is_prefix(byte, bits)), len(code))]


def _is_prefix(byte: int, bits: int) -> bool:
    return byte in PREFIXES or (bits == 64 and byte >> 4 == 4)


def _is_ambiguous(one: Any, prefixes: bytes, opcode: bytes) -> bool:
    """Whether more than one prefix may be the one that its opcode needs, or that repeats it: 66 may be its size of
    operands besides.
    """
    mandatory = {0x66, 0xF2, 0xF3} & set(prefixes)
    if len(mandatory - {0x66}) > 1:
        return opcode[:1] == b"\x0f" or bool(one.is_string_instruction)
    return opcode[:1] == b"\x0f" and len(mandatory) > 1 and one.op_code().operand_size != 16


def _edges(isa: Isa) -> tuple[int, ...]:
    """Where what is mapped begins and ends."""
    return isa.code, isa.code + PAGE, isa.data, isa.data + DATA_SIZE


def _has_target(opcode: bytes) -> bool:
    """Whether it is CALL, JMP or Jcc with a target of as many bytes as the size of operands says."""
    return opcode[:1] in (b"\xe8", b"\xe9") or (opcode[:1] == b"\x0f" and opcode[1:2] >= b"\x80" and opcode[1] < 0x90)


def _registers(case: Case) -> Iterator[int]:
    for register in case.isa.registers:
        if register.kind == "registers":
            yield int.from_bytes(case.state[case.isa.places[register.name]], "little")


def is_canonical(address: int) -> bool:
    """Whether bits 63 to 47 are alike: Intel SDM, volume 1, section 3.3.7.1."""
    return address >> 47 in (0, 0x1FFFF)
