"""What an executor is made of: an engine that runs one case after the other, in a process that may die of it."""

from __future__ import annotations

import mmap
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmtest.model.case import Case, Outcome
from vmtest.model.isa import Isa

__all__ = ["RUNS", "Engine", "Row"]

RUNS = struct.Struct("<II")
"""The case that runs, by its place in its batch, and 1; two zeros where none does."""


class Engine(ABC):
    """Runs cases of one instruction set. It is made in a worker process, and may take that down with it.

    ``survives_fork``: it can be made once, ahead, and each worker process is then forked from there. ``patience`` is
    the seconds after which a case is stopped, at most twice as many: one takes 20 microseconds.
    """

    survives_fork = False
    patience = 0.05

    def __init__(self, isa: Isa) -> None:
        self.isa = isa

    @abstractmethod
    def run(self, case: Case) -> Outcome:
        """Run it from its first byte until it comes to its end, fails, or is stopped."""

    def run_all(self, cases: Sequence[Case], mark: Callable[[int], None]) -> list[Outcome]:
        """Run a batch, from whose cases ``mark`` is told which one has begun, by its place."""
        outcomes = []
        for index, case in enumerate(cases):
            mark(index)
            outcome = self.run(case)
            if outcome.status == "timeout":  # or the one before was stopped too late, and this one in its place
                outcome = self.run(case)
            outcomes.append(outcome)
        return outcomes

    def run_packed(self, data: bytes, number: int, progress: mmap.mmap) -> bytes:
        """Run a batch of packed cases, to packed outcomes. ``progress`` begins with what RUNS says of it."""

        def mark(index: int) -> None:
            progress[: RUNS.size] = RUNS.pack(index, 1)

        cases, at = [], 0
        for _ in range(number):
            case, at = Case.unpack(self.isa, data, at)
            cases.append(case)
        return b"".join([outcome.pack() for outcome in self.run_all(cases, mark)])

    @abstractmethod
    def stop(self) -> None:
        """End what runs now, whose outcome is "timeout"; called by another thread, perhaps too late."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An executor's row in EXECUTORS. ``module`` has its class Engine; ``lacks(isa)``, which says why it cannot be had
    here and what to do, "" where it can; and ``describe(isa)``, which says what exactly it is here, with its version.
    Where it ``is_program`` the module has, in place of an Engine, ``program(isa)``: the path of an executable that is a
    worker by itself, as images/_executors/native.c says.

    ``environment`` is what its worker process is started with. ``blind`` are the groups of registers (Register.group)
    that it neither sets nor tells. ``rank`` is whom to believe where two differ: the lower one. ``bulk`` says that it
    runs cases by the thousand, and is taken where none is named; one that ``decodes`` runs nothing, and never is.
    ``argument`` is what may follow its name after a colon, "" for nothing; the functions and the Engine take that as a
    second argument then.
    """

    name: str
    what: str
    module: str
    isas: Sequence[str]
    is_program: bool = False
    blind: tuple[str, ...] = ()
    rank: int = 5
    bulk: bool = True
    decodes: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    argument: str = ""
