"""Executors: whatever can run a few instructions and tell what came of it, each behind the same interface.

A newcomer is a file with an Engine, and a row here.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from vmtest.errors import UsageError
from vmtest.executors.base import Row
from vmtest.executors.fleet import Fleet
from vmtest.executors.worker import Executor
from vmtest.model.isa import Isa
from vmtest.model.isa import isa as isa_of

__all__ = ["EXECUTORS", "Executor", "Fleet", "available", "executor", "fleet"]

_ALL = ("x86_64", "x86_32", "x86_16", "aarch64", "arm", "thumb", "riscv64", "riscv32", "mips32")

EXECUTORS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="unicorn",
            what="the Unicorn library: TCG of QEMU 5.0 without a machine around it",
            module="vmtest.executors.unicorn",
            isas=_ALL,
            blind=("avx",),
        ),
        Row(
            name="native",
            what="the CPU itself, in a process with nothing else in it, where no system call gets through",
            module="vmtest.executors.native",
            rank=0,
            isas=("x86_64",),
            is_program=True,
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
            bulk=False,
            isas=("x86_64", "x86_32", "x86_16"),
        ),
        Row(
            name="qemu",
            what="a whole QEMU under TCG, in user mode; any version of it by qemu:PATH",
            module="vmtest.executors.qemu",
            isas=("x86_64", "aarch64", "riscv64"),
            argument="the path of a qemu-system binary",
            rank=4,
            bulk=False,
        ),
        Row(
            name="qemu-kvm",
            what="the same with KVM, in user mode; any version of it by qemu-kvm:PATH",
            module="vmtest.executors.qemu_kvm",
            isas=("x86_64",),
            argument="the path of a qemu-system binary",
            rank=2,
            bulk=False,
        ),
        Row(
            name="capstone",
            what="the Capstone library: it decodes only",
            module="vmtest.executors.capstone",
            isas=_ALL,
            decodes=True,
        ),
        Row(
            name="iced",
            what="the iced-x86 library: it decodes only",
            module="vmtest.executors.iced",
            isas=("x86_64", "x86_32", "x86_16"),
            decodes=True,
        ),
        Row(
            name="llvm",
            what="LLVM's library: it decodes only",
            module="vmtest.executors.llvm",
            isas=_ALL,
            decodes=True,
        ),
    )
}


def executor(name: str, isa: Isa) -> Executor:
    """The executor of that name for an instruction set; NAME:ARGUMENT where it takes one, such as a path.

    Raises UsageError where there is none, HostError where this host cannot have it.
    """
    plain, colon, argument = name.partition(":")
    row = EXECUTORS.get(plain)
    if row is None:
        raise UsageError(f"unknown executor {plain!r}", hint=f"known: {', '.join(EXECUTORS)}")
    if colon and not (row.argument and argument):
        takes = f"it takes {row.argument}: {plain}:ARGUMENT" if row.argument else f"{plain} takes no argument"
        raise UsageError(f"{name!r} is no executor", hint=takes)
    if isa.name not in row.isas:
        able = [other.name for other in EXECUTORS.values() if isa.name in other.isas and not other.decodes]
        raise UsageError(f"{plain} does not run {isa.name}", hint=f"these do: {', '.join(able)}")
    return Executor(row, isa, argument)


def available(isa_name: str, *, bulk: bool = False) -> list[str]:
    """The executors that can run an instruction set on this host; with ``bulk`` those that are fast enough for many
    cases, and the one that is believed most.
    """
    rows = [row for row in EXECUTORS.values() if isa_name in row.isas and not (bulk and row.decodes)]
    able = [row for row in rows if not import_module(row.module).lacks(isa_of(isa_name))]
    most = min((row.rank for row in able), default=0)
    return [row.name for row in able if row.bulk or row.rank == most or not bulk]


def fleet(names: Sequence[str], isa: Isa) -> Fleet:
    """Several executors that run the same cases. Raises as ``executor`` does."""
    return Fleet([executor(name, isa) for name in dict.fromkeys(names)])
