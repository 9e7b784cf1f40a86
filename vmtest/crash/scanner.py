"""Where reports begin and end in a stream of console bytes: linear in time, bounded in memory, never early.

What the result depends on is lines only, never how the bytes were cut into chunks. The common case is text that
may begin no report, and that is skipped by searches that run at memory-like speed (see `vmtest.crash.lines`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vmtest.crash.formats import CONSEQUENCES, DUMP_LINE, FORMATS, INDEPENDENT, Format
from vmtest.crash.lines import clean, find_stamp, next_plain, next_stamped, split, starts_with_stamp
from vmtest.crash.titles import render
from vmtest.model.observation import CrashReport, Severity

__all__ = ["CrashScanner", "find_reports"]

MAX_LINE = 4096
"""Longer lines are cut into pieces of this many bytes. The kernel's own lines stay under 1 KiB."""
MAX_LINES = 500
MAX_TEXT = 64 * 1024
"""A report with more lines or characters than these is complete: a dump of all tasks adds nothing."""
MAX_REPORTS = 256
"""Reports of one console; a guest that goes on warning only counts up `dropped` (fatal ones get as many again)."""
KERNEL_SLACK = 16
"""Kernel lines without the look of a dump that end a report: a panic may follow an oops after a few of them."""
OTHER_SLACK = 64
"""The same for lines that are not the kernel's, where the two can be told apart."""
AFTERMATH = 40
"""Lines after a fatal report's end in which nothing is reported: other CPUs complain about the one that died."""

_END = re.compile(r"---\[ end Kernel panic|Rebooting in \d+ seconds")
_RULER = re.compile(r"-+\[ cut here \]")
_BOOT = "Linux version "
# The rows that a line's first character leaves, still in their order.
_BY_FIRST = {
    first: tuple(fmt for fmt in FORMATS if any(head.startswith(first) for head in fmt.heads))
    for first in {head[0] for fmt in FORMATS for head in fmt.heads}
}


@dataclass
class _Open:
    """A report that has begun."""

    fmt: Format
    found: re.Match[str]
    offset: int
    severity: Severity
    lines: list[str] = field(default_factory=list)
    kept: int = 0
    """How many of the lines are certainly the report's: up to the last that looks like a dump."""
    size: int = 0
    others: int = 0

    def add(self, text: str, *, belongs: bool) -> None:
        self.lines.append(text)
        self.size += len(text) + 1
        self.others = 0
        if belongs:
            self.kept = len(self.lines)

    @property
    def full(self) -> bool:
        return len(self.lines) >= MAX_LINES or self.size >= MAX_TEXT

    def report(self) -> CrashReport:
        lines = self.lines[: self.kept]
        while len(lines) > 1 and _RULER.match(lines[-1]):
            lines.pop()  # it announces the next report
        return CrashReport(
            kind=self.fmt.kind,
            severity=self.severity,
            title=render(self.fmt, self.found, lines),
            text="\n".join(lines),
            offset=self.offset,
        )


class CrashScanner:
    """Finds the kernel's crash reports in console bytes that arrive in chunks of any size.

    `feed` returns the reports that are complete. A report is complete when its end was seen, when another begins,
    or when enough unrelated lines followed; an oops waits that long because the panic that it leads to is part of
    it. A guest that falls silent completes nothing, so whoever has waited long enough while `pending` calls `flush`.

    A line counts as the kernel's if, after a level, ANSI codes and a time stamp, it begins with the marker. Once a
    line of this console began with a printk time stamp, lines without one are not the kernel's: a user who prints
    "Kernel panic - not syncing: x" is not a crash. `timestamps` says so from the start (True, which is also the fast
    way), or that the kernel prints none (False: what looks like a stamp is then not required later). A stamp may
    follow other text on its line, for the kernel writes behind a prompt.

    Text alone cannot tell a crash from an old log that somebody prints with its stamps: a caller for whom that
    matters confirms a report of severity FATAL by asking whether the guest still answers.
    """

    def __init__(self, *, timestamps: bool | None = None) -> None:
        self.dropped = 0
        """Reports beyond the limit, which were not returned."""
        self._learn = timestamps is None
        self._stamped = bool(timestamps)
        self._offset = 0  # of the first byte of _carry in the stream
        self._carry = b""  # the piece whose end has not been seen
        self._mid = False  # whether the current piece continues a line that was cut
        self._open: _Open | None = None
        self._aftermath = 0
        self._reports = 0

    @property
    def pending(self) -> bool:
        """Whether a report has begun and its end has not been seen."""
        return self._open is not None

    @property
    def fatal_pending(self) -> bool:
        """Whether that report is a panic: the kernel has stopped, only the rest of the text is awaited."""
        return self._open is not None and self._open.severity is Severity.FATAL

    def feed(self, data: bytes) -> list[CrashReport]:
        """Take the next bytes; return the reports that they complete."""
        out: list[CrashReport] = []
        position = 0
        if self._carry:
            newline = data.find(b"\n")
            if newline < 0:
                data, position = self._carry + data, 0
            else:
                head, position = self._carry + data[: newline + 1], newline + 1
                self._carry = b""
                self._skim(head, 0, len(head), out)
                self._offset += len(head)
        end = data.rfind(b"\n", position) + 1
        if end > position:
            base, self._offset = self._offset, self._offset - position
            self._skim(data, position, end, out)
            self._offset = base + end - position
            position = end
        # What is left is the beginning of a line. It waits for its end, except for the pieces that are full.
        full = position + (len(data) - position) // MAX_LINE * MAX_LINE
        if full > position:
            base, self._offset = self._offset, self._offset - position
            self._skim(data, position, full, out)
            self._offset = base + full - position
        self._carry = data[full:]
        return out

    def flush(self) -> list[CrashReport]:
        """Complete what is pending, for nothing more is expected of it; return the report, if there is one."""
        out: list[CrashReport] = []
        if self._open is not None:
            if self._carry:
                self._piece(self._carry, self._offset, out)
                self._offset += len(self._carry)
                self._carry, self._mid = b"", True
            if self._open is not None:  # unless that was the line which ends it
                self._close(out)
        self._aftermath = 0
        return out

    def _skim(self, data: bytes, position: int, end: int, out: list[CrashReport]) -> None:
        """Go through whole lines (or whole pieces of one): fast while nothing is open and no candidate is near."""
        stamped = plain = -1  # the next candidates; each search begins where the last one ended
        while position < end:
            if self._open is None and not self._aftermath:
                if stamped < position:
                    stamped = next_stamped(data, position, end)
                if self._stamped:
                    plain = end
                elif plain < position:
                    plain = next_plain(data, position, end, mid=self._mid)
                hit = min(stamped, plain)
                if self._learn and not self._stamped:
                    self._stamped = find_stamp(data, position, hit, mid=self._mid)
                position = self._advance(data, position, hit)
                if position >= end:
                    return
            limit = min(position + MAX_LINE, end)
            newline = data.find(b"\n", position, limit)
            stop = limit if newline < 0 else newline
            self._piece(data[position:stop], self._offset + position, out)
            self._mid = newline < 0
            position = stop if newline < 0 else newline + 1

    def _advance(self, data: bytes, position: int, hit: int) -> int:
        """The beginning of the piece that holds the byte at `hit`, seen from the beginning of an earlier piece."""
        newline = data.rfind(b"\n", position, hit)
        if newline >= 0:
            self._mid = False
            position = newline + 1
        whole = (hit - position) // MAX_LINE * MAX_LINE
        if whole:
            self._mid = True
        return position + whole

    def _piece(self, raw: bytes, offset: int, out: list[CrashReport]) -> None:
        """Take one line, or one piece of a line that is too long. What it means depends on nothing else."""
        if self._learn and not self._stamped and not self._mid and starts_with_stamp(raw):
            self._stamped = True
        text, at = split(raw)
        if at < 0 and (self._stamped or self._mid):
            self._other_line(out)
            return
        if self._aftermath:
            self._aftermath = 0 if text.startswith(_BOOT) else self._aftermath - 1
            return
        if self._open is not None and text.startswith(_BOOT):
            self._close(out)
            return
        starting = _classify(text, stamped=at >= 0)
        if starting is not None and not self._continues(*starting):
            if self._open is not None:
                self._close(out)
            fmt, found = starting
            self._open = _Open(fmt=fmt, found=found, offset=offset + max(at, 0), severity=fmt.severity)
        if self._open is None:
            return
        report = self._open
        if starting is not None:
            report.severity = max(report.severity, starting[0].severity)
        ends = report.severity is Severity.FATAL and _END.match(text) is not None
        report.add(clean(text), belongs=starting is not None or ends or DUMP_LINE.match(text) is not None)
        if ends or report.full or len(report.lines) - report.kept >= KERNEL_SLACK:
            self._close(out)
            self._aftermath = AFTERMATH if ends else 0

    def _other_line(self, out: list[CrashReport]) -> None:
        """A line that the kernel did not print."""
        if self._aftermath:
            self._aftermath -= 1
        elif self._open is not None:
            self._open.others += 1
            if self._open.others >= OTHER_SLACK:
                self._close(out)

    def _continues(self, fmt: Format, found: re.Match[str]) -> bool:
        """Whether a line that could begin a report goes on with the open one."""
        current = self._open
        if current is None:
            return False
        if current.severity is Severity.FATAL or current.fmt.kind in fmt.continues:
            return True
        if fmt.severity is not Severity.FATAL:
            return False
        reason = found["reason"]
        if current.severity is Severity.ERROR:
            return INDEPENDENT.match(reason) is None
        return CONSEQUENCES.match(reason) is not None

    def _close(self, out: list[CrashReport]) -> None:
        report, self._open = self._open, None
        assert report is not None
        limit = 2 * MAX_REPORTS if report.severity is Severity.FATAL else MAX_REPORTS
        if self._reports >= limit:
            self.dropped += 1
            return
        self._reports += 1
        out.append(report.report())


def _classify(text: str, *, stamped: bool) -> tuple[Format, re.Match[str]] | None:
    """The row that a kernel line begins, or None."""
    for fmt in _BY_FIRST.get(text[:1], ()):
        if text.startswith(fmt.heads) and (stamped or not fmt.stamped) and (found := fmt.starts.match(text)):
            return fmt, found
    return None


def find_reports(text: bytes, *, timestamps: bool | None = None) -> list[CrashReport]:
    """All reports of a whole transcript."""
    scanner = CrashScanner(timestamps=timestamps)
    return scanner.feed(text) + scanner.flush()
