"""What an executor is made of: an engine that runs one case after the other, in a process that may die of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from vmtest.model.case import Case, Outcome
from vmtest.model.isa import Isa

__all__ = ["Engine", "Row"]


class Engine(ABC):
    """Runs cases of one instruction set. It is made in a worker process, and may take that down with it."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa

    @abstractmethod
    def run(self, case: Case) -> Outcome:
        """Run it from its first byte until it comes to its end, fails, or is stopped."""

    def stop(self) -> None:
        """End what runs now, whose outcome is "timeout"; called by another thread. By default the worker is killed."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Row:
    """An executor's row in EXECUTORS. ``module`` has its class Engine, and ``lacks(isa)``, which says why it cannot be
    had here and what to do, "" where it can. ``environment`` is what its worker process is started with.
    """

    name: str
    what: str
    module: str
    isas: Sequence[str]
    environment: tuple[tuple[str, str], ...] = ()
