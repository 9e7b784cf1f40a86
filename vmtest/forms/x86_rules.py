"""What the manuals say of x86 instructions beyond iced-x86's tables: data, each with its source.

SDM is Intel's, APM is AMD's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from iced_x86 import OpCodeInfo, OpKind, RegisterExt

from vmtest.forms.x86_access import read, register_value
from vmtest.model.case import Case

__all__ = ["APPROXIMATE", "BANNED", "ELSEWHERE", "PREFIXES", "RULES", "UNDEFINED", "alike", "mnemonic"]

_TIME, _CHANCE = "it tells the time", "it draws at random"
_MACHINE = "it tells of the machine, not of the instruction"
_IMAGE = "it writes an image whose layout is the machine's"
ELSEWHERE = "it goes to segments or tasks that executors do not share"
_CALL = "it calls a kernel that is not there"

PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"
"""Legacy prefixes: SDM, volume 2, section 2.1.1."""
_T = TypeVar("_T")


def mnemonic(info: OpCodeInfo) -> str:
    """The name by which the rows here go."""
    return info.instruction_string.split()[0].lower()


def _all(words: str, value: _T) -> dict[str, _T]:
    """The same for each of several mnemonics."""
    return dict.fromkeys(words.split(), value)


BANNED: Mapping[str, str] = {
    **_all("rdtsc rdtscp rdpru rdpmc", _TIME),
    **_all("rdrand rdseed", _CHANCE),
    **_all("cpuid xgetbv sgdt sidt sldt str smsw lsl lar verr verw rdpid", _MACHINE),
    **_all("rdfsbase rdgsbase wrfsbase wrgsbase swapgs rdpkru wrpkru", _MACHINE),
    **_all("fxsave fxsave64 fxrstor fxrstor64 fsave fnsave frstor fstenv fnstenv fldenv", _IMAGE),
    **_all("xsave xsave64 xsavec xsavec64 xsaveopt xsaveopt64 xsaves xsaves64", _IMAGE),
    **_all("xrstor xrstor64 xrstors xrstors64", _IMAGE),
    **_all("xbegin xend xabort xtest", "a transaction may end at any moment"),
    **_all("lss lfs lgs lds les retf iret iretd iretq", ELSEWHERE),
    **_all("syscall sysenter sysret sysexit int into vmcall vmmcall vmgexit", _CALL),
    **_all("umonitor umwait tpause monitorx mwaitx monitor mwait", "it waits"),
    **_all("senduipi uiret testui clui stui", _CALL),
    **_all("enqcmd enqcmds movdir64b clzero", _MACHINE),
    "hlt": "it is for ring 0",
    "int1": "hosts that are virtual machines tell two places of it: its own, and the next one's, which is the manual's",
}
"""By mnemonic, why it is not made unless it is named."""


def _destination(case: Case, one: Any) -> dict[str, int]:
    """All of what it writes: a register, or what is in memory."""
    if one.op0_kind != OpKind.REGISTER:
        return {"memory": -1}
    number = RegisterExt.number(RegisterExt.full_register(one.op0_register))
    return {case.isa.registers[number].name: -1}


def _bit_scan(case: Case, one: Any) -> dict[str, int]:
    if one.op1_kind == OpKind.REGISTER:
        source: int | None = register_value(case, one.op1_register)
    else:  # where another one comes before it that may have written there
        source = read(case, one) if one.ip == case.start else 0
    return {} if source else _destination(case, one)  # also where it is not known


def _count(case: Case, one: Any, at: int) -> int:
    is_register = one.op_kind(at) == OpKind.REGISTER
    return 31 & (register_value(case, one.op_register(at)) if is_register else one.immediate(at))


def _long_shift(case: Case, one: Any) -> dict[str, int]:
    """Of 16 bits by more than those."""
    if RegisterExt.size(one.op1_register) != 2 or _count(case, one, 2) <= 16:
        return {}
    return _destination(case, one) | {case.isa.flags: 0x8D5}


def _rotation(case: Case, one: Any) -> dict[str, int]:
    """OF of all rotations but those by one."""
    return {case.isa.flags: 0x800} if _count(case, one, 1) > 1 else {}


def _narrow(case: Case, one: Any) -> dict[str, int]:
    return _destination(case, one) if RegisterExt.size(one.op0_register) == 2 else {}


def _conditions(case: Case, one: Any) -> dict[str, int]:
    return {"fsw": 0x4500} if "fsw" in case.isa.places else {}


def _but_c2(case: Case, one: Any) -> dict[str, int]:
    return {"fsw": 0x4100} if "fsw" in case.isa.places else {}


def _quotient(case: Case, one: Any) -> dict[str, int]:
    """C0, C1 and C3 are bits of a quotient. It is not told where there is none, since an operand is no number or the
    divisor 0; where it is too large to be had at once, and C2 is set; and where another instruction may have made of
    the operands what is not known. Of an empty register C1 is 0.
    """
    if "fsw" not in case.isa.places:
        return {}
    values = case.isa.values(case.state)
    top, dividend, divisor = values["fsw"] >> 11 & 7, values["st0"], values["st1"]
    if one.ip != case.start:
        return {"fsw": 0x4300}
    if not all(values["ftw"] >> (top + at) % 8 & 1 for at in (0, 1)):
        return {"fsw": 0x4100}
    is_at_once = (dividend >> 64 & 0x7FFF) - (divisor >> 64 & 0x7FFF) < 64
    divides = _is_finite(divisor) and divisor >> 64 & 0x7FFF and is_at_once
    return {} if _is_finite(dividend) and (divides or _is_infinite(divisor)) else {"fsw": 0x4300}


def _is_infinite(value: int) -> bool:
    return value & (1 << 79) - 1 == 0x7FFF << 64 | 1 << 63


def _is_finite(value: int) -> bool:
    """Whether that is a number that x87 has, and not infinite: SDM, volume 1, section 8.2."""
    exponent = value >> 64 & 0x7FFF
    return exponent == 0 or (exponent < 0x7FFF and value >> 63 & 1 == 1)


UNDEFINED: Mapping[str, Callable[[Case, Any], dict[str, int]]] = {
    # SDM, volume 2, BSF and BSR: the destination is undefined where the source is 0 (APM: unchanged).
    "bsf": _bit_scan,
    "bsr": _bit_scan,
    # SDM, volume 2, SHLD and SHRD: undefined where the count is greater than the operand size.
    "shld": _long_shift,
    "shrd": _long_shift,
    # SDM, volume 2, RCL/RCR/ROL/ROR: OF is defined for 1-bit rotates only (iced-x86 has it as unchanged for some).
    "rcl": _rotation,
    "rcr": _rotation,
    # SDM, volume 2, BSWAP: a 16-bit register has an undefined result.
    "bswap": _narrow,
    # SDM, volume 1, section 8.1.3.1 and volume 2: C0, C2 and C3 are undefined after these.
    **_all(
        "f2xm1 fabs fadd faddp fiadd fbld fbstp fchs fclex fcmovb fcmove fcmovbe fcmovu fcmovnb fcmovne"
        " fcmovnbe fcmovnu fdecstp fdiv fdivp fidiv fdivr fdivrp fidivr ffree fild fincstp fist fistp"
        " fisttp fld fld1 fldl2t fldl2e fldpi fldlg2 fldln2 fldz fldcw fmul fmulp fimul fnop fpatan"
        " fscale frndint fsqrt fst fstp fnstcw fstcw fsub fsubp fisub fsubr fsubrp fisubr fxch fxtract"
        " fyl2x fyl2xp1 fstpnce ffreep",
        _conditions,
    ),
    # C2 says whether the operand is out of range. (FCOMI, FUCOMI and theirs leave all of them as they are.)
    **_all("fptan fsin fcos fsincos", _but_c2),
    # SDM, volume 2, FPREM: what they hold is told of a quotient.
    "fprem": _quotient,
    "fprem1": _quotient,
}
"""By mnemonic, the bits that a case leaves undefined, by register; flags are iced-x86's to say."""

APPROXIMATE: Mapping[str, float] = _all("rcpps rcpss rsqrtps rsqrtss vrcpps vrcpss vrsqrtps vrsqrtss", 3.0 * 2**-12)
"""By mnemonic, how far two results may be apart, relatively: twice the error that SDM, volume 2, RCPPS allows."""


def alike(tolerance: float, one: int, other: int) -> bool:
    """Whether two vectors of four floats are within a tolerance of each other."""
    pairs = zip(*(struct.unpack("<4f", value.to_bytes(16, "little")) for value in (one, other)), strict=True)
    return all(a == b or (a != a and b != b) or abs(a - b) <= tolerance * max(abs(a), abs(b)) for a, b in pairs)


_COUNT = "is an instruction of its own, and not a bit scan with a prefix"
RULES: Mapping[tuple[str, str], str] = {
    ("lzcnt", ""): f"LZCNT {_COUNT}: of 0 it gives the operand size (SDM, volume 2, LZCNT)",
    ("tzcnt", ""): f"TZCNT {_COUNT}: of 0 it gives the operand size (SDM, volume 2, TZCNT)",
    ("blsi", "flags"): "CF is set where the source is not 0 (SDM, volume 2, BLSI)",
    ("blsr", "flags"): "CF is set where the source is 0 (SDM, volume 2, BLSR)",
    ("blsmsk", "flags"): "CF is set where the source is 0; ZF is cleared (SDM, volume 2, BLSMSK)",
    ("cmpxchg", "registers"): "where they are equal the accumulator is not written (SDM, volume 2, CMPXCHG)",
    ("lahf", ""): "AH is bits 15:8 of RAX whatever REX is: it has no register operand (SDM, volume 2, LAHF)",
    ("sahf", ""): "AH is bits 15:8 of RAX whatever REX is: it has no register operand (SDM, volume 2, SAHF)",
}
"""By mnemonic and kind of difference ("" for any) what the manual says of it."""
