"""A digest of a guest's memory: of a sparse file, without reading its holes."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

__all__ = ["digest"]

PIECE = 1 << 20
ZEROS = bytes(PIECE)


def digest(path: Path | int) -> str:
    """SHA-256 over each MiB that is not all zeros, with its offset, and the size.

    A copy of the file has the same digest whether its holes were kept or written out.
    """
    total = hashlib.sha256()
    descriptor = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        at = 0
        buffer = bytearray(PIECE)
        while (at := _data(descriptor, at, size)) < size:
            at -= at % PIECE
            read = os.preadv(descriptor, [buffer], at)
            piece = memoryview(buffer)[:read]
            if piece != ZEROS[:read]:
                total.update(at.to_bytes(8, "little"))
                total.update(piece)
            at += read
            if not read:  # it was cut meanwhile
                break
        total.update(size.to_bytes(8, "little"))
    finally:
        if not isinstance(path, int):
            os.close(descriptor)
    return total.hexdigest()


def _data(descriptor: int, at: int, size: int) -> int:
    """Where, from ``at`` on, the next data is; ``size`` where there is none."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else at  # elsewhere: a file system that knows no holes
