"""x86, by iced-x86: its forms, their text, and what the manuals say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from random import Random
from typing import Any

from iced_x86 import (
    Code,
    CpuidFeature,
    Decoder,
    EncodingKind,
    Formatter,
    FormatterSyntax,
    OpCodeInfo,
    OpCodeOperandKind,
    RflagsBits,
)
from iced_x86 import Instruction as Decoded

from vmtest.forms.base import BAD, Draft, Forms, Instruction
from vmtest.forms.x86_access import flags_written, may_go_back, may_jump
from vmtest.forms.x86_bad import bad_name
from vmtest.forms.x86_causes import causes
from vmtest.forms.x86_encode import Template
from vmtest.forms.x86_features import cpuid_cases, features_said
from vmtest.forms.x86_rules import APPROXIMATE, BANNED, ELSEWHERE, RULES, UNDEFINED, alike, mnemonic
from vmtest.forms.x86_taint import tainted
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import Isa

__all__ = ["Table"]

_BITS = {"x86_64": 64, "x86_32": 32, "x86_16": 16}
# iced_x86.RflagsBits to the bits of RFLAGS, Intel SDM, volume 1, section 3.4.3.
_FLAGS = {"OF": 1 << 11, "DF": 1 << 10, "SF": 1 << 7, "ZF": 1 << 6, "AF": 1 << 4, "PF": 1 << 2, "CF": 1 << 0}
_ICED = {name: getattr(RflagsBits, name) for name in _FLAGS}
_CODES: list[tuple[Any, str]] = [(value, name.lower()) for name, value in vars(Code).items() if isinstance(value, int)]
_NAMES: dict[int, str] = dict(_CODES)
_SELECTORS = {getattr(OpCodeOperandKind, name) for name in ("SEG_REG", "CS", "DS", "ES", "FS", "GS", "SS")}
_FEATURES = {value: name for name, value in vars(CpuidFeature).items() if isinstance(value, int)}


class Table(Forms):
    """See Forms."""

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        self._bits = _BITS[isa.name]
        self._templates: dict[str, Template] = {}
        self._formatter = Formatter(FormatterSyntax.NASM)

    @cached_property
    def _codes(self) -> dict[str, Any]:
        """By name, iced-x86's code of each form that exists in this mode."""
        return {name: code for code, name in _CODES if _exists(OpCodeInfo(code), self._bits)}

    @cached_property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """See Forms."""
        return tuple(self._codes)

    def make(self, random: Random, name: str) -> Draft:
        """See Forms."""
        template = self._templates.get(name)
        if template is None:
            template = self._templates[name] = Template(self._codes[name], self._bits, self.isa.data)
        return template.make(random)

    def _decoded(self, code: bytes, start: int) -> list[Decoded]:
        return list(Decoder(self._bits, code, ip=start))

    def decode(self, code: bytes, start: int = 0) -> list[Instruction]:
        """See Forms."""
        found: list[Instruction] = []
        at = 0
        for one in self._decoded(code, start):
            if one.is_invalid:
                return [*found, Instruction(bad_name(code[at:], self._bits), len(code) - at)]
            found.append(Instruction(_NAMES[one.code], one.len))
            at += one.len
        return found

    def text(self, code: bytes, start: int = 0) -> list[str]:
        """See Forms."""
        return [self._formatter.format(one) for one in self._decoded(code, start)]

    @cache  # noqa: B019
    def features(self, name: str) -> frozenset[str]:
        """See Forms: as iced-x86's CpuidFeature calls them."""
        return frozenset(_FEATURES[number] for number in self._empty(name).cpuid_features())

    def _empty(self, name: str) -> Decoded:
        one = Decoded()
        one.code = self._codes[name]
        return one

    def probes(self) -> list[Case]:
        """See Forms: CPUID."""
        return cpuid_cases(self.isa)

    def said(self, outcomes: Sequence[Outcome]) -> frozenset[str]:
        """See Forms: what CPUID says."""
        return features_said(self.isa, outcomes)

    @cache  # noqa: B019
    def banned(self, name: str) -> str:
        """See Forms."""
        info = OpCodeInfo(self._codes[name])
        if why := BANNED.get(mnemonic(info)):
            return why
        if info.must_be_cpl0:
            return "it is for ring 0"
        if any(kind in _SELECTORS for kind in info.op_kinds()) or name.startswith(("jmp_m16", "call_m16")):
            return ELSEWHERE
        if info.is_input_output:
            return "it reaches for a device"
        return ""

    def privileged(self, case: Case) -> bool:
        """See Forms."""
        return any(one.is_privileged for one in self._decoded(case.code, case.start))

    def jumps(self, case: Case) -> bool:
        """See Forms."""
        return any(may_jump(one) for one in self._decoded(case.code, case.start))

    def undefined(self, case: Case, done: int | None = None) -> Mapping[str, int]:
        """See Forms. Source: Intel SDM, volume 1, appendix A, by iced-x86's ``rflags_undefined``, and UNDEFINED."""
        several = self._decoded(case.code, case.start)
        ended = case.end if done is None else case.start + done
        # Where it may have gone back it may have ended there at once, or when it came there again.
        end = case.end if any(may_go_back(one) for one in several) else ended
        flags, left, has_jumped, found = 0, 0, False, dict[str, int]()
        for one in several:
            if one.ip >= end:
                break
            flags = flags & ~_mask(flags_written(one)) | _mask(one.rflags_undefined)
            has_jumped = has_jumped or may_jump(one)
            left |= flags if has_jumped or one.next_ip == ended else 0
            if rule := UNDEFINED.get(mnemonic(one.op_code())):
                for register, mask in rule(case, one).items():
                    found[register] = found.get(register, 0) | mask
        if flags := flags | left:
            found[self.isa.flags] = found.get(self.isa.flags, 0) | flags
        return found

    def causes(self, case: Case) -> frozenset[str]:
        """See Forms."""
        return causes(case, self._bits)

    def tainted(self, case: Case) -> Mapping[str, int]:
        """See Forms."""
        return tainted(case, self._decoded(case.code, case.start), _mask)

    def alike(self, case: Case, register: str, one: int, other: int) -> bool:
        """See Forms."""
        if not register.startswith(("xmm", "ymm")):
            return False
        within = [APPROXIMATE.get(mnemonic(one.op_code()), 0.0) for one in self._decoded(case.code, case.start)]
        return any(within) and alike(max(within), one, other)

    def rule(self, name: str, kind: str) -> str:
        """See Forms."""
        if name.startswith(BAD):
            return "no instruction by the manuals: #UD (Intel SDM, volume 2; AMD APM, volume 3)"
        if name not in self._codes:
            return ""
        info, one = OpCodeInfo(self._codes[name]), self._empty(name)
        if said := RULES.get((mnemonic(info), kind)) or RULES.get((mnemonic(info), "")):
            return said
        if kind == "flags":
            return _flag_rule(one)
        if kind == "exception":
            return f"{info.op_code_string} is {info.instruction_string}, of {', '.join(sorted(self.features(name)))}"
        return f"{info.instruction_string} (Intel SDM, volume 2)"


def _exists(info: OpCodeInfo, bits: int) -> bool:
    """Whether it is an instruction, and one of this mode, by the decoder that we use."""
    here = {64: info.mode64 and info.intel_decoder64, 32: info.mode32 and info.intel_decoder32, 16: info.mode16}[bits]
    # MVEX and what has an option of its own are of processors that read other instructions there; those with a
    # WAIT are two instructions.
    other = info.encoding == EncodingKind.MVEX or info.decoder_option or info.fwait
    return bool(info.is_instruction and here and not other)


@cache
def _mask(iced: int) -> int:
    return sum(bit for name, bit in _FLAGS.items() if iced & _ICED[name])


def _flag_rule(one: Any) -> str:
    said = []
    for what in ("modified", "cleared", "set", "undefined"):
        names = [name for name, bit in _ICED.items() if getattr(one, f"rflags_{what}") & bit]
        if what == "modified":
            names = [name for name, bit in _ICED.items() if one.rflags_written & bit]
        if names:
            said.append(f"{what} {' '.join(names)}")
    return (", ".join(said) or "changes no flags") + " (Intel SDM, volume 1, appendix A)"
