"""The fixture ``executors``: instructions in a test, on all that can run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmtest.errors import Divergence, HostError, UsageError

if TYPE_CHECKING:
    from vmtest.executors import Fleet
    from vmtest.fuzz.campaign import Report
    from vmtest.model.case import Case, Outcome

__all__ = ["Executors", "executors"]


class Executors:
    """What the ``executors`` fixture is. ``names`` are executors (vmtest insn list); by default all that can be had."""

    def __init__(self, record: Callable[[str, object], None], accept: bool, findings: Path, root: Path) -> None:
        self._record, self._accept, self._findings, self._root = record, accept, findings, root
        self._fleets: dict[tuple[str, tuple[str, ...]], Fleet] = {}

    def run(self, case: Case | str, names: Sequence[str] | str = ()) -> Mapping[str, Outcome]:
        """The outcomes of a case, which may be a line such as "x86_64 c4e2f8f3db rbx=1", by executor: its registers are
        ``isa("x86_64").values(outcome.state)["rax"]``.

        Raises UsageError for what is no case, HostError where an executor cannot be had.
        """
        from vmtest.model.case import Case

        said = Case.parse(case) if isinstance(case, str) else case
        return {name: outcome for name, (outcome,) in self._fleet(said.isa.name, names).run([said]).items()}

    def assert_same(self, case: Case | str, names: Sequence[str] | str = ()) -> None:
        """Raise Divergence, with the table side by side, where executors differ on a case in what counts: all that
        ``vmtest insn run`` shows, known limits of fuzzing included. Raises UsageError where fewer than two ran it.
        """
        from vmtest.model.case import Case
        from vmtest.report.insn import side_by_side

        said = Case.parse(case) if isinstance(case, str) else case
        several = self._fleet(said.isa.name, names)
        outcomes = {name: outcome for name, (outcome,) in several.run([said]).items()}
        table, differs = side_by_side(said, outcomes, several.blind)
        if differs:
            raise Divergence(table)
        able = [name for name, outcome in outcomes.items() if outcome.status != "unsupported"]
        if len(able) < 2 or all(outcomes[name].status == "decoded" for name in able):
            raise UsageError(
                f"nothing was compared: of {' and '.join(outcomes)} {' and '.join(able) or 'none'} can run {said}",
                hint="name two that can; vmtest insn list",
            )

    def fuzz(
        self,
        isa: str = "x86_64",
        names: Sequence[str] | str = (),
        *,
        cases: int | None = None,
        seconds: float | None = None,
        seed: int = 0,
        forms: str | None = None,
        length: int = 1,
        baseline: str | Path | None = None,
    ) -> Report:
        """Fuzz for a number of cases (10,000 where nothing is said) or seconds, and raise Divergence for clusters that
        the baseline, whose path is relative to pytest's root directory, does not hold; the file of each goes to the
        test's own directory. With ``pytest --vm-accept`` they are written to the baseline instead.

        Raises UsageError, HostError.
        """
        from vmtest.fuzz import baseline as accepted
        from vmtest.fuzz.campaign import Plan, run
        from vmtest.fuzz.finding import write
        from vmtest.fuzz.generate import SOURCES, select
        from vmtest.model.isa import isa as row_of
        from vmtest.report.fuzzing import heading, summary

        path = self._root / baseline if baseline is not None else None
        known = accepted.known(path, self._accept)
        row = row_of(isa)
        plan = Plan(
            isa=isa,
            executors=self._names(isa, names, 2),
            names=select(row, forms),
            seed=seed,
            cases=10_000 if cases is None and seconds is None else cases,
            seconds=seconds,
            length=length,
            sources=("forms",) if forms else tuple(SOURCES),
        )
        try:
            report = run(plan, known)
        except KeyboardInterrupt:
            # In a traceback of Python 3.11 the jump at the end of a loop has no line: pytest fails where it shows that.
            raise KeyboardInterrupt from None
        for name, value in (("cases", report.cases), ("clusters", len(report.findings)), ("new", len(report.new))):
            self._record(f"vm_fuzz_{name}", value)
        if self._accept and path is not None:
            accepted.save(path, report.findings.values())
        elif report.new:
            for finding in report.new:
                write(self._findings, finding)
            raise Divergence(f"{heading(report)}\n\n{summary(report, str(self._findings))}")
        return report

    def _names(self, isa: str, names: Sequence[str] | str, least: int = 1) -> list[str]:
        from vmtest.executors import available

        said = names.split(",") if isinstance(names, str) else list(names)
        found = list(dict.fromkeys(name.strip() for name in said if name.strip())) or available(isa, bulk=True)
        if len(found) < least:
            if names:
                raise UsageError(f"there is nothing to compare {found} with")
            raise HostError(f"fewer than two executors of {isa} can be had here: {found}", hint="vmtest insn list")
        return found

    def _fleet(self, isa: str, names: Sequence[str] | str) -> Fleet:
        from vmtest.executors import fleet
        from vmtest.model.isa import isa as row_of

        row = row_of(isa)
        key = (isa, tuple(self._names(isa, names)))
        if key not in self._fleets:
            self._fleets[key] = fleet(key[1], row)
        return self._fleets[key]

    def close(self) -> None:
        """End their workers."""
        for one in self._fleets.values():
            one.close()


@pytest.fixture
def executors(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Executors]:
    """Run instructions on several executors: ``executors.run("x86_64 ffc0")``, ``executors.assert_same(...)``,
    ``executors.fuzz(cases=10_000, baseline="known.jsonl")``; see vmtest insn list.
    """
    properties = request.node.user_properties
    accept, root = request.config.getoption("vm_accept"), request.config.rootpath
    found = Executors(lambda *pair: properties.append(pair), accept, tmp_path / "findings", root)
    try:
        yield found
    finally:
        found.close()
