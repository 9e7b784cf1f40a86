"""The instruction sets that cases are written in: one row each, with the registers that are set and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from vmtest.errors import UsageError

__all__ = ["CODE", "DATA", "DATA_SIZE", "ISAS", "PAGE", "Isa", "Register", "isa"]

PAGE = 4096
CODE = 0x1000_0000
"""Address of the page of code. A case's bytes are its last ones, and nothing is mapped behind: to fetch from there is
to have come to the end, and what is cut off there cannot be completed."""
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
    """``code_most`` bytes is the longest code of a case. ``fixed`` are bits, by register, that are no state of the
    program's and stay as they are: (mask, value).

    A state is all registers' bytes, little-endian, in the order of ``registers``: what executors take and give.
    """

    name: str
    what: str
    registers: tuple[Register, ...]
    flags: str = ""
    code_most: int = 64
    fixed: Mapping[str, tuple[int, int]] = field(default_factory=dict)

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


def _row(text: str, size: int, group: str = "", kind: str = "registers") -> tuple[Register, ...]:
    return tuple(Register(name=name, size=size, group=group, kind=kind) for name in text.split())


_STACK = DATA + PAGE
_X86_GENERAL = "rax rcx rdx rbx rsp rbp rsi rdi"
_XMM = " ".join(f"xmm{number}" for number in range(16))
_YMM = " ".join(f"ymm{number}h" for number in range(16))  # the upper halves
# As FXSAVE has them (Intel SDM, volume 1, section 10.5.1): the tags are a bit a register, 0 for empty, and st0 is the
# top of the stack. MMX registers are the low 8 bytes of st0 to st7.
_X87 = (
    Register(name="fcw", size=2, value=0x37F, group="x87", kind="fp status"),
    *_row("fsw", 2, "x87", "fp status"),
    *_row("ftw", 1, "x87", "fp status"),
    *_row(" ".join(f"st{number}" for number in range(8)), 10, "x87", "x87"),
)
# TF, IOPL, NT, RF, VM, AC, VIF, VIP, ID and the reserved ones: not a program's, or they end the run. IF is on.
_EFLAGS = {"rflags": (~0xCD5 & (1 << 64) - 1, 0x202)}
# Reserved bits: to load one of them is an exception (Intel SDM, volume 1, section 10.2.3).
_MXCSR = {"mxcsr": (0xFFFF0000, 0)}

ISAS: dict[str, Isa] = {
    row.name: row
    for row in (
        Isa(
            name="x86_64",
            what="x86 in 64-bit mode",
            flags="rflags",
            fixed=_EFLAGS | _MXCSR,
            registers=(
                *(
                    Register(name=name, size=8, value=_STACK if name == "rsp" else 0)
                    for name in f"{_X86_GENERAL} r8 r9 r10 r11 r12 r13 r14 r15".split()
                ),
                Register(name="rflags", size=8, value=0x202, kind="flags"),
                *_row(_XMM, 16, kind="vectors"),
                Register(name="mxcsr", size=4, value=0x1F80, kind="fp status"),
                *_row(_YMM, 16, "avx", "vectors"),
                *_X87,
            ),
        ),
        Isa(
            name="aarch64",
            what="A64",
            flags="nzcv",
            fixed={"nzcv": (~0xF0000000 & (1 << 64) - 1, 0)},
            registers=(
                *_row(" ".join(f"x{number}" for number in range(31)), 8),
                Register(name="sp", size=8, value=_STACK),
                Register(name="nzcv", size=8, kind="flags"),
                *_row(" ".join(f"q{number}" for number in range(32)), 16, kind="vectors"),
            ),
        ),
        Isa(
            name="riscv64",
            what="RV64GC",
            registers=(
                *(Register(name=f"x{n}", size=8, value=_STACK if n == 2 else 0) for n in range(1, 32)),
                *_row(" ".join(f"f{number}" for number in range(32)), 8, kind="vectors"),
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
