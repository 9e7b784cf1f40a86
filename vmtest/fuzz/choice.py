"""Which of several ways to go on is taken: what more that is new has come of lately is taken more often."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Hashable, Mapping
from itertools import accumulate
from random import Random
from typing import Generic, TypeVar

__all__ = ["Choice"]

LATELY = 3.0
"""Seconds of a way after which what came of it counts half."""
LEAST = 0.3
"""What is taken off nobody: so much of what comes of all counts for each, whatever comes of it."""
AGAIN = 16
"""Times until it is looked anew at what has come."""

Way = TypeVar("Way", bound=Hashable)


class Choice(Generic[Way]):
    """Between ``ways``, each with a weight: how often it is taken where as much comes of each."""

    def __init__(self, ways: Mapping[Way, float]) -> None:
        self._ways = list(ways)
        self._weights = ways
        self._gained, self._seconds = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
        self._sums = list(accumulate(ways.values()))
        self._times = 0

    def one(self, random: Random) -> Way:
        """The one that is taken now."""
        return self._ways[bisect(self._sums, random.random() * self._sums[-1], hi=len(self._ways) - 1)]

    def came(self, way: Way, gained: float, seconds: float) -> None:
        """So much of it, in so long."""
        self._gained[way] += gained
        self._seconds[way] += seconds
        if self._seconds[way] > LATELY:
            self._gained[way] /= 2
            self._seconds[way] /= 2
        self._times += 1
        if self._times % AGAIN == 0:
            every = (sum(self._gained.values()) + 1) / (sum(self._seconds.values()) + 0.01)
            self._sums = list(accumulate(self._weight(way, every) for way in self._ways))

    def _weight(self, way: Way, every: float) -> float:
        """``every`` is what comes of all of them in a second: one that was hardly tried is taken for as good."""
        rate = (self._gained[way] + 0.1 * every) / (self._seconds[way] + 0.1)
        return self._weights[way] * (rate / every + LEAST)
