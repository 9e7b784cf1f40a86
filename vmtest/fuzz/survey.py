"""What of an instruction set several executors can be compared on, found by asking them, before anything is fuzzed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from vmtest.executors import Fleet
from vmtest.forms import BAD, forms
from vmtest.model.case import Case

__all__ = ["Survey", "survey"]

TRIES = 3, 40
"""Times that a form is tried, and again if fewer than two could run one of them: some need what is drawn seldom. An
executor that cannot run any has not got it.
"""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """``names`` are the forms that two executors or more can run. ``features`` are, by executor, the extensions that
    it says it has. ``excluded`` is how many forms are not made, by the reason.
    """

    names: Sequence[str]
    features: Mapping[str, frozenset[str]]
    excluded: Mapping[str, int]

    def able(self, needed: frozenset[str]) -> list[str]:
        """The executors that say they have all of these extensions."""
        return [name for name, had in self.features.items() if needed <= had]


def survey(fleet: Fleet, names: Sequence[str]) -> Survey:
    """Ask the executors for their extensions, and try each form. Raises HostError."""
    known = forms(fleet.isa.name)
    if not names:
        return Survey(names=(), features={name: frozenset() for name in fleet.names}, excluded={})
    everything = frozenset(feature for name in names for feature in known.features(name))
    features = {
        name: everything if outcomes[0].status == "decoded" else known.said(outcomes)
        for name, outcomes in fleet.run(known.probes()).items()
    }
    found = Survey(names=names, features=features, excluded={})
    excluded: Counter[str] = Counter()
    having = []
    for name in names:
        needed = known.features(name)
        if len(found.able(needed)) > 1:
            having.append(name)
        else:
            lacking = {feature for feature in needed if sum(feature in had for had in features.values()) < 2}
            excluded[f"fewer than two of them have {', '.join(sorted(lacking or needed))}"] += 1
    usable = _tried(fleet, found, having, TRIES[0])
    usable |= _tried(fleet, found, [name for name in having if name not in usable], TRIES[1])
    if len(usable) < len(having):
        excluded["fewer than two of them can run it"] = len(having) - len(usable)
    names = [name for name in having if name in usable]
    return Survey(names=names, features=features, excluded=dict(excluded.most_common()))


def _tried(fleet: Fleet, found: Survey, names: Sequence[str], tries: int) -> set[str]:
    """Those of which two executors that should have it can run one of so many."""
    if not names:
        return set()
    known, random, cases = forms(fleet.isa.name), Random(0), list[Case]()
    for name in names:
        for _ in range(tries):
            draft = known.make(random, name)
            cases.append(Case(isa=fleet.isa, code=draft.code, state=fleet.isa.state(draft.registers)))
    outcomes = fleet.run(cases)
    usable = set()
    for at, name in enumerate(names):
        able = [
            who
            for who in found.able(known.features(name))
            if any(outcome.status != "unsupported" for outcome in outcomes[who][at * tries : at * tries + tries])
        ]
        if len(able) > 1:
            usable.add(name)
    return usable


def needed(isa_name: str, names: Sequence[str]) -> frozenset[str]:
    """The extensions that these forms need, of those that are forms."""
    known = forms(isa_name)
    return frozenset(feature for name in names if not name.startswith(BAD) for feature in known.features(name))
