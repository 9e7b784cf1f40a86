"""Outcomes to clusters: which executor differs from the one that we believe, in what, and on which form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vmtest.compare.decoding import decoding
from vmtest.compare.limits import Limit, limit
from vmtest.compare.pairs import Difference, difference
from vmtest.executors import Fleet
from vmtest.forms import forms
from vmtest.fuzz.finding import Key
from vmtest.fuzz.survey import Survey, needed
from vmtest.model.case import Case, Outcome

__all__ = ["Judge", "Verdict"]


class Verdict(NamedTuple):
    """Of one case. ``compared`` are the executors whose outcomes count; ``keys`` are the clusters it belongs to, and
    ``limits`` what is put down to an executor's known limits instead.
    """

    compared: Sequence[str]
    keys: Sequence[Key]
    limits: Sequence[Limit]


class Judge:
    """Compares the outcomes of a fleet."""

    def __init__(self, fleet: Fleet, survey: Survey) -> None:
        self._isa, self._names, self._survey = fleet.isa.name, fleet.names, survey
        self._forms = forms(self._isa)
        self._blind, self._labels = fleet.blind, fleet.labels

    def judge(self, case: Case, outcomes: Mapping[str, Outcome]) -> Verdict:
        """Each executor against the first of those that could run it, in the order in which they are believed."""
        told = [name for name in self._names if name in outcomes and outcomes[name].status != "unsupported"]
        able = [name for name in told if outcomes[name].status != "decoded"]
        found = self._differing(case, outcomes, able)
        wrong = self._wrong_decoders(case, outcomes) if len(able) < len(told) else {}
        if not found and not wrong:
            return Verdict(told, (), ())
        decoded = [one.form for one in self._forms.decode(case.code, case.start)]
        having = self._survey.able(needed(self._isa, decoded))
        if not set(able) <= set(having):  # what an executor does not claim to have says nothing of it
            able = [name for name in able if name in having]
            found = self._differing(case, outcomes, able)
            wrong = {name: who for name, who in wrong.items() if who in able}
        # Of several instructions it is the last one that shows it: what has led there may be anything.
        form = decoded[0] if len(decoded) == 1 else f"... ; {decoded[-1]}"
        keys, limits = list[Key](), list[Limit]()
        for name, what in found.items():
            known = limit(case, what, (name, able[0]), (outcomes[name], outcomes[able[0]]))
            if known:
                limits.append(known)
            else:
                keys.append(Key(self._isa, form, what.kind, self._labels[name], self._labels[able[0]]))
        for name, who in wrong.items():
            keys.append(Key(self._isa, form, "decoding", self._labels[name], self._labels[who]))
        return Verdict(told, keys, limits)

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
