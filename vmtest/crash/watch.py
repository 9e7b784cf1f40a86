"""Watches a console for crash reports while it prints, and says when a fatal one is complete."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vmtest.crash.scanner import CrashScanner
from vmtest.deadline import Deadline
from vmtest.model.observation import CrashReport, Severity

__all__ = ["CrashWatch"]

SETTLE = 0.3
"""Seconds of silence after which a crash report on the console is taken for complete."""
LONGEST_REPORT = 3.0
REPORTS = 1000
"""Crash reports kept of one guest."""


class CrashWatch:
    """``reports`` are those seen so far. ``on_fatal`` is called, in a thread of its own, with a fatal report once its
    rest has come, and with what ``moment`` returned when it began.
    """

    def __init__(
        self,
        *,
        stamped: bool | None,
        scale: float,
        moment: Callable[[], int],
        on_fatal: Callable[[CrashReport, int], None],
    ) -> None:
        """``stamped`` is as for CrashScanner; ``scale`` multiplies what a slow guest's report may take."""
        self.reports: list[CrashReport] = []
        self._scale = scale
        self._moment = moment
        self._on_fatal = on_fatal
        self._scanner = CrashScanner(timestamps=stamped)
        self._scanning = threading.Lock()
        self._printed = threading.Event()
        self._judging = False
        self._judged = 0

    def feed(self, data: bytes) -> None:
        """Take what the console printed."""
        self._printed.set()
        with self._scanning:
            fresh = self._keep(self._scanner.feed(data))
            crashed = self._scanner.pending or any(report.severity >= Severity.FATAL for report in fresh)
            if crashed and not self._judging:
                self._judging = True
                threading.Thread(target=self._judge, name="vmtest-crash", daemon=True).start()

    def survived(self, transcript: bytes) -> None:
        """Take what was printed by a guest that lives: nothing in it is fatal."""
        with self._scanning:
            self._keep(self._scanner.feed(transcript))
            self._keep(self._scanner.flush())
            self._judged = len(self.reports)

    def end(self) -> list[CrashReport]:
        """The guest's life has ended, so that what it printed is complete: the fatal reports that are news."""
        with self._scanning:
            self._keep(self._scanner.flush())
            return self._fatal()

    def forget(self) -> None:
        """Begin anew: the guest's state is of before any report."""
        with self._scanning:
            self._scanner.flush()
            self.reports.clear()
            self._judged = 0

    def _judge(self) -> None:
        moment, most = self._moment(), Deadline(LONGEST_REPORT * self._scale)
        while self._printed.wait(SETTLE) and self._scanner.pending and not most.expired:
            self._printed.clear()
        with self._scanning:
            self._keep(self._scanner.flush())
            fatal = self._fatal()
            self._judging = False
        if fatal:
            self._on_fatal(fatal[-1], moment)

    def _keep(self, fresh: list[CrashReport]) -> list[CrashReport]:
        self.reports += fresh[: REPORTS - len(self.reports)]
        return fresh

    def _fatal(self) -> list[CrashReport]:
        """The fatal reports that nobody has looked at yet."""
        fresh, self._judged = self.reports[self._judged :], len(self.reports)
        return [report for report in fresh if report.severity >= Severity.FATAL]
