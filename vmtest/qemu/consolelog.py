"""The file that holds every byte a guest has printed."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from vmtest.errors import HostError

__all__ = ["ConsoleLog"]

PIECE = 1 << 20
IOV_MAX = 1024
LIMIT = 1 << 30
"""A guest that prints without end fills no disk: the log stops here and says so."""


class ConsoleLog:
    """Appends to ``path``. ``error`` says why it stopped."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises HostError if it cannot be written."""
        self.path = path
        self.error = ""
        self._size = 0
        self._held: list[bytes] = []
        self._held_size = 0
        self._file = _opened(path)

    def write(self, data: bytes) -> None:
        """Append ``data``: to the file at the next ``flush``, or when a MiB has come together."""
        if self.error:
            return
        self._size += len(data)
        self._held.append(data)
        self._held_size += len(data)
        if self._size > LIMIT:
            self._held.append(b"\n[vmtest: the log ends here; the guest printed more than 1 GiB]\n")
        if self._held_size >= PIECE or self._size > LIMIT:
            self.flush()
        if self._size > LIMIT:
            self.error = "the guest printed more than 1 GiB"

    def flush(self) -> None:
        """Write what is held. An error (a full disk, say) ends the log and not the guest."""
        held, self._held, self._held_size = self._held, [], 0
        try:
            while held and not self.error:
                written = os.writev(self._file.fileno(), held[:IOV_MAX])
                while held and written >= len(held[0]):
                    written -= len(held.pop(0))
                if written:  # rare: the disk is nearly full
                    held[0] = held[0][written:]
        except (OSError, ValueError) as error:
            self.error = str(error)

    def move(self, path: Path) -> None:
        """Append it to the file ``path`` and go on there. Raises HostError if that cannot be written."""
        self.flush()
        before = self.path
        self._file.close()
        data = before.read_bytes()
        before.unlink()
        self.path, self._file = path, _opened(path)
        self.write(data)
        self._size -= len(data)
        self.flush()

    def close(self) -> None:
        """Write what is held and close the file; a second time does nothing."""
        if not self._file.closed:
            self.flush()
        self._file.close()

    def __str__(self) -> str:
        return f"{self.path}, which ends early: {self.error}" if self.error else str(self.path)


def _opened(path: Path) -> FileIO:
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise HostError(f"the console log {path} cannot be written: {error.strerror}") from error
