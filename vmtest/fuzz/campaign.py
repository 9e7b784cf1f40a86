"""A run of fuzzing: chunk after chunk, on one process or several, until its time or its cases are over."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from multiprocessing.queues import Queue, SimpleQueue
from multiprocessing.synchronize import Event
from queue import Empty

from vmtest.errors import HostError, UsageError, VmtestError
from vmtest.executors import EXECUTORS, Fleet, fleet
from vmtest.fuzz import generate
from vmtest.fuzz.children import deaf_children
from vmtest.fuzz.finding import Finding, Key
from vmtest.fuzz.generate import CHUNK, SOURCES
from vmtest.fuzz.shard import Chunk, Shard
from vmtest.fuzz.survey import Survey, survey
from vmtest.model.case import Case
from vmtest.model.isa import isa

__all__ = ["Plan", "Report", "above_zero", "look_at", "run"]

LAST_WORDS = 2.0
"""Seconds in which a process that is stopped tells what it was at."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to fuzz. ``seconds`` and ``cases`` are limits, of which the first that is reached ends it. ``names`` are the
    forms that are made.
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

    def __post_init__(self) -> None:
        """Raises UsageError for what compares nothing."""
        above_zero(seconds=self.seconds, cases=self.cases, length=self.length, jobs=self.jobs)
        if len(set(self.executors)) < 2:
            raise UsageError(
                f"there is nothing to compare {' '.join(self.executors)} with", hint="two executors; vmtest insn list"
            )
        rows = [EXECUTORS.get(name.partition(":")[0]) for name in self.executors]
        if all(row and row.decodes for row in rows):
            raise UsageError(f"{' and '.join(self.executors)} only decode", hint="add one that runs the code")


def above_zero(**numbers: float | None) -> None:
    """Raise UsageError for one that is not."""
    for name, number in numbers.items():
        if number is not None and not 0 < number < float("inf"):
            raise UsageError(f"{name} {number:g}: it must be a number above 0")


@dataclass(kw_only=True)
class Report:
    """What has come of it so far. ``executors`` is what each of them is. ``findings`` are by cluster,
    ``new`` the ones that ``known`` does not hold. ``unclaimed`` counts the cases of which a difference does not count,
    since an executor does not say that it has what they need. ``interrupted`` is a run that was ended by Ctrl-C.
    """

    plan: Plan
    survey: Survey
    executors: Mapping[str, str]
    known: frozenset[Key] = frozenset()
    seconds: float = 0.0
    compared: int = 0
    alone: int = 0
    differing: int = 0
    unclaimed: int = 0
    interrupted: bool = False
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
        """Add what came of a chunk, and return what it has found for the first time. Chunks come by their numbers."""
        self.compared += chunk.compared
        self.alone += chunk.alone
        self.differing += chunk.differing
        self.unclaimed += chunk.unclaimed
        self.limits.update(chunk.limits)
        self.statuses.update(chunk.statuses)
        self.deaths.update(chunk.deaths)
        self.flaky += chunk.flaky
        self.forms |= chunk.forms
        first = [finding.key for finding in chunk.findings if finding.key not in self.findings]
        for finding in chunk.findings:
            self.findings.setdefault(finding.key, finding)
        for key, times in chunk.clusters.items():
            self.findings[key] = self.findings[key].seen_again(times)
        return [self.findings[key] for key in first]


def prepare(plan: Plan, known: frozenset[Key] = frozenset()) -> Report:
    """Find what the executors can be compared on. Raises UsageError and HostError."""
    with fleet(plan.executors, isa(plan.isa)) as several:
        found, executors = survey(several, plan.names), dict(several.descriptions)
    plan = replace(plan, names=found.names)
    _generator(plan)  # raises where nothing is left to be made
    return Report(plan=plan, survey=found, executors=executors, known=known)


def run(
    plan: Plan,
    known: frozenset[Key] = frozenset(),
    told: Callable[[Report, list[Finding]], None] | None = None,
    begun: Callable[[Report], None] | None = None,
) -> Report:
    """Fuzz. ``begun`` is called when it is known what can be, ``told`` after each chunk with what is new. ``known`` are
    clusters that are accepted.

    Ctrl-C is the caller's: what was begun with has all until then. Raises UsageError and HostError.
    """
    report = prepare(plan, known)
    if begun:
        begun(report)
    began = time.monotonic()

    def is_over(number: int) -> bool:
        enough = plan.cases is not None and number * CHUNK >= plan.cases
        return enough or (plan.seconds is not None and time.monotonic() - began >= plan.seconds)

    with closing(_chunks(report, is_over)) as chunks:
        for chunk in chunks:
            report.seconds = time.monotonic() - began
            first = report.add(chunk)
            if told:
                told(report, first)
    return report


def look_at(plan: Plan, cases: Sequence[Case], known: frozenset[Key] = frozenset()) -> Report:
    """Run and judge cases that are given, as those of a plan."""
    report = prepare(plan, known)
    with fleet(plan.executors, isa(plan.isa)) as several:
        report.add(_shard(report, several).look(cases))
    return report


def _generator(plan: Plan) -> generate.Generator:
    return generate.Generator(
        isa(plan.isa),
        plan.names,
        seed=plan.seed,
        length=plan.length,
        sources=plan.sources,
        corpus=plan.corpus,
    )


def _shard(report: Report, several: Fleet) -> Shard:
    return Shard(several, report.survey, _generator(report.plan), several.descriptions)


def _chunks(report: Report, is_over: Callable[[int], bool]) -> Generator[Chunk]:
    if report.plan.jobs > 1:
        yield from _chunks_of_several(report, is_over)
        return
    number = 0
    with fleet(report.plan.executors, isa(report.plan.isa)) as several:
        shard = _shard(report, several)
        while not is_over(number):
            try:
                chunk = shard.run(number, size=_size(report.plan, number))
            except KeyboardInterrupt:
                if shard.under_way:
                    yield shard.under_way
                raise
            yield chunk
            number += 1


def _size(plan: Plan, number: int) -> int:
    """How many cases chunk ``number`` has: the last one what is left."""
    return CHUNK if plan.cases is None else min(CHUNK, plan.cases - number * CHUNK)


def _chunks_of_several(report: Report, is_over: Callable[[int], bool]) -> Generator[Chunk]:
    """Chunks by several processes, in order: one is held back until all before it are in, whose findings it may only
    count. Which of the processes runs one makes no difference to what comes of it.
    """
    begun, told, jobs = 0, 0, report.plan.jobs
    running, waiting = set[Future[Chunk]](), dict[int, Chunk]()
    context = multiprocessing.get_context("spawn")
    stop, places, left = context.Event(), context.SimpleQueue(), context.Queue()
    cpus = sorted(os.sched_getaffinity(0))
    for job in range(jobs):
        places.put(cpus[job % len(cpus)])
    given = report, os.getpid(), stop, places, left
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=given)
    try:
        while True:
            while len(running) <= jobs and not is_over(begun):
                with deaf_children():
                    size = _size(report.plan, begun)
                    running.add(pool.submit(_run, begun, frozenset(report.findings), size))
                begun += 1
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            waiting |= {chunk.number: chunk for chunk in (future.result() for future in done)}
            while told in waiting:
                yield waiting.pop(told)
                told += 1
    except KeyboardInterrupt:
        stop.set()
        chunks = list(_under_way(left, min(begun, jobs)))
        pool.shutdown(cancel_futures=True)
        chunks += [future.result() for future in running if not future.cancelled() and future.exception() is None]
        waiting |= {chunk.number: chunk for chunk in chunks if chunk.number >= told}
        for _, chunk in sorted(waiting.items()):
            found = {finding.key for finding in chunk.findings}
            if chunk.clusters.keys() <= report.findings.keys() | found:  # else it counts what was lost with another one
                yield chunk
        raise
    except BrokenProcessPool as error:
        raise HostError(f"a process of the run has ended: {error}") from None
    except BaseException:
        stop.set()  # not after the chunks that they are at, which may take long
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _under_way(left: Queue[Chunk | None], jobs: int) -> Iterator[Chunk]:
    """What the processes were at when they were stopped, as far as they tell."""
    with suppress(Empty):
        for _ in range(jobs):
            if chunk := left.get(timeout=LAST_WORDS):
                yield chunk


_mine: Shard | VmtestError | None = None


def _begin(report: Report, parent: int, stop: Event, places: SimpleQueue[int], left: Queue[Chunk | None]) -> None:
    """In a process of its own: executors that live as long as it does. All of these have one CPU: they take turns, and
    to wake one on another CPU takes longer than many a case.
    """
    global _mine
    os.sched_setaffinity(0, {places.get()})
    threading.Thread(target=_watch, args=(parent, stop, left), daemon=True).start()
    try:
        _mine = _shard(report, fleet(report.plan.executors, isa(report.plan.isa)))
    except VmtestError as error:
        _mine = error  # an initializer's would be lost


def _watch(parent: int, stop: Event, left: Queue[Chunk | None]) -> None:
    """End when we are told to, with what is under way, or who started us has been killed; our executors' workers end
    with us.
    """
    while os.getppid() == parent and not stop.wait(0.2):
        pass
    try:
        if stop.is_set():
            left.put(deepcopy(_mine.under_way) if isinstance(_mine, Shard) else None)
            left.close()
            left.join_thread()
    finally:
        os._exit(1)


def _run(number: int, known: frozenset[Key], size: int) -> Chunk:
    assert _mine is not None
    if isinstance(_mine, VmtestError):
        raise _mine
    return _mine.run(number, known, size)
