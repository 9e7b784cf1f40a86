"""The file that holds every byte a guest has printed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vmtest.errors import HostError

__all__ = ["ConsoleLog"]

LIMIT = 1 << 30
"""A guest that prints without end fills no disk: the log stops here and says so."""


class ConsoleLog:
    """Appends to ``path`` without a buffer, so that who reads the file sees all. ``error`` says why it stopped."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises HostError if it cannot be written."""
        self.path = path
        self.error = ""
        self._size = 0
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise HostError(f"the console log {path} cannot be written: {error.strerror}") from error

    def write(self, chunks: Iterable[bytes]) -> None:
        """Append the chunks. An error (a full disk, say) ends the log and not the guest."""
        try:
            for data in chunks:
                if self.error:
                    return
                self._append(data)
                self._size += len(data)
                if self._size > LIMIT:
                    self._append(b"\n[vmtest: the log ends here; the guest printed more than 1 GiB]\n")
                    self.error = "the guest printed more than 1 GiB"
        except OSError as error:
            self.error = error.strerror or str(error)

    def _append(self, data: bytes) -> None:
        written = self._file.write(data)
        while written < len(data):  # rare: the disk is nearly full
            written += self._file.write(data[written:])

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()

    def __str__(self) -> str:
        return f"{self.path}, which ends early: {self.error}" if self.error else str(self.path)
