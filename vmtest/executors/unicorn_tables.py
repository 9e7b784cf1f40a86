"""What Unicorn calls each instruction set and its registers, and its exceptions in the architecture's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["MACHINES", "NONE", "Machine"]

NONE = -1


@dataclass(frozen=True, kw_only=True)
class Machine:
    """``constants`` is the library's module of the architecture, whose names of registers begin with ``prefix``;
    ``names`` are those that it calls otherwise than we do. ``enable`` are bits of registers that are set before the
    first case. ``start`` is added to the address where it is to begin.

    ``vectors`` are the architecture's numbers of exceptions by QEMU's; where there is none they are the same.
    ``undefined`` is the number of what is no instruction, ``faults`` those of an access to memory that is not there: to
    read, to write, to fetch. NONE is what it does not tell. ``cut`` is how many upper bits of an address it does not
    tell. ``reset`` are registers that are no part of a state and in none of its contexts. After a fetch that fails some
    emulators end the process with the next case, and are made anew: ``dies_of_fetch`` (unicorn-engine/unicorn#2134).
    """

    arch: str
    mode: str
    constants: str
    prefix: str
    pc: str = "PC"
    names: Mapping[str, str] = field(default_factory=dict)
    enable: tuple[tuple[str, int], ...] = ()
    start: int = 0
    vectors: Mapping[int, int] = field(default_factory=dict)
    undefined: int
    faults: tuple[int, int, int]
    cut: int = 0
    reset: tuple[str, ...] = ()
    dies_of_fetch: bool = False

    def vector(self, number: int) -> int:
        """The architecture's number of an exception that the library tells."""
        return self.vectors.get(number, NONE) if self.vectors else number


def _x86(mode: str, pc: str, names: Mapping[str, str], enable: tuple[tuple[str, int], ...] = ()) -> Machine:
    """Intel SDM, volume 3, table 6-1."""
    return Machine(
        arch="UC_ARCH_X86",
        mode=mode,
        constants="x86_const",
        prefix="UC_X86_REG_",
        pc=pc,
        names=names,
        enable=enable,
        undefined=6,
        faults=(14, 14, 14),
        cut=12,
    )


def _arm(mode: str, start: int) -> Machine:
    """QEMU's target/arm/cpu.h, EXCP_*; ARM DDI 0406C, B1.8.1: a number is that of the entry in the table of vectors,
    where BKPT is a prefetch abort.
    """
    return Machine(
        arch="UC_ARCH_ARM",
        mode=mode,
        constants="arm_const",
        prefix="UC_ARM_REG_",
        enable=(("C1_C0_2", 0xF << 20), ("FPEXC", 1 << 30)),  # CPACR.cp10 and cp11; B4.1.40, B6.1.40
        start=start,
        vectors={1: 1, 2: 2, 3: 3, 4: 4, 7: 3},  # EXCP_UDEF, SWI, PREFETCH_ABORT, DATA_ABORT, BKPT
        undefined=1,
        faults=(4, 4, 3),
    )


def _riscv(mode: str) -> Machine:
    """QEMU's target/riscv/cpu_bits.h, RISCV_EXCP_*, are the causes of the privileged manual, table 3.6. That of
    an access that fails depends on whether addresses are translated, and the library tells none. Its error for what is
    no instruction is for ebreak.
    """
    return Machine(
        arch="UC_ARCH_RISCV",
        mode=mode,
        constants="riscv_const",
        prefix="UC_RISCV_REG_",
        enable=(("MSTATUS", 3 << 13),),  # FS
        undefined=NONE,
        reset=("FFLAGS",),
        faults=(NONE, NONE, NONE),
    )


# QEMU's target/mips/cpu.h, EXCP_*; MIPS32 Architecture, volume III, table 9.32: Cause.ExcCode.
_MIPS_CAUSES = {
    12: 4,  # address of a load or fetch
    13: 5,  # address of a store
    15: 6,  # bus, fetch
    17: 8,  # SYSCALL
    18: 9,  # BREAK
    19: 11,  # coprocessor unusable
    20: 10,  # reserved instruction
    21: 12,  # overflow
    22: 13,  # trap
    23: 15,  # floating point
    25: 1,  # TLB, modified
    26: 2,  # TLB, load or fetch
    27: 3,  # TLB, store
    28: 7,  # bus, data
    33: 26,  # DSP disabled
    34: 21,  # MSA disabled
    35: 14,  # MSA, floating point
}

MACHINES: dict[str, Machine] = {
    "x86_64": _x86("UC_MODE_64", "RIP", {"rflags": "EFLAGS"}),
    "x86_32": _x86("UC_MODE_32", "EIP", {}),
    # PE, ET; RDWRGSFS, OSFXSR, OSXSAVE: as the library has them in the other modes.
    "x86_16": _x86("UC_MODE_16", "EIP", {}, (("CR0", 0x11), ("CR4", 0x50200))),
    "aarch64": Machine(
        arch="UC_ARCH_ARM64",
        mode="UC_MODE_ARM",
        constants="arm64_const",
        prefix="UC_ARM64_REG_",
        enable=(("CPACR_EL1", 3 << 20),),
        # EXCP_UDEF, EXCP_SWI, EXCP_BKPT of QEMU 5.0, target/arm/cpu.h, are here exception classes: ESR_EL1.EC, Arm ARM,
        # DDI 0487, D17.2.37.
        vectors={1: 0x00, 2: 0x15, 7: 0x3C},
        undefined=0x00,
        faults=(NONE, NONE, NONE),
    ),
    "arm": _arm("UC_MODE_ARM", 0),
    "thumb": _arm("UC_MODE_THUMB", 1),
    "riscv64": _riscv("UC_MODE_RISCV64"),
    "riscv32": _riscv("UC_MODE_RISCV32"),
    "mips32": Machine(
        arch="UC_ARCH_MIPS",
        mode="UC_MODE_MIPS32",
        constants="mips_const",
        prefix="UC_MIPS_REG_",
        names={f"r{number}": str(number) for number in range(32)},
        enable=(("CP0_STATUS", 1 << 26),),  # FR: 32 floating-point registers of 64 bits
        vectors=_MIPS_CAUSES,
        undefined=10,
        faults=(2, 3, 2),
        dies_of_fetch=True,
    ),
}
