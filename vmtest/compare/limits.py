"""What an executor is known not to do at all, whatever the instruction: differences that follow from it are counted and
named, and make no cluster. Data; a difference is only put down to a limit where the other one did what the manual says.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmtest.compare.pairs import Difference
from vmtest.forms import forms
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import CODE, PAGE

__all__ = ["LIMITS", "Limit", "limit"]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """``executor`` does not do ``what``; "" is for any, where the manuals leave it open or differ. It shows as a
    difference of ``kind``; ``cause`` is what of the case leads to it (Forms.causes), ``vectors`` the exceptions that
    the other one raises for it, as instruction sets number them whose names begin with ``isa``. ``at_the_end`` is for
    those of which one cannot read what is behind the code, and ``further`` is by how many bytes it is wrong about the
    program counter.
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


_PRIVILEGED = "it runs everything with all privileges, and the other one in user mode"
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
        what="it does not raise the flags of MXCSR",
        kind="fp status",
        source="Intel SDM, volume 1, section 10.2.3.1; QEMU has done so since 5.2",
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
    Limit(
        executor="unicorn",
        isa="aarch64",
        what="it does not ignore the top byte of an address",
        cause="top byte",
        source="Arm ARM, DDI 0487, section D8.8: TCR_EL1.TBI0, which is set as Linux does",
    ),
    *(
        Limit(
            executor="unicorn",
            isa=isa,
            what="of a store over the edge of what is mapped it tells another address, and may have written a part",
            cause="over an edge",
            kind=kind,
            vectors=vectors,
            source=source,
        )
        for isa, vectors, source in (
            ("aarch64", (0x24,), "Arm ARM, DDI 0487, FAR_EL1"),
            ("riscv64", (15,), "RISC-V, volume II, section 3.1.16"),
        )
        for kind in ("address", "memory")
    ),
)


def limit(case: Case, found: Difference, pair: tuple[str, str], outcomes: tuple[Outcome, Outcome]) -> Limit | None:
    """The limit of one of the two executors that a difference between them follows from, None where there is none."""
    causes = forms(case.isa.name).causes(case)
    at_the_end = any(outcome.address == CODE + PAGE for outcome in outcomes)
    for row in LIMITS:
        if not case.isa.name.startswith(row.isa):
            continue
        for mine, name in enumerate(pair):
            if row.executor not in ("", name.partition(":")[0]) or (row.at_the_end and not at_the_end):
                continue
            other = outcomes[1 - mine]
            if row.further and (other.end is None or outcomes[mine].end != other.end + row.further):
                continue
            as_the_manual = not row.vectors or (other.status == "exception" and other.vector in row.vectors)
            if as_the_manual and row.kind in ("", found.kind) and (not row.cause or row.cause in causes):
                return row
    return None
