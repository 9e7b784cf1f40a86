"""What was seen: the results of commands, and the crash reports of kernels."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from vmtest.errors import CommandFailed

__all__ = ["CrashReport", "Result", "Severity"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command left.

    ``command`` is what was run: a shell string, or an argument list. ``stdout_bytes`` and ``stderr_bytes`` are
    exactly what it wrote. ``exit_code`` is its status, or 128 + signal as a shell would say it; ``signal`` is the
    number of the signal that ended it, or None. ``duration`` is in seconds, measured on the host.
    """

    command: str | Sequence[str]
    stdout_bytes: bytes
    stderr_bytes: bytes
    exit_code: int
    signal: int | None
    duration: float

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 appear as U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 appear as U+FFFD."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """Whether it exited with status 0."""
        return self.exit_code == 0

    def check(self) -> Result:
        """The result itself if it is ok; otherwise raises CommandFailed with what the command wrote."""
        if self.ok:
            return self
        shown = self.command if isinstance(self.command, str) else shlex.join(self.command)
        how = f"was killed by signal {self.signal}" if self.signal else f"exited with {self.exit_code}"
        raise CommandFailed(f"the guest's command {shown!r} {how}", result=self)


class Severity(IntEnum):
    """How bad a crash report is; a worse one is greater."""

    WARNING = 1
    """The kernel complains and goes on: WARNING, a stall, lockdep, UBSAN."""
    ERROR = 2
    """A task was killed or memory was corrupted, and the kernel may go on: oops, KASAN, BUG, soft lockup."""
    FATAL = 3
    """The kernel stopped: panic."""


@dataclass(frozen=True, kw_only=True)
class CrashReport:
    """One report that a guest's kernel printed.

    ``kind`` is the family ("panic", "oops", "kasan", "lockup", …), ``title`` one stable line without addresses,
    numbers or PIDs ("KASAN: use-after-free Read in foo"), fit to deduplicate by; ``text`` the report's lines with
    the kernel's time stamps removed; ``offset`` where in the console's byte stream it begins.
    """

    kind: str
    severity: Severity
    title: str
    text: str
    offset: int = 0
