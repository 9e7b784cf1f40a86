"""What an executor is made of: an engine that runs one case after the other, in a process that may die of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from vmtest.model.case import Case, Outcome
from vmtest.model.isa import Isa

__all__ = ["Engine", "Row", "uses_vectors"]

_VECTORS = bytes((0x0F, 0x62, 0x9B, 0xC4, 0xC5, *range(0xD8, 0xE0)))
"""Of these bytes one is in each x86 instruction that has to do with SSE, AVX or x87: escapes and prefixes of theirs."""


def uses_vectors(case: Case) -> bool:
    """Whether an x86 case may touch vector or x87 registers, whose setting and reading takes as long as all the rest.

    It may jump to what it has in its data window.
    """
    return any(len(code.translate(None, _VECTORS)) != len(code) for code in (case.code, *(d for _, d in case.memory)))


class Engine(ABC):
    """Runs cases of one instruction set. It is made in a worker process, and may take that down with it."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa

    @abstractmethod
    def run(self, case: Case) -> Outcome:
        """Run it from its first byte until it comes to its end, fails, or is stopped."""

    @abstractmethod
    def stop(self) -> None:
        """End what runs now, whose outcome is "timeout"; called by another thread, perhaps too late."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An executor's row in EXECUTORS. ``module`` has its class Engine; ``lacks(isa)``, which says why it cannot be had
    here and what to do, "" where it can; and ``describe(isa)``, which says what it is here. ``environment`` is what its
    worker process is started with. ``blind`` are the groups of registers (Register.group) that it neither sets nor
    tells. ``rank`` is whom to believe where two differ: the lower one.
    """

    name: str
    what: str
    module: str
    isas: Sequence[str]
    blind: tuple[str, ...] = ()
    rank: int = 5
    environment: tuple[tuple[str, str], ...] = ()
