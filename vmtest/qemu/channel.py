"""The seam between a guest and the ways of running commands in it: agent, qga, console."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from vmtest.deadline import Deadline
from vmtest.model.machine import Channel

__all__ = ["Command", "CommandChannel", "Exit", "OnOutput"]

OnOutput = Callable[[str, bytes], None]
"""Called with "stdout" or "stderr" and the bytes, as they arrive."""


class Exit(NamedTuple):
    """How a command ended: its status, or the number of the signal that ended it."""

    status: int
    signal: int | None


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is to be run: an argument list, its standard input, additions to the environment, a directory."""

    argv: Sequence[str]
    input: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""


class CommandChannel(Protocol):
    """One way of running commands in a guest."""

    kind: Channel

    def connect(self, deadline: Deadline) -> bool:
        """Find the other end, at the first time or after a reboot; whether it answered before the deadline."""

    def run(self, command: Command, *, deadline: Deadline, on_output: OnOutput) -> Exit:
        """Run it and hand over what it writes. Raises TimeoutError at the deadline, having killed the command."""

    def answers(self, deadline: Deadline) -> bool:
        """Whether the guest is alive to this channel: True as soon as it answers, False at the deadline."""

    def forget(self) -> None:
        """The guest was reset: whoever waits for a command gets GuestGone, and ``connect`` begins anew."""

    def close(self) -> None:
        """Give up the connection."""
