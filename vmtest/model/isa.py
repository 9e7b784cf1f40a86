"""The instruction sets that cases are written in: one row each, with the registers that are set and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from vmtest.errors import UsageError

__all__ = ["CODE", "DATA", "DATA_SIZE", "ISAS", "PAGE", "Isa", "Register", "isa"]

PAGE = 4096
CODE = 0x1000_0000
"""Address of the page of code, for all that can reach it. A case's bytes are its last ones, and nothing is mapped
behind: to fetch from there is to have come to the end, and what is cut off there cannot be completed."""
DATA = 0x2000_0000
"""Address of the data window, which all cases see, all of zeros but for what they say; nothing else is mapped."""
DATA_SIZE = 2 * PAGE


@dataclass(frozen=True, kw_only=True)
class Register:
    """``size`` is in bytes. ``value`` is what it holds where a case says nothing. ``group`` is what an executor has, or
    has not, all of: "avx" or "x87", "" for what each has. ``kind`` is what it is called when it differs.
    """

    name: str
    size: int
    value: int = 0
    group: str = ""
    kind: str = "registers"


@dataclass(frozen=True, kw_only=True)
class Isa:
    """``step`` is of how many bytes' multiples are the sizes of its instructions, and the places where they may begin.
    ``illegal`` is the vector of the exception for what is no instruction. ``code_most`` bytes is the longest code of
    a case. ``fixed`` are bits, by register, that are no state of the program's and stay as they are: (mask, value).
    ``code`` and ``data`` are the addresses of its two windows.

    A state is all registers' bytes, little-endian, in the order of ``registers``: what executors take and give.
    """

    name: str
    what: str
    illegal: int
    registers: tuple[Register, ...]
    flags: str = ""
    code_most: int = 64
    step: int = 1
    fixed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    code: int = CODE
    data: int = DATA

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where in a state each register's bytes are."""
        places, at = {}, 0
        for register in self.registers:
            places[register.name] = slice(at, at := at + register.size)
        return places

    @cached_property
    def size(self) -> int:
        """Bytes of a state."""
        return sum(register.size for register in self.registers)

    @cached_property
    def default(self) -> bytes:
        """The state of a case that says nothing."""
        return b"".join(register.value.to_bytes(register.size, "little") for register in self.registers)

    def state(self, values: Mapping[str, int]) -> bytes:
        """The state with these registers set. Raises UsageError for an unknown one, and a value that it cannot hold."""
        state = bytearray(self.default)
        for name, value in values.items():
            place = self.places.get(name.lower())
            if place is None:
                known = ", ".join(self.places)
                raise UsageError(f"{self.name} has no register {name!r} that can be set", hint=f"known: {known}")
            size = place.stop - place.start
            if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
                raise UsageError(f"{name} has {8 * size} bits, and cannot hold {value:#x}")
            mask, kept = self.fixed.get(name.lower(), (0, 0))
            state[place] = (value % (1 << 8 * size) & ~mask | kept).to_bytes(size, "little")
        return bytes(state)

    def values(self, state: bytes) -> dict[str, int]:
        """Each register's value in a state."""
        return {name: int.from_bytes(state[place], "little") for name, place in self.places.items()}

    def said(self, state: bytes) -> dict[str, int]:
        """The registers whose values are not the default ones."""
        return {
            name: int.from_bytes(state[place], "little")
            for name, place in self.places.items()
            if state[place] != self.default[place]
        }


def _numbered(prefix: str, number: int, size: int, kind: str = "registers", group: str = "") -> tuple[Register, ...]:
    """``prefix`` with its number in the place of a "#", or behind it."""
    form = prefix if "#" in prefix else f"{prefix}#"
    return tuple(Register(name=form.replace("#", str(n)), size=size, kind=kind, group=group) for n in range(number))


_STACK = DATA + PAGE


def _x86(general: str, flags: str, size: int, vectors: int, stack: int = _STACK) -> tuple[Register, ...]:
    """General registers, flags, SSE, the upper halves of AVX's, and x87.

    x87 is as FXSAVE has it (Intel SDM, volume 1, section 10.5.1): the tags are a bit a register, 0 for empty, and st0
    is the top of the stack. MMX registers are the low 8 bytes of st0 to st7.
    """
    return (
        *(Register(name=name, size=size, value=stack if name[1:] == "sp" else 0) for name in general.split()),
        Register(name=flags, size=size, value=0x202, kind="flags"),
        *_numbered("xmm", vectors, 16, "vectors"),
        Register(name="mxcsr", size=4, value=0x1F80, kind="fp status"),
        *_numbered("ymm#h", vectors, 16, "vectors", "avx"),
        Register(name="fcw", size=2, value=0x37F, kind="fp status", group="x87"),
        Register(name="fsw", size=2, kind="fp status", group="x87"),
        Register(name="ftw", size=1, kind="fp status", group="x87"),
        *_numbered("st", 8, 10, "x87", "x87"),
    )


_X86_64 = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15"
_X86_32 = "eax ecx edx ebx esp ebp esi edi"
_ARM = (
    *_numbered("r", 13, 4),
    Register(name="sp", size=4, value=_STACK),
    Register(name="lr", size=4),
    Register(name="apsr", size=4, kind="flags"),
    *_numbered("d", 32, 8, "vectors"),
    Register(name="fpscr", size=4, kind="fp status"),
)


def _but(bits: int, size: int, kept: int = 0) -> tuple[int, int]:
    """All but these bits stay as they are."""
    return ~bits & (1 << 8 * size) - 1, kept


# All but TF, IOPL, NT, RF, VM, AC, VIF, VIP, ID and the reserved ones: those are not a program's, or they end the run.
# IF is on.
_EFLAGS, _IF = 0xCD5, 0x202
# Intel SDM, volume 3, table 6-1: #UD. ARM DDI 0406C, B1.8.1: the undefined instruction vector.
_UD, _ARM_UNDEFINED = 6, 1
# Reserved bits: to load one of them is an exception (Intel SDM, volume 1, section 10.2.3).
# Those of the x87 control word are as every CPU tells them, whatever is loaded (section 8.1.5): bit 6 is set.
_CONTROL = {"mxcsr": _but(0xFFFF, 4), "fcw": _but(0x1F3F, 2, 0x40)}
# ARM DDI 0406C, A2.4: N, Z, C, V, Q and GE; A2.5.3: no short vectors, and no traps.
_ARM_FIXED = {"apsr": _but(0xF80F_0000, 4), "fpscr": _but(0xFFC0_009F, 4)}

ISAS: dict[str, Isa] = {
    row.name: row
    for row in (
        Isa(
            name="x86_64",
            what="x86 in 64-bit mode",
            illegal=_UD,
            flags="rflags",
            fixed={"rflags": _but(_EFLAGS, 8, _IF)} | _CONTROL,
            registers=_x86(_X86_64, "rflags", 8, 16),
        ),
        Isa(
            name="x86_32",
            what="x86 in 32-bit protected mode, all segments flat",
            illegal=_UD,
            flags="eflags",
            fixed={"eflags": _but(_EFLAGS, 4, _IF)} | _CONTROL,
            registers=_x86(_X86_32, "eflags", 4, 8),
        ),
        Isa(
            # And not real mode: there an exception writes to the case's own stack.
            name="x86_16",
            what="x86 in 16-bit protected mode, all segments at 0",
            illegal=_UD,
            flags="eflags",
            fixed={"eflags": _but(_EFLAGS, 4, _IF)} | _CONTROL,
            registers=_x86(_X86_32, "eflags", 4, 8, stack=0x2000 + PAGE),
            code=0x8000,
            data=0x2000,
        ),
        Isa(
            name="aarch64",
            what="A64",
            step=4,
            illegal=0x00,  # Arm ARM, DDI 0487, D17.2.37: ESR_ELx.EC, unknown reason
            flags="nzcv",
            fixed={"nzcv": _but(0xF000_0000, 8)},
            registers=(
                *_numbered("x", 31, 8),
                Register(name="sp", size=8, value=_STACK),
                Register(name="nzcv", size=8, kind="flags"),
                *_numbered("q", 32, 16, "vectors"),
            ),
        ),
        Isa(
            name="arm",
            what="A32, ARMv7-A with VFP and NEON",
            step=4,
            illegal=_ARM_UNDEFINED,
            flags="apsr",
            fixed=_ARM_FIXED,
            registers=_ARM,
        ),
        Isa(
            name="thumb",
            what="T32, ARMv7-A with VFP and NEON",
            step=2,
            illegal=_ARM_UNDEFINED,
            flags="apsr",
            fixed=_ARM_FIXED,
            registers=_ARM,
        ),
        Isa(
            name="riscv64",
            what="RV64GC",
            step=2,
            illegal=2,  # RISC-V privileged manual, table 3.6
            registers=(
                *(Register(name=f"x{n}", size=8, value=_STACK if n == 2 else 0) for n in range(1, 32)),
                *_numbered("f", 32, 8, "vectors"),
            ),
        ),
        Isa(
            name="riscv32",
            what="RV32GC",
            step=2,
            illegal=2,
            registers=(
                *(Register(name=f"x{n}", size=4, value=_STACK if n == 2 else 0) for n in range(1, 32)),
                *_numbered("f", 32, 8, "vectors"),
            ),
        ),
        Isa(
            name="mips32",
            what="MIPS32, little-endian",
            step=4,
            illegal=10,  # MIPS32, volume III, Cause.ExcCode
            registers=(
                *(Register(name=f"r{n}", size=4, value=_STACK if n == 29 else 0) for n in range(1, 32)),
                Register(name="hi", size=4),
                Register(name="lo", size=4),
                *_numbered("f", 32, 8, "vectors"),
            ),
        ),
    )
}


def isa(name: str) -> Isa:
    """The row of that name. Raises UsageError for a name that is none."""
    try:
        return ISAS[name]
    except KeyError:
        raise UsageError(f"unknown instruction set {name!r}", hint=f"known: {', '.join(ISAS)}") from None
