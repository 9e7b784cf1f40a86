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
    the other one raises for it. ``at_the_end`` is for those of which one cannot read what is behind the code.
    """

    executor: str
    what: str
    source: str
    cause: str = ""
    kind: str = ""
    vectors: tuple[int, ...] = ()
    at_the_end: bool = False


_PRIVILEGED = "it runs everything in ring 0, and the other one in ring 3"
LIMITS = (
    Limit(
        executor="unicorn",
        what="it does not check that operands of SSE are aligned",
        cause="misaligned",
        vectors=(13,),
        source="Intel SDM, volume 1, section 4.1.1.1; QEMU has done so since 7.2",
    ),
    Limit(
        executor="unicorn",
        what="it does not check that addresses are canonical",
        cause="not canonical",
        vectors=(12, 13),
        source="Intel SDM, volume 1, section 3.3.7.1; seen here",
    ),
    Limit(
        executor="unicorn",
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
        what="whether a store of which all bytes are masked can fault",
        cause="masked store",
        kind="exception",
        vectors=(14,),
        source="Intel SDM, volume 2, MASKMOVDQU: with a mask of zeros exceptions are implementation-dependent",
    ),
    Limit(
        executor="",
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
            what=_PRIVILEGED,
            cause="privileged",
            vectors=(13,),
            source="Intel SDM, volume 3, section 5.9",
        )
        for who in ("unicorn", "kvm")
    ),
)


def limit(case: Case, found: Difference, pair: tuple[str, str], outcomes: tuple[Outcome, Outcome]) -> Limit | None:
    """The limit of one of the two executors that a difference between them follows from, None where there is none."""
    causes = forms(case.isa.name).causes(case)
    at_the_end = any(outcome.address == CODE + PAGE for outcome in outcomes)
    for row in LIMITS:
        for mine, name in enumerate(pair):
            if row.executor not in ("", name.partition(":")[0]) or (row.at_the_end and not at_the_end):
                continue
            other = outcomes[1 - mine]
            as_the_manual = not row.vectors or (other.status == "exception" and other.vector in row.vectors)
            if as_the_manual and row.kind in ("", found.kind) and (not row.cause or row.cause in causes):
                return row
    return None
