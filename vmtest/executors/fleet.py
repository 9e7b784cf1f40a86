"""Several executors that run the same cases, at the same time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from vmtest.closing import Closing
from vmtest.executors.worker import Executor
from vmtest.model.case import Case, Outcome

__all__ = ["Fleet"]


class Fleet(Closing):
    """Use it as a context manager. ``names`` are in the order in which they are believed: by their rows, then the newer
    version, then as they were given.
    """

    def __init__(self, executors: Sequence[Executor]) -> None:
        self.isa = executors[0].isa
        self._executors = {one.name: one for one in executors}
        self.names = sorted(self._executors, key=lambda name: (self._executors[name].rank, self._executors[name].age))
        self._threads = ThreadPoolExecutor(len(executors), thread_name_prefix="executor")

    @property
    def blind(self) -> Mapping[str, Collection[str]]:
        """By executor, the groups of registers that it does not tell."""
        return {name: one.blind for name, one in self._executors.items()}

    @property
    def descriptions(self) -> Mapping[str, str]:
        """By executor, what it is."""
        return {name: one.description for name, one in self._executors.items()}

    @property
    def labels(self) -> Mapping[str, str]:
        """By executor, what it is called where it matters not how it was reached: qemu:PATH by its version."""
        said = {name: one.label for name, one in self._executors.items()}
        return {name: label if list(said.values()).count(label) == 1 else name for name, label in said.items()}

    @property
    def deaths(self) -> Mapping[str, int]:
        """By executor, how many of its workers a case has killed."""
        return {name: one.deaths for name, one in self._executors.items()}

    def run(self, cases: Sequence[Case], names: Collection[str] | None = None) -> dict[str, list[Outcome]]:
        """By executor, in the order of ``names``, the outcomes of the cases. ``names`` are those that are wanted.

        Cases of which only some executors came to no end are run by these once more: the host may have stood still, as
        it does where locked accesses over the edge of a cache line are slowed down on purpose.
        """
        outcomes = self._run(cases, [name for name in self.names if names is None or name in names])
        for at, case in enumerate(cases):
            said = {name: several[at].status for name, several in outcomes.items()}
            slow = [name for name, status in said.items() if status == "timeout"]
            if slow and {*said.values()} - {"timeout", "decoded", "unsupported"}:
                for name, (again,) in self._run([case], slow).items():
                    outcomes[name][at] = again
        return outcomes

    def _run(self, cases: Sequence[Case], wanted: Sequence[str]) -> dict[str, list[Outcome]]:
        running = {name: self._threads.submit(self._executors[name].run, cases) for name in wanted}
        try:
            return {name: future.result() for name, future in running.items()}
        finally:
            wait(running.values())  # so that none still runs them when something has gone wrong with another one

    def renew(self, names: Collection[str] | None = None) -> None:
        """Have the next cases run by workers that nothing has been run by. ``names`` are those that are to be new."""
        for name in self.names if names is None else names:
            self._executors[name].renew()

    def close(self) -> None:
        """End them all; a second time does nothing."""
        self._threads.shutdown()
        for one in self._executors.values():
            one.close()
