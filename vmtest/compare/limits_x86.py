"""What executors of x86 are known not to do: rows of data, each with its source."""

from __future__ import annotations

from vmtest.compare.limit import ANY, INSTEAD, STATE, Limit

__all__ = ["ROWS"]

_ST = [f"st{number}" for number in range(8)]
_UNICORN = (
    Limit(
        executor="unicorn",
        isa="x86",
        what="it does not check that operands of SSE are aligned",
        kinds=INSTEAD,
        cause="misaligned",
        vectors=(13,),
        source="Intel SDM, volume 1, section 4.1.1.1; QEMU has done so since 7.2",
    ),
    Limit(
        executor="unicorn",
        isa="x86_64",
        what="it does not check that addresses are canonical",
        kinds=INSTEAD,
        cause="not canonical",
        vectors=(12, 13),
        source="Intel SDM, volume 1, section 3.3.7.1; seen here",
    ),
    Limit(
        executor="unicorn",
        isa="x86",
        what="it does not raise all flags of MXCSR and of the x87 status word",
        kinds=("fp status",),
        lacks={"mxcsr": 0x3F, "fsw": 0xFF},
        source="Intel SDM, volume 1, sections 8.1.3.3 and 10.2.3.1; QEMU has done so for MXCSR since 5.2",
    ),
    Limit(
        executor="unicorn",
        isa="x86",
        what="of all that x87 divides by 0 it raises ZE, also of 0, infinities and NaNs",
        kinds=("fp status",),
        cause="x87 division",
        extra={"fsw": 0x4},
        source="Intel SDM, volume 1, section 8.5.3 and table 8-10",
    ),
    Limit(
        executor="unicorn",
        isa="x86",
        what="of SSSE3 with MMX registers it does not set the x87 tags, nor the top of the stack to 0",
        kinds=("fp status",),
        cause="MMX of SSSE3",
        lacks={"ftw": 0xFF},
        extra={"fsw": 0x3800},
        source="Intel SDM, volume 1, section 9.5.1",
    ),
)
_TCG = tuple(
    row
    for who in ("unicorn", "qemu")
    for row in (
        Limit(
            executor=who,
            isa="x86_64",
            what="it goes by a REX prefix that another prefix follows",
            kinds=ANY,
            cause="misplaced REX",
            source="Intel SDM, volume 2, section 2.2.1: such a REX is ignored",
        ),
        Limit(
            executor=who,
            isa="x86",
            what="it does not find that the x87 stack is full, or a register of it empty",
            kinds=STATE,
            told={"fsw": 0x40},
            source="Intel SDM, volume 1, section 8.5.1.1: SF of the status word",
        ),
        Limit(
            executor=who,
            isa="x86",
            what="it leaves C1 as it is, which tells whether a result of x87 has been rounded up",
            kinds=("fp status",),
            cause="C1 of rounding",
            lacks={"fsw": 0x200},
            extra={"fsw": 0x200},
            source="Intel SDM, volume 1, section 8.1.3.3",
        ),
        Limit(
            executor=who,
            isa="x86",
            what="it does not set bits 79:64 of a register that MMX writes",
            kinds=("x87",),
            cause="MMX",
            lacks=dict.fromkeys(_ST, 0xFFFF << 64),
            source="Intel SDM, volume 1, section 9.5.2",
        ),
        Limit(
            executor=who,
            isa="x86",
            what="it sets the top of the x87 stack to 0 before the operand of MMX has failed",
            kinds=("x87",),
            cause="MMX",
            vectors=(12, 13, 14),
            told={"fsw": 0x3800},
            source="Intel SDM, volume 3, section 6.5: what a fault leaves is the state before the instruction",
        ),
        Limit(
            executor=who,
            isa="x86",
            what="it changes the x87 tags before the operand of MMX has failed",
            kinds=("fp status",),
            cause="MMX",
            vectors=(12, 13, 14),
            extra={"ftw": 0xFF},
            lacks={"fsw": 0x3800},
            source="Intel SDM, volume 3, section 6.5: what a fault leaves is the state before the instruction",
        ),
    )
)
_QEMU = (
    Limit(
        executor="qemu",
        isa="x86",
        what="it does not raise DE, for operands that are denormal",
        kinds=("fp status",),
        lacks={"mxcsr": 0x2, "fsw": 0x2},
        source="Intel SDM, volume 1, sections 4.9.1.2, 8.5.2 and 11.5.2.2",
    ),
    Limit(
        executor="qemu",
        isa="x86",
        what="it raises flags of MXCSR and of the x87 status word before the store of the result has failed",
        kinds=("fp status",),
        vectors=(12, 13, 14),
        extra={"mxcsr": 0x3F, "fsw": 0x3F},
        source="Intel SDM, volume 3, section 6.5: what a fault leaves is the state before the instruction",
    ),
    Limit(
        executor="qemu",
        isa="x86",
        what="of an operand that is read and written it tells a page fault as that of a read",
        kinds=("error code",),
        cause="read and written",
        vectors=(14,),
        error=2,
        source="Intel SDM, volume 3, section 4.7: W/R",
    ),
    Limit(
        executor="qemu",
        isa="x86",
        what="it does not check alignment, or after it has looked whether the page is there",
        kinds=INSTEAD,
        cause="misaligned",
        vectors=(13,),
        source="Intel SDM, volume 3, table 6-2: #GP comes before #PF",
    ),
    Limit(
        executor="qemu",
        isa="x86_64",
        what="of a stack address that is not canonical it raises #GP, and not #SS",
        kinds=("exception",),
        cause="not canonical",
        vectors=(12,),
        source="Intel SDM, volume 1, section 3.3.7.1",
    ),
    Limit(
        executor="qemu",
        isa="x86_64",
        what="it raises #GP for a branch to what is not canonical at its target",
        kinds=("end",),
        cause="not canonical",
        vectors=(13,),
        source="Intel SDM, volume 2, JMP and CALL",
    ),
)
_KVM = (
    Limit(
        executor="kvm",
        isa="x86_64",
        what="of an address that is not canonical it raises #SS or #GP by an override, which 64-bit mode ignores",
        kinds=("exception",),
        cause="not canonical with an override",
        vectors=(12, 13),
        source="AMD64 APM, volume 1, section 2.1.1; Intel SDM, volume 1, section 3.4.2.1",
    ),
)
_OPEN = (
    Limit(
        executor="",
        isa="x86",
        what="whether a store of which all bytes are masked can fault",
        kinds=("exception",),
        cause="masked store",
        vectors=(14,),
        source="Intel SDM, volume 2, MASKMOVDQU: with a mask of zeros exceptions are implementation-dependent",
    ),
    Limit(
        executor="",
        isa="x86",
        what="what an instruction does that goes by flags which another one has left undefined, or to its ring",
        kinds=ANY,
        cause="undefined flags",
        tainted=True,
        source="Intel SDM, volume 1, appendix A; volume 2, POPF",
    ),
    Limit(
        executor="",
        isa="x86",
        what="what an instruction does that is not made, since it tells of the machine, and is jumped to",
        kinds=ANY,
        cause="banned",
        source="vmtest/forms/x86_rules.py: BANNED",
    ),
    Limit(
        executor="",
        isa="x86",
        what="what a branch does that has a repeat prefix",
        kinds=ANY,
        cause="repeated branch",
        source="Intel SDM, volume 2, section 2.1.1: reserved; such use may cause unpredictable behavior",
    ),
    Limit(
        executor="",
        isa="x86_64",
        what="of a branch with the prefix 66 Intel's CPUs go on in 64 bits, and AMD's in 16",
        kinds=ANY,
        cause="size of a branch",
        source="Intel SDM, volume 2, JMP; AMD64 APM, volume 3, section 1.2.2",
    ),
    *(
        Limit(
            executor="",
            isa="x86",
            what="which of two faults comes first: of two operands, or of an address that is bad in two ways",
            kinds=("exception", "address", "error code"),
            cause=cause,
            vectors=(12, 13, 14),
            source="Intel SDM, volume 3, table 6-2: exceptions of one class come in an order of the implementation's",
        )
        for cause in ("two operands", "two faults")
    ),
)
ROWS = (*_UNICORN, *_TCG, *_QEMU, *_KVM, *_OPEN)
