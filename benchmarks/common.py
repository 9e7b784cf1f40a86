"""What all benchmarks share: cases run in turn, medians, a table of ratios, a verdict for each target."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from tabulate import tabulate

__all__ = ["interleaved", "median", "ratio", "reached", "table", "verdict"]

median = statistics.median


def interleaved(cases: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Run each case once as a warm-up, then ``runs`` times in turn; the seconds that each reported.

    In turn, because the host is shared: what slows it down for a while slows all cases down alike. Every second
    round goes backwards, so that no case always follows the same other one.
    """
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(runs):
        for name in names if number % 2 == 0 else reversed(names):
            seconds[name].append(cases[name]())
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, base: str) -> float:
    """How many times the median of ``base`` the median of ``name`` is."""
    return median(seconds[name]) / median(seconds[base])


def table(seconds: Mapping[str, Sequence[float]], base: str) -> str:
    """One row a case: median and minimum in ms, and the median as a multiple of ``base``'s."""
    rows = [
        (name, median(times) * 1000, min(times) * 1000, ratio(seconds, name, base), len(times))
        for name, times in seconds.items()
    ]
    headers = ("case", "median ms", "min ms", f"x {base}", "runs")
    return tabulate(rows, headers=headers, floatfmt=("", ".1f", ".1f", ".2f", "d"))


def verdict(name: str, measured: float, most: float) -> str:
    """One line that says whether a target was met."""
    return f"{'met' if measured <= most else 'MISSED'}: {name}: {measured:.2f} (at most {most:g})"


def reached(name: str, measured: float, least: float) -> str:
    """One line that says whether a target was met that is a least one."""
    return f"{'met' if measured >= least else 'MISSED'}: {name}: {measured:,.2f} (at least {least:g})"
