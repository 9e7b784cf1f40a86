"""Bytes of x86 instructions, from the description of each form that iced-x86 has.

Sources: Intel SDM, volume 2, chapter 2 (prefixes, ModRM, SIB, VEX, EVEX); AMD64 APM, volume 3 (XOP, 3DNow!).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from iced_x86 import EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind, OpCodeTableKind

from vmtest.forms.base import Draft
from vmtest.forms.x86_rules import PREFIXES
from vmtest.model.isa import CODE, DATA_SIZE, PAGE

__all__ = ["Template"]

_NAMES = "ax cx dx bx sp bp si di".split()  # noqa: SIM905
_K = {name: value for name, value in vars(OpCodeOperandKind).items() if isinstance(value, int)}
_KIND = {value: name for name, value in _K.items()}
_ESCAPES = {
    OpCodeTableKind.NORMAL: b"",
    OpCodeTableKind.T0F: b"\x0f",
    OpCodeTableKind.T0F38: b"\x0f\x38",
    OpCodeTableKind.T0F3A: b"\x0f\x3a",
}
_MAPS = {
    OpCodeTableKind.NORMAL: 0,
    OpCodeTableKind.T0F: 1,
    OpCodeTableKind.T0F38: 2,
    OpCodeTableKind.T0F3A: 3,
    OpCodeTableKind.MAP5: 5,
    OpCodeTableKind.MAP6: 6,
    OpCodeTableKind.MAP8: 8,
    OpCodeTableKind.MAP9: 9,
    OpCodeTableKind.MAP10: 10,
}
_PP = {MandatoryPrefix.P66: 1, MandatoryPrefix.PF3: 2, MandatoryPrefix.PF2: 3}
_PP_BYTE = {MandatoryPrefix.P66: b"\x66", MandatoryPrefix.PF3: b"\xf3", MandatoryPrefix.PF2: b"\xf2"}
_IMMEDIATES = {
    "IMM4_M2Z": 0, "IMM8": 1, "IMM8_CONST_1": 0, "IMM8SEX16": 1, "IMM8SEX32": 1, "IMM8SEX64": 1, "IMM16": 2,
    "IMM32": 4, "IMM32SEX64": 4, "IMM64": 8, "BR16_1": 1, "BR32_1": 1, "BR64_1": 1, "BR16_2": 2, "BR32_4": 4,
    "BR64_4": 4, "XBEGIN_2": 2, "XBEGIN_4": 4, "XMM_IS4": 1, "YMM_IS4": 1, "XMM_IS5": 1, "YMM_IS5": 1, "FARBR2_2": 4,
    "FARBR4_2": 6, "BRDISP_2": 2, "BRDISP_4": 4,
}  # fmt: skip
# Of 16-bit addresses the registers that are added up, by rm: Intel SDM, volume 2, table 2-1.
_NARROW = ((3, 6), (3, 7), (5, 6), (5, 7), (6,), (7,), (5,), (3,))
_POINTERS = {"SEG_RSI": 6, "ES_RDI": 7, "SEG_RDI": 7, "SEG_RBX_AL": 3}
_EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 0x7F, 0x80, 0xFE, 0xFF)


class Template:
    """One form, ready to be made many times."""

    def __init__(self, code: Any, bits: int, data: int) -> None:
        info = OpCodeInfo(code)
        kinds = [_KIND[info.op_kind(number)] for number in range(info.op_count)]
        self._data, self._bits, self._most = data, bits, (1 << max(bits, 32)) - 1
        letter = "r" if bits == 64 else "e"
        self._names = [*(letter + name for name in _NAMES), *(f"r{number}" for number in range(8, 16))]
        self._info = info
        self._legacy = info.encoding in (EncodingKind.LEGACY, EncodingKind.D3NOW)
        self._opcode = info.op_code.to_bytes(info.op_code_len, "big")
        self._immediates = [_IMMEDIATES[kind] for kind in kinds if kind in _IMMEDIATES]
        self._branches = any(kind.startswith(("BR", "XBEGIN")) for kind in kinds)
        self._pointers = [_POINTERS[kind] for kind in kinds if kind in _POINTERS]
        self._offset = "MEM_OFFS" in kinds
        self._plus = any(kind.endswith("_OPCODE") for kind in kinds)
        memory = {kind for kind in kinds if kind.startswith("MEM") or kind == "SIBMEM"} - {"MEM_OFFS"}
        either = any("OR_MEM" in kind for kind in kinds)
        registers = any(kind.endswith(("_RM", "_REG", "_REG_MEM")) for kind in kinds)
        self._vsib = next((kind for kind in memory if "VSIB" in kind), "")
        self._sib = "SIBMEM" in kinds or "MEM_MIB" in kinds or bool(self._vsib)
        self._modrm = bool(memory) or either or registers or info.is_group or info.is_rm_group
        self._memory_share = 1.0 if memory else 0.5 if either else 0.0
        self._group = info.group_index if info.is_group else None
        self._rm = info.rm_group_index if info.is_rm_group else None
        self._uses_vvvv = any(kind.endswith("_VVVV") for kind in kinds)
        self._mandatory = _PP_BYTE.get(info.mandatory_prefix, b"")
        self._escape = _ESCAPES.get(info.table, b"")
        self._repeats = [
            prefix for prefix, can in ((0xF3, info.can_use_rep_prefix), (0xF2, info.can_use_repne_prefix)) if can
        ]
        self._sizes = self._size_prefixes()
        self._rex_w = self._legacy and info.operand_size == 64 and not info.default_op_size64 and bits == 64
        self._build: Callable[[int, int, bool], bytes] = {
            EncodingKind.LEGACY: self._legacy_bytes,
            EncodingKind.D3NOW: self._legacy_bytes,
            EncodingKind.VEX: self._vex_bytes,
            EncodingKind.XOP: self._vex_bytes,
            EncodingKind.EVEX: self._evex_bytes,
        }[info.encoding]

    def _size_prefixes(self) -> bytes:
        info = self._info
        prefixes = b"\x9b" if info.fwait else b""
        if info.address_size and info.address_size != self._bits:
            prefixes += b"\x67"
        if self._legacy and info.operand_size and (info.operand_size == 16) != (self._bits == 16):
            prefixes += b"\x66"
        return prefixes

    def make(self, random: Random) -> Draft:
        """See Forms.make."""
        drawn = random.getrandbits(64)
        registers = {self._names[number]: self._address(random) for number in self._pointers}
        # Zeros are the simplest one, for hypothesis: registers, and no prefix.
        in_memory = self._modrm and (drawn & 0xFF) >= 256 * (1 - self._memory_share)
        extend = drawn >> 8 & 7 if self._bits == 64 else 0  # R, X and B, the fourth bits of register numbers
        operand = b""
        if self._modrm:
            reg = drawn >> 16 & 7 if self._group is None else self._group
            rm = drawn >> 20 & 7 if self._rm is None else self._rm
            operand = bytes((0xC0 | reg << 3 | rm,))
            if in_memory and self._is_narrow(drawn):
                operand = self._narrow_memory(random, reg, registers)
            elif in_memory:
                operand = self._memory(random, reg, extend, registers)
        body = self._build(drawn >> 24, extend, in_memory)
        tail = b"".join([self._immediate(random, size) for size in self._immediates])
        if self._offset:
            tail = self._address(random).to_bytes((self._info.address_size or self._bits) // 8, "little")
        code = body + operand + tail
        if self._info.encoding == EncodingKind.D3NOW:  # whose opcode comes last
            code = body[:-1] + operand + body[-1:]
        if drawn >> 60 == 15:  # and a prefix that it has no need of
            code = bytes((PREFIXES[(drawn >> 52 & 0xFF) % len(PREFIXES)],)) + code
        if in_memory and self._bits == 16 and not self._is_narrow(drawn):
            code = b"\x67" + code
        if in_memory and self._info.can_use_lock_prefix and drawn >> 42 & 3 == 3:
            code = b"\xf0" + code
        if self._repeats and drawn >> 43 & 1:
            code = bytes((self._repeats[(drawn >> 44 & 1) % len(self._repeats)],)) + code
            if drawn >> 45 & 15 < 15:
                registers[self._names[1]] = (drawn >> 45 & 15) % 9
        return Draft(code, registers)

    def _is_narrow(self, drawn: int) -> bool:
        """Whether its address has 16 bits."""
        if self._info.address_size or self._sib:
            return bool(self._info.address_size == 16)
        return self._bits == 16 and bool(drawn >> 42 & 1)

    def _legacy_bytes(self, drawn: int, extend: int, in_memory: bool) -> bytes:
        opcode = self._opcode
        if self._plus:
            opcode = opcode[:-1] + bytes((opcode[-1] + (drawn & 7),))
        rex = b""
        if self._bits == 64:
            wanted = self._rex_w << 3 | extend
            if wanted or drawn & 0x300 == 0x300:
                rex = bytes((0x40 | wanted,))
        escape = b"\x0f\x0f" if self._info.encoding == EncodingKind.D3NOW else self._escape
        return self._sizes + self._mandatory + rex + escape + opcode

    def _vector_fields(self, drawn: int) -> tuple[int, int]:
        """W, and vvvv as it is encoded, which is inverted."""
        info = self._info
        wide = drawn & 1 if info.is_wig else info.w
        used = self._uses_vvvv or not drawn & 0x3E0  # which where it is not is reserved
        vvvv = drawn >> 1 & 15 if used else 15
        return wide, vvvv if self._bits == 64 or not used else vvvv | 8

    def _vex_bytes(self, drawn: int, extend: int, in_memory: bool) -> bytes:
        info = self._info
        wide, vvvv = self._vector_fields(drawn)
        length = drawn >> 10 & 1 if info.is_lig else info.l
        last = vvvv << 3 | length << 2 | _PP.get(info.mandatory_prefix, 0)
        extended = ~extend & 7
        if info.encoding == EncodingKind.XOP:
            return self._sizes + bytes((0x8F, extended << 5 | _MAPS[info.table], wide << 7 | last)) + self._opcode
        if info.table == OpCodeTableKind.T0F and not wide and extended & 3 == 3 and drawn & 0x800:
            return self._sizes + bytes((0xC5, (extended & 4) << 5 | last)) + self._opcode
        return self._sizes + bytes((0xC4, extended << 5 | _MAPS[info.table], wide << 7 | last)) + self._opcode

    def _evex_bytes(self, drawn: int, extend: int, in_memory: bool) -> bytes:
        info = self._info
        wide, vvvv = self._vector_fields(drawn)
        length = drawn >> 10 & 3 if info.is_lig else info.l
        mask = 0
        if info.can_use_op_mask_register and (drawn & 0x1000 or info.require_op_mask_register):
            mask = drawn >> 13 & 7 or 1
        zero = int(info.can_use_zeroing_masking and mask and not drawn & 0x10000)
        extra = int(info.can_broadcast if in_memory else info.can_use_rounding_control) & drawn >> 17
        first = (~extend & 7) << 5 | 0x10 | _MAPS[info.table]
        second = wide << 7 | vvvv << 3 | 4 | _PP.get(info.mandatory_prefix, 0)
        third = zero << 7 | length << 5 | extra << 4 | 8 | mask
        return self._sizes + bytes((0x62, first, second, third)) + self._opcode

    def _memory(self, random: Random, reg: int, extend: int, registers: dict[str, int]) -> bytes:
        """ModRM, SIB and displacement of an operand in memory, mostly in the data window."""
        drawn = random.getrandbits(32)
        address, way = self._address(random), drawn & 15
        if way == 0 and not self._sib:  # relative to the end of the code, or absolute
            at = address - (CODE + PAGE) if self._bits == 64 else address
            return bytes((reg << 3 | 5,)) + (at % (1 << 32)).to_bytes(4, "little")
        low, field, scale = drawn >> 4 & 7, drawn >> 7 & 7, drawn >> 10 & 3
        mode = drawn >> 12 & 1 or 2 * (drawn >> 13 & 1) or (low == 5)
        size = (0, 1, 4)[mode]
        displacement = (drawn >> 14 & 0x7F) - 64 if mode else 0
        sib = b""
        if low == 4 or self._sib or way < 4:
            sib = bytes((scale << 6 | field << 3 | low,))
        base, index, steps = low | (extend & 1) << 3, field | (extend & 2) << 2, (drawn >> 21 & 15) - 8
        if sib and self._vsib:
            registers |= {f"xmm{index}": 0, f"ymm{index}h": 0}
        elif sib and index == base:
            address //= 1 + (1 << scale)
        elif sib and index != 4:
            registers[self._names[index]] = steps & self._most
            address -= steps << scale
        if way != 15:
            registers[self._names[base]] = (address - displacement) & self._most
        rm = 4 if sib else low
        return bytes((mode << 6 | reg << 3 | rm,)) + sib + displacement.to_bytes(size, "little", signed=True)

    def _narrow_memory(self, random: Random, reg: int, registers: dict[str, int]) -> bytes:
        """The same with an address of 16 bits, of which the upper halves of registers are no part."""
        drawn, address = random.getrandbits(32), self._address(random)
        mode, rm = drawn % 3, drawn >> 2 & 7
        displacement = (drawn >> 5 & 0x7F) - 64 if mode else 0
        if mode == 0 and rm == 6:  # absolute
            return bytes((reg << 3 | 6,)) + (address & 0xFFFF).to_bytes(2, "little")
        base, *index = (self._names[number] for number in _NARROW[rm])
        steps, upper = (drawn >> 12 & 15) - 8 if index else 0, drawn & 0xFFFF0000
        registers |= dict.fromkeys(index, upper | steps & 0xFFFF)
        registers[base] = upper | address - displacement - steps & 0xFFFF
        return bytes((mode << 6 | reg << 3 | rm,)) + displacement.to_bytes(mode, "little", signed=True)

    def _immediate(self, random: Random, size: int) -> bytes:
        drawn = random.getrandbits(8)
        if self._branches and drawn < 128:
            return bytes(size)  # to what comes next
        if drawn & 1 or self._branches:  # no edges: of a branch they are endless loops
            return random.randbytes(size)
        edge = _EDGES[drawn >> 4]
        return (edge if drawn & 2 else -edge).to_bytes(8, "little", signed=True)[:size] if size else b""

    def _address(self, random: Random) -> int:
        """In the data window, aligned in most cases; now and then so that what is there crosses its end."""
        drawn = random.getrandbits(16)
        if drawn & 15 == 0:
            return self._data + DATA_SIZE - (drawn >> 4 & 31)
        if drawn & 15 < 3:
            return self._data + 0x100 + (drawn >> 4)
        return self._data + 0x100 + (drawn >> 4 & ~63)
