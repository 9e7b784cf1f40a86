"""Chunks of cases from their making to findings: what one process does, with executors of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vmtest.compare.outcomes import aspects, verdict
from vmtest.executors import Fleet
from vmtest.forms import forms
from vmtest.fuzz.finding import Finding, Key
from vmtest.fuzz.generate import CHUNK, Generator
from vmtest.fuzz.judge import Judge, Verdict
from vmtest.fuzz.minimise import minimise
from vmtest.fuzz.survey import Survey
from vmtest.model.case import Case, Outcome

__all__ = ["Chunk", "Shard"]

ENDLESS = 8
"""Simpler cases that may turn out to be endless loops, each of which takes as long as a thousand others."""


@dataclass(kw_only=True)
class Chunk:
    """What came of a chunk. All its cases are in ``compared`` or ``alone``: run by two executors or more, or by fewer.

    ``clusters`` counts the cases of each cluster, ``limits`` those put down to known limits; ``flaky`` are cases whose
    difference was gone the second time, ``unclaimed`` those with one that an executor is not held to. ``statuses``
    counts outcomes by executor and status.
    """

    number: int
    compared: int = 0
    alone: int = 0
    differing: int = 0
    unclaimed: int = 0
    clusters: Counter[Key] = field(default_factory=Counter)
    limits: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    flaky: list[str] = field(default_factory=list)
    forms: set[str] = field(default_factory=set)
    deaths: Mapping[str, int] = field(default_factory=dict)


class Shard:
    """Runs chunks. Clusters that are known already are counted, and not looked at again."""

    def __init__(self, fleet: Fleet, survey: Survey, generator: Generator, descriptions: Mapping[str, str]) -> None:
        self._fleet, self._generator, self._descriptions = fleet, generator, descriptions
        self._judge = Judge(fleet, survey)
        self._forms = forms(fleet.isa.name)
        self._known: set[Key] = set()
        self.under_way: Chunk | None = None
        self._blind, self._labels = fleet.blind, fleet.labels

    def run(self, number: int, known: Collection[Key] = (), size: int = CHUNK) -> Chunk:
        """Make, run and judge chunk ``number``, which is ``under_way`` meanwhile. Raises HostError where an executor
        cannot go on.
        """
        self._known |= set(known)
        return self.look(self._generator.chunk(number, size), number)

    def look(self, cases: Sequence[Case], number: int = 0) -> Chunk:
        """The same for cases that are given."""
        deaths = dict(self._fleet.deaths)
        chunk = self.under_way = Chunk(number=number)
        try:
            self._look(cases, chunk)
        finally:
            chunk.deaths = {name: died - deaths[name] for name, died in self._fleet.deaths.items()}
        return chunk

    def _look(self, cases: Sequence[Case], chunk: Chunk) -> None:
        outcomes = self._fleet.run(cases)
        for name, several in outcomes.items():
            chunk.statuses.update((name, outcome.status) for outcome in several)
        found = list[tuple[Case, Key]]()
        for at, case in enumerate(cases):
            judged = self._judge.judge(case, {name: several[at] for name, several in outcomes.items()})
            found += [(case, key) for key in judged.keys]
            if len(judged.compared) < 2:
                chunk.alone += 1
                continue
            chunk.compared += 1
            chunk.forms.update(one.form for one in self._forms.decode(case.code, case.start))
            chunk.differing += bool(judged.keys or judged.limits)
            chunk.unclaimed += bool(judged.unclaimed)
            chunk.limits.update(f"{row.executor}: {row.what}" if row.executor else row.what for row in judged.limits)
        for case, key in found:
            self._count(*self._shortest(case, key), chunk)

    def _count(self, case: Case, key: Key, chunk: Chunk) -> None:
        """Count the case as one of the cluster, of which it may be the first."""
        if key not in self._known:
            finding = self._finding(case, key, chunk.number) if key in self._keys([case], key)[0] else None
            if finding is None:
                chunk.flaky.append(str(case))
                return
            less, other = self._shortest(finding.case, key)
            if other != key:  # some of its instructions were there for a state that the smallest case begins with
                self._count(less, other, chunk)
                return
            self._known.add(key)
            chunk.findings.append(finding)
        chunk.clusters[key] += 1

    def _anew(self, case: Case, key: Key) -> tuple[Mapping[str, Outcome], Verdict]:
        """What a case comes to, and what that is judged to be, where the two have run nothing before: what one
        remembers of earlier cases is no difference that could be shown again.
        """
        self._fleet.renew(self._names(key))
        outcomes = {name: several[0] for name, several in self._fleet.run([case]).items()}
        return outcomes, self._judge.judge(case, outcomes)

    def _shortest(self, case: Case, key: Key) -> tuple[Case, Key]:
        """The shortest run of its instructions that still has these two differ, in the same if possible, and the
        cluster of that. It depends on the case alone, and not on what is known: so it is not remembered.
        """
        sizes = [one.size for one in self._forms.decode(case.code, case.start)]
        for length in range(1, len(sizes)):
            places = [(sum(sizes[:at]), sum(sizes[: at + length])) for at in range(len(sizes) - length + 1)]
            runs = [replace(case, code=case.code[start:end]) for start, end in places]
            differing = [
                (run, other)
                for run, keys in zip(runs, self._keys(runs, key), strict=True)
                for other in keys
                if other[3:] == key[3:]
            ]
            if differing:
                return min(differing, key=lambda found: found[1].kind != key.kind)
        return case, key

    def _keys(self, cases: Sequence[Case], key: Key) -> list[Sequence[Key]]:
        """The clusters of each case, as far as the two executors of ``key`` tell."""
        return list(self._judged(cases, self._fleet.run(cases, self._names(key)))) if cases else []

    def _names(self, key: Key) -> list[str]:
        """The executors of a cluster."""
        return [name for name, label in self._labels.items() if label in (key.who, key.against)]

    def _judged(self, cases: Sequence[Case], outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[Sequence[Key]]:
        for at, case in enumerate(cases):
            yield self._judge.judge(case, {name: several[at] for name, several in outcomes.items()}).keys

    def _finding(self, case: Case, key: Key, number: int) -> Finding | None:
        """The finding of a cluster by one of its cases; None where executors that have run nothing before do not
        differ. These take a while to begin: the smallest case is tried on them first.
        """
        endless = 0

        def same(cases: Sequence[Case]) -> Iterable[bool]:
            nonlocal endless
            if endless > ENDLESS:
                return [False] * len(cases)
            outcomes = self._fleet.run(cases, self._names(key))
            endless += sum(outcome.status == "timeout" for several in outcomes.values() for outcome in several)
            return (key in keys for keys in self._judged(cases, outcomes))

        small = minimise(case, same)
        outcomes, judged = self._anew(small, key)
        if key not in judged.keys:  # it differed only behind those that were tried before
            small, (outcomes, judged) = case, self._anew(case, key)
        if key not in judged.keys:
            return None
        pair = self._names(key)
        labels = {name: self._labels[name] for name in outcomes if name in pair or name in judged.voting}
        counting = {label: outcomes[name] for name, label in labels.items()}
        blind = {label: self._blind[name] for name, label in labels.items()}
        return Finding(
            key=key,
            case=small,
            first=case,
            text="; ".join(self._forms.text(small.code, small.start)),
            verdict=verdict(aspects(small, counting, blind)),
            rule=self._forms.rule(key.form.rpartition(" ; ")[2], key.kind),
            said={name: outcome.as_dict(small.isa) for name, outcome in outcomes.items()},
            executors=self._descriptions,
            seen=0,
            chunk=number,
            seed=self._generator.seed,
        )
