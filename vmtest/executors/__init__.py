"""Executors: whatever can run a few instructions and tell what came of it, each behind the same interface.

A newcomer is a file with an Engine, and a row here.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmtest.errors import UsageError
from vmtest.executors.base import Row
from vmtest.executors.fleet import Fleet
from vmtest.executors.worker import Executor
from vmtest.model.isa import Isa

__all__ = ["EXECUTORS", "Executor", "Fleet", "executor", "fleet"]

EXECUTORS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="unicorn",
            what="the Unicorn library: TCG of QEMU 5.0 without a machine around it",
            module="vmtest.executors.unicorn",
            isas=("x86_64", "x86_32", "x86_16", "aarch64", "arm", "thumb", "riscv64", "riscv32", "mips32"),
            blind=("avx",),
        ),
        Row(
            name="native",
            what="the CPU itself, in a traced process with nothing else in it, where no system call gets through",
            module="vmtest.executors.native",
            rank=0,
            isas=("x86_64",),
            blind=("avx", "x87"),
            # Else the kernel writes to a thread's rseq area, which is unmapped with all else.
            environment=(("GLIBC_TUNABLES", "glibc.pthread.rseq=0"),),
        ),
        Row(
            name="kvm",
            what="/dev/kvm by itself, without QEMU, in ring 0",
            module="vmtest.executors.kvm",
            rank=3,
            isas=("x86_64", "x86_32", "x86_16"),
        ),
        Row(
            name="kvm-user",
            what="the same in ring 3",
            module="vmtest.executors.kvm_user",
            rank=1,
            isas=("x86_64", "x86_32", "x86_16"),
        ),
    )
}


def executor(name: str, isa: Isa) -> Executor:
    """The executor of that name for an instruction set. Raises UsageError where there is none, HostError where
    this host cannot have it.
    """
    row = EXECUTORS.get(name)
    if row is None:
        raise UsageError(f"unknown executor {name!r}", hint=f"known: {', '.join(EXECUTORS)}")
    if isa.name not in row.isas:
        able = [other.name for other in EXECUTORS.values() if isa.name in other.isas]
        raise UsageError(f"{name} does not run {isa.name}", hint=f"these do: {', '.join(able)}")
    return Executor(row, isa)


def fleet(names: Sequence[str], isa: Isa) -> Fleet:
    """Several executors that run the same cases. Raises as ``executor`` does."""
    return Fleet([executor(name, isa) for name in dict.fromkeys(names)])
