"""A queue of bytes that costs the same whether they come by the megabyte or one at a time."""

from __future__ import annotations

from collections import deque

__all__ = ["ByteQueue"]

SMALL = 1 << 12
"""A UART hands over single bytes; as objects of their own each would take 50 times its size. Pieces smaller than
this are gathered, larger ones are kept as they came."""
GATHERED = 1 << 16


class ByteQueue:
    """Bytes in the order in which they came. ``len()`` is how many there are. Not locked."""

    def __init__(self) -> None:
        self._chunks: deque[bytes | bytearray] = deque()
        self._gone = 0  # bytes of the first chunk that have been taken
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, data: bytes) -> None:
        """Put ``data`` at the end."""
        self._size += len(data)
        if len(data) >= SMALL:
            self._chunks.append(data)
            return
        last = self._chunks[-1] if self._chunks else b""
        if isinstance(last, bytearray) and len(last) < GATHERED:
            last += data
        elif data:
            self._chunks.append(bytearray(data))

    def put_back_all(self, other: ByteQueue) -> None:
        """Put all of ``other`` at the front; ``other`` is empty then."""
        self._drop_gone()
        other._drop_gone()
        self._chunks.extendleft(reversed(other._chunks))
        self._size += other._size
        other.clear()

    def take(self, size: int) -> bytes:
        """Between 1 and ``size`` bytes from the front, no more than came in one piece; b"" where there are none."""
        if not self._chunks:
            return b""
        first = self._chunks[0]
        piece = bytes(first) if not self._gone and len(first) <= size else bytes(first[self._gone : self._gone + size])
        self._gone += len(piece)
        self._size -= len(piece)
        if self._gone == len(first):
            self._chunks.popleft()
            self._gone = 0
        return piece

    def trim(self, newest: int) -> None:
        """Forget the oldest; at least ``newest`` bytes stay where there are so many."""
        while self._chunks and self._size - (len(self._chunks[0]) - self._gone) >= newest:
            self._size -= len(self._chunks.popleft()) - self._gone
            self._gone = 0

    def join(self) -> bytes:
        """All of it, which also stays."""
        self._drop_gone()
        return b"".join(self._chunks)

    def clear(self) -> None:
        """Forget everything."""
        self._chunks.clear()
        self._size = self._gone = 0

    def _drop_gone(self) -> None:
        if self._gone:
            self._chunks[0] = self._chunks[0][self._gone :]
            self._gone = 0
