"""A run of fuzzing: chunk after chunk, on one process or several, until its time or its cases are over."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace

from vmtest.errors import HostError
from vmtest.executors import Fleet, fleet
from vmtest.fuzz.finding import Finding, Key
from vmtest.fuzz.generate import CHUNK, SOURCES, Generator
from vmtest.fuzz.shard import Chunk, Shard
from vmtest.fuzz.survey import Survey, survey
from vmtest.model.case import Case
from vmtest.model.isa import isa

__all__ = ["Plan", "Report", "look_at", "run"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to fuzz. ``seconds`` and ``cases`` are limits, of which the first that is reached ends it; the number of
    cases is rounded up to whole chunks. ``names`` are the forms that are made.
    """

    isa: str
    executors: Sequence[str]
    names: Sequence[str]
    seed: int
    seconds: float | None = None
    cases: int | None = None
    length: int = 1
    sources: Sequence[str] = tuple(SOURCES)
    corpus: Sequence[Case] = ()
    jobs: int = 1


@dataclass(kw_only=True)
class Report:
    """What has come of it so far. ``executors`` is what each of them is. ``findings`` are by cluster,
    ``new`` the ones that ``known`` does not hold.
    """

    plan: Plan
    survey: Survey
    executors: Mapping[str, str]
    known: frozenset[Key] = frozenset()
    seconds: float = 0.0
    compared: int = 0
    alone: int = 0
    differing: int = 0
    findings: dict[Key, Finding] = field(default_factory=dict)
    limits: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    flaky: list[str] = field(default_factory=list)
    forms: set[str] = field(default_factory=set)

    @property
    def cases(self) -> int:
        """How many have been run."""
        return self.compared + self.alone

    @property
    def new(self) -> list[Finding]:
        """The findings whose clusters are not known."""
        return [finding for key, finding in self.findings.items() if key not in self.known]

    @property
    def covered(self) -> int:
        """How many of the forms that are made have been compared."""
        return len(self.forms & set(self.plan.names))

    def add(self, chunk: Chunk) -> list[Finding]:
        """Add what came of a chunk, and return what it has found for the first time."""
        self.compared += chunk.compared
        self.alone += chunk.alone
        self.differing += chunk.differing
        self.limits.update(chunk.limits)
        self.statuses.update(chunk.statuses)
        self.deaths.update(chunk.deaths)
        self.flaky += chunk.flaky
        self.forms |= chunk.forms
        first = [finding.key for finding in chunk.findings if finding.key not in self.findings]
        for finding in chunk.findings:
            other = self.findings.get(finding.key)
            if other is None or finding.chunk < other.chunk:  # so that it does not matter who was faster
                self.findings[finding.key] = replace(finding, seen=other.seen if other else 0)
        for key, times in chunk.clusters.items():
            self.findings[key] = self.findings[key].seen_again(times)
        return [self.findings[key] for key in first]


def prepare(plan: Plan, known: frozenset[Key] = frozenset()) -> Report:
    """Find what the executors can be compared on. Raises UsageError and HostError."""
    with fleet(plan.executors, isa(plan.isa)) as several:
        found, executors = survey(several, plan.names), dict(several.descriptions)
    return Report(plan=replace(plan, names=found.names), survey=found, executors=executors, known=known)


def run(
    plan: Plan,
    known: frozenset[Key] = frozenset(),
    told: Callable[[Report, list[Finding]], None] | None = None,
    begun: Callable[[Report], None] | None = None,
) -> Report:
    """Fuzz. ``begun`` is called when it is known what can be, ``told`` after each chunk with what is new. ``known`` are
    clusters that are accepted.

    Ctrl-C ends it as its time does. Raises UsageError and HostError.
    """
    report = prepare(plan, known)
    if begun:
        begun(report)
    began = time.monotonic()

    def is_over(number: int) -> bool:
        enough = plan.cases is not None and number * CHUNK >= plan.cases
        return enough or (plan.seconds is not None and time.monotonic() - began >= plan.seconds)

    try:
        for chunk in _chunks(report, is_over):
            report.seconds = time.monotonic() - began
            first = report.add(chunk)
            if told:
                told(report, first)
    except KeyboardInterrupt:
        report.seconds = time.monotonic() - began
    return report


def look_at(plan: Plan, cases: Sequence[Case], known: frozenset[Key] = frozenset()) -> Report:
    """Run and judge cases that are given, as those of a plan."""
    report = prepare(plan, known)
    with fleet(plan.executors, isa(plan.isa)) as several:
        report.add(_shard(report, several).look(cases))
    return report


def _shard(report: Report, several: Fleet) -> Shard:
    plan = report.plan
    generator = Generator(
        isa(plan.isa),
        plan.names,
        seed=plan.seed,
        length=plan.length,
        sources=plan.sources,
        corpus=plan.corpus,
    )
    return Shard(several, report.survey, generator, several.descriptions)


def _chunks(report: Report, is_over: Callable[[int], bool]) -> Iterator[Chunk]:
    if report.plan.jobs > 1:
        yield from _chunks_of_several(report, is_over)
        return
    number = 0
    with fleet(report.plan.executors, isa(report.plan.isa)) as several:
        shard = _shard(report, several)
        while not is_over(number):
            yield shard.run(number)
            number += 1


def _chunks_of_several(report: Report, is_over: Callable[[int], bool]) -> Iterator[Chunk]:
    """Chunks by several processes: which of them runs one makes no difference to what comes of it."""
    number, running = 0, set[Future[Chunk]]()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(report.plan.jobs, context, initializer=_begin, initargs=(report, os.getpid()))
    try:
        while True:
            while len(running) < 2 * report.plan.jobs and not is_over(number):
                running.add(pool.submit(_run, number, frozenset(report.findings)))
                number += 1
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise HostError(f"a process of the run has ended: {error}") from None
    finally:
        pool.shutdown(cancel_futures=True)


_mine: Shard | None = None


def _begin(report: Report, parent: int) -> None:
    """In a process of its own: executors that live as long as it does."""
    global _mine
    several = fleet(report.plan.executors, isa(report.plan.isa))
    _mine = _shard(report, several)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """End when who started us has been killed; our executors' workers end with us."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _run(number: int, known: frozenset[Key]) -> Chunk:
    assert _mine is not None
    return _mine.run(number, known)
