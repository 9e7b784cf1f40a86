"""What iced-x86 knows of x86 code: its text, and what the manuals leave undefined. The only file that imports it."""

from __future__ import annotations

from vmtest.model.case import Case

__all__ = ["disassembly", "is_privileged", "undefined_flags"]

# iced_x86.RflagsBits to the bits of RFLAGS, Intel SDM, volume 1, section 3.4.3.
_FLAGS = {"OF": 1 << 11, "SF": 1 << 7, "ZF": 1 << 6, "AF": 1 << 4, "CF": 1 << 0, "PF": 1 << 2, "DF": 1 << 10}


def _decoded(case: Case) -> list[object]:
    from iced_x86 import Decoder

    return list(Decoder(64, case.code, ip=case.start))


def disassembly(case: Case) -> list[str]:
    """Each instruction as text, such as "blsr rax,rbx"; "(bad)" for what is none."""
    from iced_x86 import Formatter, FormatterSyntax

    formatter = Formatter(FormatterSyntax.NASM)
    return [formatter.format(instruction) for instruction in _decoded(case)]  # type: ignore[arg-type]


def undefined_flags(case: Case) -> int:
    """The bits of RFLAGS that the code leaves undefined, run from its beginning to its end.

    Source: Intel SDM, volume 1, appendix A, by iced-x86's ``rflags_undefined``.
    """
    from iced_x86 import RflagsBits

    bits = {getattr(RflagsBits, name): bit for name, bit in _FLAGS.items()}

    def mask(of: int) -> int:
        return sum(bit for iced, bit in bits.items() if of & iced)

    undefined = 0
    for found in _decoded(case):
        written = found.rflags_written | found.rflags_cleared | found.rflags_set  # type: ignore[attr-defined]
        undefined = undefined & ~mask(written) | mask(found.rflags_undefined)  # type: ignore[attr-defined]
    return undefined


def is_privileged(case: Case) -> bool:
    """Whether an instruction of it is for ring 0 only."""
    return any(found.is_privileged for found in _decoded(case))  # type: ignore[attr-defined]
