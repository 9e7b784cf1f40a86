"""What executors are known not to do on all instruction sets, or on others than x86: rows of data, with sources."""

from __future__ import annotations

from vmtest.compare.limit import ANY, INSTEAD, STATE, Limit

__all__ = ["ROWS"]

_PRIVILEGED = "it runs everything with all privileges, and the other one in user mode"
_FETCHING = (
    Limit(
        executor="unicorn",
        what="it reads a block of instructions before it runs any: where one is cut off, those before it do not run",
        kinds=ANY,
        cause="cut off",
        at_the_end=True,
        source="seen here: a fault from fetching comes with the registers as they were before the block",
    ),
    Limit(
        executor="",
        what="what comes first of code that is no instruction: that, or that there is nothing behind it to read",
        kinds=("exception", "error code", "address", "end"),
        cause="no instruction",
        at_the_end=True,
        source="Intel SDM, volume 3, table 6-2: faults from fetching come first, and what must be fetched is not said",
    ),
    Limit(
        executor="",
        what="how far a long loop has come in its time",
        kinds=("timeout",),
        cause="loop",
        source="each executor has its own speed, and its own end of patience",
    ),
)
_MODES = tuple(
    Limit(executor=who, isa=isa, what=_PRIVILEGED, kinds=INSTEAD, cause="privileged", vectors=vectors, source=source)
    for who, isa, vectors, source in (
        ("unicorn", "x86", (13, 17), "Intel SDM, volume 3, sections 5.9 and 6.15 (#AC is of user mode)"),
        ("kvm", "x86", (13, 17), "Intel SDM, volume 3, sections 5.9 and 6.15 (#AC is of user mode)"),
        ("unicorn", "aarch64", (0x00, 0x18), "Arm ARM, DDI 0487, section D1.3"),
        ("unicorn", "riscv64", (2,), "RISC-V, volume II, chapter 2"),
    )
)
_ARM = (
    Limit(
        executor="unicorn",
        isa="aarch64",
        what="it does not ignore the top byte of an address",
        kinds=("exception", "address"),
        cause="top byte",
        source="Arm ARM, DDI 0487, section D8.8: TCR_EL1.TBI0, which is set as Linux does",
    ),
    Limit(
        executor="",
        isa="aarch64",
        what="what an instruction does that is CONSTRAINED UNPREDICTABLE",
        kinds=ANY,
        cause="unpredictable",
        source="Arm ARM, DDI 0487, section K1.1",
    ),
    *(
        Limit(
            executor=who,
            isa="aarch64",
            what="whether atomic and ordered accesses must be aligned, and whether that is looked at first",
            kinds=("exception", "error code"),
            cause="misaligned",
            source="Arm ARM, DDI 0487, section B2.5.2 and FEAT_LSE2; QEMU has checked more of them since 8.1",
        )
        for who in ("unicorn", "qemu")
    ),
)
_RISCV = (
    Limit(
        executor="unicorn",
        isa="riscv64",
        what="after an exception the program counter is 4 bytes further",
        kinds=("end",),
        further=4,
        source="RISC-V, volume II, section 3.1.14; unicorn-engine/unicorn#1990",
    ),
    Limit(
        executor="unicorn",
        isa="riscv64",
        what="it does not look whether an operand of 32 bits is NaN-boxed",
        kinds=STATE,
        cause="not boxed",
        source="RISC-V, volume I, chapter D, NaN Boxing",
    ),
    Limit(
        executor="unicorn",
        isa="riscv64",
        what="it does not NaN-box a result of 32 bits",
        kinds=("vectors",),
        cause="single",
        lacks={f"f{number}": 0xFFFFFFFF << 32 for number in range(32)},
        source="RISC-V, volume I, chapter D, NaN Boxing",
    ),
)
_EDGES = tuple(
    Limit(
        executor=who,
        isa=isa,
        what="of a store over the edge of what is mapped it tells another address, and may have written a part",
        kinds=("address", "memory"),
        cause="over an edge",
        vectors=vectors,
        source=source,
    )
    for who, isa, vectors, source in (
        ("unicorn", "aarch64", (0x24,), "Arm ARM, DDI 0487, FAR_EL1"),
        ("qemu", "aarch64", (0x24,), "Arm ARM, DDI 0487, FAR_EL1"),
        ("unicorn", "riscv64", (15,), "RISC-V, volume II, section 3.1.16"),
    )
)
ROWS = (*_FETCHING, *_MODES, *_ARM, *_RISCV, *_EDGES)
