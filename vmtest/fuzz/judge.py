"""Outcomes to clusters: which executor differs from the one that we believe, in what, and on which form."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from vmtest.compare.decoding import decoding
from vmtest.compare.limits import Limit, limit
from vmtest.compare.pairs import KINDS, Difference, beyond, difference
from vmtest.executors import Fleet
from vmtest.forms import Instruction, forms
from vmtest.fuzz.finding import Key
from vmtest.fuzz.survey import Survey, needed
from vmtest.model.case import Case, Outcome

__all__ = ["Judge", "Verdict"]


class Verdict(NamedTuple):
    """Of one case. ``compared`` are the executors that said something of it; ``keys`` are the clusters it belongs to,
    and ``limits`` what is put down to an executor's known limits instead. ``unclaimed`` are those that differ, and do
    not say that they have what the case needs: they do not count. Where there are keys, ``voting`` are those that say
    so, whether they differ or not.
    """

    compared: Sequence[str]
    keys: Sequence[Key]
    limits: Sequence[Limit]
    unclaimed: Collection[str] = ()
    voting: Collection[str] = ()


_OF_THE_LAST = frozenset(KINDS[: KINDS.index("memory")])
"""Kinds of difference that the last instruction makes: it may be one that only one of the two has."""


class Judge:
    """Compares the outcomes of a fleet."""

    def __init__(self, fleet: Fleet, survey: Survey) -> None:
        self._isa, self._names, self._survey = fleet.isa.name, fleet.names, survey
        self._forms = forms(self._isa)
        self._blind, self._labels = fleet.blind, fleet.labels

    def judge(self, case: Case, outcomes: Mapping[str, Outcome]) -> Verdict:
        """Each executor against the first of those that could run it, in the order in which they are believed; one
        that has died of it comes last.
        """
        told = [name for name in self._names if name in outcomes and outcomes[name].status != "unsupported"]
        able = [name for name in told if outcomes[name].status != "decoded"]
        wrong = self._wrong_decoders(case, outcomes) if len(able) < len(told) else {}
        able.sort(key=lambda name: outcomes[name].status == "died")
        if able and outcomes[able[0]].status == "died":
            return Verdict(told, [self._death(case, name) for name in able], (), voting=told)
        if not self._differing(case, outcomes, able) and not wrong:
            return Verdict(told, (), ())
        decoded = self._forms.decode(case.code, case.start)
        claiming = self._claiming(case, outcomes, able, decoded)
        found = self._differing(case, outcomes, claiming)
        keys, limits = list[Key](), list[Limit]()
        for name, what in found.items():
            pair = outcomes[name], outcomes[claiming[0]]
            left, known = self._beyond_limits(case, what, (name, claiming[0]), pair)
            limits += known
            if left:
                form = _called(_begun(case, decoded, pair))
                keys.append(Key(self._isa, form, left.kind, self._labels[name], self._labels[claiming[0]]))
        for name, who in wrong.items():
            if who in self._survey.able(needed(self._isa, _begun(case, decoded, [outcomes[who]]))):
                form = _called([one.form for one in decoded])
                keys.append(Key(self._isa, form, "decoding", self._labels[name], self._labels[who]))
        voting = self._voting(case, outcomes, told, decoded) if keys else ()
        return Verdict(told, keys, limits, {*able} - {*claiming}, voting)

    def _voting(
        self, case: Case, outcomes: Mapping[str, Outcome], told: Sequence[str], decoded: Sequence[Instruction]
    ) -> Collection[str]:
        """Those that say that they have what has run of the case, wherever it has ended."""
        ran = [outcomes[name] for name in told if outcomes[name].status != "decoded"]
        furthest = max((_begun(case, decoded, [outcome]) for outcome in ran), key=len)
        return [name for name in told if name in self._survey.able(needed(self._isa, furthest))]

    @staticmethod
    def _beyond_limits(
        case: Case, what: Difference, names: tuple[str, str], outcomes: tuple[Outcome, Outcome]
    ) -> tuple[Difference | None, Sequence[Limit]]:
        """What differs beyond known limits, and these."""
        left: Difference | None = what
        limits = list[Limit]()
        while left and (known := limit(case, left, names, outcomes)):
            limits += [known] if known not in limits else []  # a row may be for several kinds
            left = beyond(case, left) if known.is_partial else None
        return left, limits

    def _death(self, case: Case, name: str) -> Key:
        """Of an executor that dies of what no other comes to an end with: it is to live whatever it is given."""
        form = _called([one.form for one in self._forms.decode(case.code, case.start)])
        other = next(other for other in self._names if other != name)
        return Key(self._isa, form, "died", self._labels[name], self._labels[other])

    def _claiming(
        self, case: Case, outcomes: Mapping[str, Outcome], able: Sequence[str], decoded: Sequence[Instruction]
    ) -> Sequence[str]:
        """Those of ``able`` without who differs over what it, or who it is held against, does not claim to have."""
        while True:
            lacking = set[str]()
            for name, what in self._differing(case, outcomes, able).items():
                ran = _begun(case, decoded, [outcomes[name], outcomes[able[0]]])
                if what.kind not in _OF_THE_LAST and _is_refused(case, outcomes[name]):
                    ran = ran[:-1]  # by both: it is what was before that has made the difference
                lacking |= {name, able[0]} - {*self._survey.able(needed(self._isa, ran))}
            if not lacking:
                return able
            able = [name for name in able if name not in lacking]

    def _wrong_decoders(self, case: Case, outcomes: Mapping[str, Outcome]) -> Mapping[str, str]:
        """By decoder that contradicts what happened, the executor that has shown it."""
        said = decoding(case, outcomes)
        ran = next((who for who in self._names if said.get(who) and outcomes[who].status != "decoded"), None)
        if ran is None:
            return {}
        decoders = [who for who in self._names if who in outcomes and outcomes[who].status == "decoded"]
        return {who: ran for who in decoders if said[who] is not None and said[who] != said[ran]}

    def _differing(self, case: Case, outcomes: Mapping[str, Outcome], able: Sequence[str]) -> Mapping[str, Difference]:
        found: dict[str, Difference] = {}
        for name in able[1:]:
            blind = {*self._blind[able[0]], *self._blind[name]}
            what = difference(case, outcomes[able[0]], outcomes[name], blind)
            if what:
                found[name] = what
        return found


def _is_refused(case: Case, outcome: Outcome) -> bool:
    return outcome.status == "exception" and outcome.vector == case.isa.illegal


def _begun(case: Case, decoded: Sequence[Instruction], outcomes: Sequence[Outcome]) -> list[str]:
    """The forms of its instructions up to the first place where it ended, and of all where that is elsewhere."""
    places = [outcome.end for outcome in outcomes if outcome.end is not None and case.start <= outcome.end < case.end]
    at, end, found = case.start, min(places, default=case.end), list[str]()
    for one in decoded:
        if at > end:
            break
        found.append(one.form)
        at += one.size
    return found


def _called(ran: Sequence[str]) -> str:
    """Of several instructions it is the last one that shows it: what has led there may be anything."""
    return ran[0] if len(ran) == 1 else f"... ; {ran[-1]}"
