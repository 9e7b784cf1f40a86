"""What can go wrong, and whose fault it is.

    VmtestError
    ├── UsageError               the user's mistake: an unknown guest, a file that is no kernel, a bad option
    ├── HostError                our side or the host's: the guest is not to blame
    │   ├── AcceleratorUnavailable   the accelerator that was asked for cannot work here
    │   ├── ImageError               an image could not be fetched, verified, built or cached
    │   ├── SnapshotError            a snapshot could not be saved, verified or restored
    │   ├── QemuDied                 the QEMU process ended although nobody told it to
    │   └── QmpError                 QEMU refused a QMP command, or the QMP connection broke
    ├── GuestError               the machine under test failed
    │   ├── BootTimeout              it did not come up in time
    │   ├── GuestPanicked            its kernel crashed; carries the report
    │   ├── GuestGone                it powered off or was reset while something was expected of it
    │   ├── CommandFailed            a checked command exited with non-zero status
    │   ├── CommandTimeout           a command did not end in time
    │   ├── ConsoleTimeout           the console did not print what was expected in time
    │   └── TransferFailed           a file could not be pushed or pulled
    └── Divergence               two accelerators disagree

Every error says what happened, what was expected and what to do. Where a guest was involved it also carries
the QEMU command line, QEMU's stderr and the console's tail.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmtest.model.observation import CrashReport, Result

__all__ = [
    "AcceleratorUnavailable",
    "BootTimeout",
    "ColdBootWarning",
    "CommandFailed",
    "CommandTimeout",
    "ConsoleTimeout",
    "Divergence",
    "GuestError",
    "GuestGone",
    "GuestPanicked",
    "HostError",
    "ImageError",
    "QemuDied",
    "QmpError",
    "SnapshotError",
    "TransferFailed",
    "UsageError",
    "VmtestError",
]


class VmtestError(Exception):
    """Base of all errors that vmtest raises on purpose.

    ``hint`` is what to do about it. ``evidence`` maps a title ("QEMU command line", "console tail", …) to the
    text that belongs to it; ``str()`` shows the message, the hint and then each piece of evidence.
    """

    whose = "error"

    def __init__(self, message: str, *, hint: str = "", evidence: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.evidence = dict(evidence or {})

    def __str__(self) -> str:
        parts = [self.message]
        if self.hint:
            parts.append(f"  hint: {self.hint}")
        for title, text in self.evidence.items():
            if text.strip():
                body = "\n".join(f"    {line}" for line in text.rstrip().splitlines())
                parts.append(f"  {title}:\n{body}")
        return "\n".join(parts)


class ColdBootWarning(UserWarning):
    """A guest that cannot be cloned was booted instead; the message says why."""


class UsageError(VmtestError):
    """The user asked for something that cannot be."""

    whose = "usage error"


class HostError(VmtestError):
    """The harness or the host failed; the guest is not to blame."""

    whose = "host error"


class AcceleratorUnavailable(HostError):
    """The accelerator that was asked for cannot work here, and why. There is no silent fallback."""


class ImageError(HostError):
    """An image could not be fetched, verified, built or kept in the cache."""


class SnapshotError(HostError):
    """A snapshot could not be saved, is damaged, or could not be restored; what QEMU said is in the message."""


class QemuDied(HostError):
    """QEMU ended although nobody told it to. ``exit_code`` is negative for a signal, as in subprocess."""

    def __init__(self, message: str, *, exit_code: int, hint: str = "", evidence: dict[str, str] | None = None) -> None:
        super().__init__(message, hint=hint, evidence=evidence)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[partial[QemuDied], tuple[()]]:
        made = partial(type(self), exit_code=self.exit_code, hint=self.hint, evidence=self.evidence)
        return partial(made, self.message), ()


class QmpError(HostError):
    """QEMU refused a QMP command, or the QMP connection broke."""


class GuestError(VmtestError):
    """The machine under test failed."""

    whose = "guest error"


class BootTimeout(GuestError):
    """The guest did not come up in time."""


class GuestPanicked(GuestError):
    """The guest's kernel crashed; ``report`` says how."""

    def __init__(
        self, message: str, *, report: CrashReport, hint: str = "", evidence: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint, evidence=evidence)
        self.report = report


class GuestGone(GuestError):
    """The guest powered off, or was reset, while something was still expected of it."""


class CommandFailed(GuestError):
    """A command that was checked exited with non-zero status; ``result`` is what it left."""

    def __init__(self, message: str, *, result: Result, hint: str = "") -> None:
        super().__init__(message, hint=hint, evidence={"stdout": result.stdout, "stderr": result.stderr})
        self.result = result


class CommandTimeout(GuestError):
    """A command did not end in time and was killed; ``stdout`` and ``stderr`` hold what it had written."""

    def __init__(self, message: str, *, stdout: bytes = b"", stderr: bytes = b"", hint: str = "") -> None:
        evidence = {
            "stdout so far (tail)": stdout[-2000:].decode(errors="replace"),
            "stderr so far (tail)": stderr[-2000:].decode(errors="replace"),
        }
        super().__init__(message, hint=hint, evidence=evidence)
        self.stdout = stdout
        self.stderr = stderr


class ConsoleTimeout(GuestError):
    """The console did not print what was expected in time."""


class TransferFailed(GuestError):
    """A file or a tree could not be copied to or from the guest."""


class Divergence(VmtestError):
    """Two accelerators gave different answers."""

    whose = "divergence"
