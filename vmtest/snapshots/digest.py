"""A guest's memory as a sparse file: its digest, and a copy of it, without reading holes or writing zeros."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["digest", "write"]

PIECE = 1 << 16
ZEROS = bytes(PIECE)


def digest(path: Path) -> str:
    """SHA-256 over each 64 KiB that is not all zeros, with its offset, and the size.

    A copy of the file has the same digest whether its holes were kept or written out.
    """
    with path.open("rb") as file:
        total = hashlib.sha256()
        for at, piece in _pieces(file.fileno()):
            total.update(at.to_bytes(8, "little"))
            total.update(piece)
        total.update(os.fstat(file.fileno()).st_size.to_bytes(8, "little"))
    return total.hexdigest()


def write(descriptor: int, path: Path) -> None:
    """Copy an open file to ``path``, which is made with holes for zeros. Raises OSError."""
    with path.open("wb") as file:
        file.truncate(os.fstat(descriptor).st_size)
        for at, piece in _pieces(descriptor):
            file.seek(at)
            file.write(piece)


def _pieces(descriptor: int) -> Iterator[tuple[int, memoryview]]:
    """Each 64 KiB that is not all zeros, with its offset; the memory is used again for the next one."""
    size = os.fstat(descriptor).st_size
    buffer = bytearray(PIECE)
    at = 0
    while (at := _data(descriptor, at, size)) < size:
        at -= at % PIECE
        read = os.preadv(descriptor, [buffer], at)
        if not read:  # it was cut meanwhile
            return
        if memoryview(buffer)[:read] != ZEROS[:read]:
            yield at, memoryview(buffer)[:read]
        at += read


def _data(descriptor: int, at: int, size: int) -> int:
    """Where, from ``at`` on, the next data is; ``size`` where there is none."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else at  # elsewhere: a file system that knows no holes
