"""Showing what long work is doing: a live line on a terminal, plain lines on stderr otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from vmtest.progress import Progress

if TYPE_CHECKING:
    import rich.progress

__all__ = ["shown"]

EVERY = 10.0
"""Seconds between two notes where they are lines of a log."""


@contextmanager
def shown(stream: TextIO | None = None) -> Iterator[Progress]:
    """A Progress that people see, on ``stream`` (stderr), for as long as the block lasts.

    On a terminal the live line is gone at the end, so that it never mixes with what a guest prints.
    """
    out = stream or sys.stderr
    if not out.isatty():
        yield _Lines(out)
        return
    import rich.console  # only where there is a terminal: it costs 50 ms
    import rich.progress

    columns = (
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(file=out), transient=True) as display:
        yield _Live(display)


class _Lines:
    """A line a step; bytes are not worth lines."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._noted = out, time.monotonic()

    def step(self, text: str) -> None:
        print(f"vmtest: {text}", file=self._out, flush=True)

    def bytes(self, done: int, total: int | None) -> None:
        pass

    def note(self, text: str) -> None:
        if time.monotonic() - self._noted >= EVERY:
            self._noted = time.monotonic()
            self.step(text)


class _Live:
    def __init__(self, display: rich.progress.Progress) -> None:
        self._display = display
        self._task: rich.progress.TaskID | None = None

    def step(self, text: str) -> None:
        if self._task is not None:
            self._display.remove_task(self._task)
        self._task = self._display.add_task(text, total=None)

    def bytes(self, done: int, total: int | None) -> None:
        if self._task is not None:
            self._display.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        if self._task is not None:
            self._display.update(self._task, description=text)
