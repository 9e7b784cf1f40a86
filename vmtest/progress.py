"""How long work tells what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol

__all__ = ["SILENT", "Progress"]


class Progress(Protocol):
    """Somebody who shows progress: a terminal, a log, or nobody."""

    def step(self, text: str) -> None:
        """A new step begins: "downloading linux-image-…". It ends the step before."""

    def bytes(self, done: int, total: int | None) -> None:
        """Of the step under way, ``done`` bytes of ``total`` (None where unknown) are through."""

    def note(self, text: str) -> None:
        """Of the step under way, how far it is; said again and again, shown as often as is bearable."""


class _Silent:
    def step(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def bytes(self, done: int, total: int | None) -> None:
        pass


SILENT: Progress = _Silent()
