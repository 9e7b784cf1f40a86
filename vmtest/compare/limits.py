"""What an executor is known not to do at all, whatever the instruction: differences that follow from it are counted and
named, and make no cluster. Data; a difference is only put down to a limit where the other one did what the manual says.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmtest.compare.pairs import Difference
from vmtest.forms import forms
from vmtest.model.case import Case, Outcome

__all__ = ["LIMITS", "Limit", "limit"]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """``executor`` does not do ``what``; "" is for any, where the manuals leave it open or differ. It shows as a
    difference of ``kind``; ``cause`` is what of the case leads to it (Forms.causes), ``vectors`` the exceptions that
    the other one raises for it, as instruction sets number them whose names begin with ``isa``. ``at_the_end`` is for
    those of which one cannot read what is behind the code, and ``further`` is by how many bytes it is wrong about the
    program counter. ``told`` are a register and bits of it that the other one has set, ``only`` the bits to which a
    difference in registers of that kind is confined.
    """

    executor: str
    what: str
    source: str
    isa: str = ""
    cause: str = ""
    kind: str = ""
    vectors: tuple[int, ...] = ()
    at_the_end: bool = False
    further: int = 0
    told: tuple[str, int] | None = None
    only: int = 0


_PRIVILEGED = "it runs everything with all privileges, and the other one in user mode"
_TCG = ("unicorn", "qemu")
LIMITS = (
    Limit(
        executor="unicorn",
        isa="x86",
        what="it does not check that operands of SSE are aligned",
        cause="misaligned",
        vectors=(13,),
        source="Intel SDM, volume 1, section 4.1.1.1; QEMU has done so since 7.2",
    ),
    Limit(
        executor="unicorn",
        isa="x86",
        what="it does not check that addresses are canonical",
        cause="not canonical",
        vectors=(12, 13),
        source="Intel SDM, volume 1, section 3.3.7.1; seen here",
    ),
    Limit(
        executor="unicorn",
        isa="x86",
        what="it does not raise all flags of MXCSR and of the x87 status word",
        kind="fp status",
        source="Intel SDM, volume 1, sections 8.1.3.3 and 10.2.3.1; QEMU has done so for MXCSR since 5.2",
    ),
    *(
        row
        for who in _TCG
        for row in (
            Limit(
                executor=who,
                isa="x86_64",
                what="it goes by a REX prefix that another prefix follows",
                cause="misplaced REX",
                source="Intel SDM, volume 2, section 2.2.1: such a REX is ignored",
            ),
            Limit(
                executor=who,
                isa="x86",
                what="it does not find that the x87 stack is full, or a register of it empty",
                told=("fsw", 0x40),
                source="Intel SDM, volume 1, section 8.5.1.1: SF of the status word",
            ),
            Limit(
                executor=who,
                isa="x86",
                what="it does not set bits 79:64 of a register that MMX writes",
                kind="x87",
                only=0xFFFF << 64,
                source="Intel SDM, volume 1, section 9.5.2",
            ),
        )
    ),
    Limit(
        executor="qemu",
        isa="x86",
        what="it does not raise DE, for operands that are denormal",
        kind="fp status",
        only=0x2,
        source="Intel SDM, volume 1, sections 4.9.1.2, 8.5.2 and 11.5.2.2",
    ),
    Limit(
        executor="qemu",
        isa="x86",
        what="it changes the x87 tags before the operand of MMX has failed",
        kind="fp status",
        cause="MMX",
        vectors=(12, 13, 14),
        source="Intel SDM, volume 3, section 6.5: what a fault leaves is the state before the instruction",
    ),
    Limit(
        executor="qemu",
        isa="x86",
        what="of an operand that is read and written it tells a page fault as that of a read",
        kind="error code",
        vectors=(14,),
        source="Intel SDM, volume 3, section 4.7: W/R",
    ),
    Limit(
        executor="qemu",
        isa="x86",
        what="it does not check alignment, or after it has looked whether the page is there",
        cause="misaligned",
        vectors=(13,),
        source="Intel SDM, volume 3, table 6-2: #GP comes before #PF",
    ),
    Limit(
        executor="qemu",
        isa="x86",
        what="of a stack address that is not canonical it raises #GP, and not #SS",
        cause="not canonical",
        vectors=(12,),
        source="Intel SDM, volume 1, section 3.3.7.1",
    ),
    Limit(
        executor="qemu",
        isa="x86",
        what="it raises #GP for a branch to what is not canonical at its target",
        kind="end",
        cause="not canonical",
        vectors=(13,),
        source="Intel SDM, volume 2, JMP and CALL",
    ),
    Limit(
        executor="unicorn",
        what="it reads a block of instructions before it runs any: where one is cut off, those before it do not run",
        cause="cut off",
        at_the_end=True,
        source="seen here: a fault from fetching comes with the registers as they were before the block",
    ),
    Limit(
        executor="",
        isa="x86",
        what="whether a store of which all bytes are masked can fault",
        cause="masked store",
        kind="exception",
        vectors=(14,),
        source="Intel SDM, volume 2, MASKMOVDQU: with a mask of zeros exceptions are implementation-dependent",
    ),
    Limit(
        executor="",
        isa="x86",
        what="what an instruction does that goes by flags which another one has left undefined",
        cause="undefined flags",
        source="Intel SDM, volume 1, appendix A",
    ),
    Limit(
        executor="",
        isa="x86",
        what="what a branch does that has a repeat prefix",
        cause="repeated branch",
        source="Intel SDM, volume 2, section 2.1.1: reserved; such use may cause unpredictable behavior",
    ),
    Limit(
        executor="kvm",
        isa="x86",
        what="of an address that is not canonical it raises #SS or #GP by an override, which 64-bit mode ignores",
        cause="segment override",
        kind="exception",
        vectors=(12, 13),
        source="AMD64 APM, volume 1, section 2.1.1; Intel SDM, volume 1, section 3.4.2.1",
    ),
    *(
        Limit(
            executor="",
            isa="x86",
            what="which of two faults comes first: of two operands, or of an address that is bad in two ways",
            cause=cause,
            kind=kind,
            vectors=(12, 13, 14),
            source="Intel SDM, volume 3, table 6-2: exceptions of one class come in an order of the implementation's",
        )
        for cause in ("two operands", "two faults")
        for kind in ("exception", "address", "error code")
    ),
    Limit(
        executor="",
        isa="x86",
        what="of a branch with the prefix 66 Intel's CPUs go on in 64 bits, and AMD's in 16",
        cause="size of a branch",
        source="Intel SDM, volume 2, JMP; AMD64 APM, volume 3, section 1.2.2",
    ),
    Limit(
        executor="",
        what="what comes first of code that is no instruction: that, or that there is nothing behind it to read",
        cause="no instruction",
        at_the_end=True,
        source="Intel SDM, volume 3, table 6-2: faults from fetching come first, and what must be fetched is not said",
    ),
    *(
        Limit(
            executor=who,
            isa=isa,
            what=_PRIVILEGED,
            cause="privileged",
            vectors=vectors,
            source=source,
        )
        for who, isa, vectors, source in (
            ("unicorn", "x86", (13,), "Intel SDM, volume 3, section 5.9"),
            ("kvm", "x86", (13,), "Intel SDM, volume 3, section 5.9"),
            ("unicorn", "aarch64", (0x00, 0x18), "Arm ARM, DDI 0487, section D1.3"),
            ("unicorn", "riscv64", (2,), "RISC-V, volume II, chapter 2"),
        )
    ),
    Limit(
        executor="unicorn",
        isa="riscv64",
        what="after an exception the program counter is 4 bytes further",
        kind="end",
        further=4,
        source="RISC-V, volume II, section 3.1.14; unicorn-engine/unicorn#1990",
    ),
    *(
        Limit(
            executor="unicorn",
            isa="aarch64",
            what="it does not ignore the top byte of an address",
            cause="top byte",
            kind=kind,
            source="Arm ARM, DDI 0487, section D8.8: TCR_EL1.TBI0, which is set as Linux does",
        )
        for kind in ("exception", "address")
    ),
    Limit(
        executor="",
        isa="aarch64",
        what="what an instruction does that is CONSTRAINED UNPREDICTABLE",
        cause="unpredictable",
        source="Arm ARM, DDI 0487, section K1.1",
    ),
    *(
        Limit(
            executor=who,
            isa="aarch64",
            what="whether atomic and ordered accesses must be aligned, and whether that is looked at first",
            cause="misaligned",
            kind=kind,
            source="Arm ARM, DDI 0487, section B2.5.2 and FEAT_LSE2; QEMU has checked more of them since 8.1",
        )
        for who in _TCG
        for kind in ("exception", "error code")
    ),
    Limit(
        executor="unicorn",
        isa="riscv64",
        what="it does not look whether an operand of 32 bits is NaN-boxed",
        cause="not boxed",
        source="RISC-V, volume I, chapter D, NaN Boxing",
    ),
    Limit(
        executor="unicorn",
        isa="riscv64",
        what="it does not NaN-box a result of 32 bits",
        cause="single",
        kind="vectors",
        only=0xFFFFFFFF << 32,
        source="RISC-V, volume I, chapter D, NaN Boxing",
    ),
    *(
        Limit(
            executor=who,
            isa=isa,
            what="of a store over the edge of what is mapped it tells another address, and may have written a part",
            cause="over an edge",
            kind=kind,
            vectors=vectors,
            source=source,
        )
        for who, isa, vectors, source in (
            ("unicorn", "aarch64", (0x24,), "Arm ARM, DDI 0487, FAR_EL1"),
            ("qemu", "aarch64", (0x24,), "Arm ARM, DDI 0487, FAR_EL1"),
            ("unicorn", "riscv64", (15,), "RISC-V, volume II, section 3.1.16"),
        )
        for kind in ("address", "memory")
    ),
)


def limit(case: Case, found: Difference, pair: tuple[str, str], outcomes: tuple[Outcome, Outcome]) -> Limit | None:
    """The limit of one of the two executors that a difference between them follows from, None where there is none."""
    causes = forms(case.isa.name).causes(case)
    for row in LIMITS:
        if not case.isa.name.startswith(row.isa) or row.kind not in ("", found.kind):
            continue
        if row.cause and row.cause not in causes:
            continue
        for mine, name in enumerate(pair):
            here = row.executor in ("", name.partition(":")[0])
            if here and _follows(row, case, outcomes[mine], outcomes[1 - mine]):
                return row
    return None


def _follows(row: Limit, case: Case, mine: Outcome, other: Outcome) -> bool:
    """Whether the two outcomes, of which the other is to be as the manual says, are what the limit leads to."""
    if row.at_the_end and case.end not in (mine.address, other.address):
        return False
    if row.further and (other.end is None or mine.end != other.end + row.further):
        return False
    if row.vectors and (other.status != "exception" or other.vector not in row.vectors):
        return False
    if row.told and not (other.state and case.isa.values(other.state).get(row.told[0], 0) & row.told[1]):
        return False
    return not row.only or _confined(row, case, mine, other)


def _confined(row: Limit, case: Case, mine: Outcome, other: Outcome) -> bool:
    for register in case.isa.registers:
        if register.kind == row.kind:
            place = case.isa.places[register.name]
            one, two = (int.from_bytes(outcome.state[place], "little") for outcome in (mine, other))
            if (one ^ two) & ~row.only:
                return False
    return True
