"""The smallest hand-written client of vmtest's agent: what every benchmark of commands is measured against."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence

from vmtest.qemu.agent import EXIT, HEADER, HELLO, HELLO_ID, PAYLOAD, SPAWN, STDIN, STDIN_DONE, STDOUT, TWO, WINDOW

__all__ = ["drain", "hello", "spawn"]


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size)
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def drain(console: socket.socket) -> None:
    """Throw away what comes until the other end closes, then close ours.

    A guest whose console nobody reads stalls: the socket is full after some hundred writes, however small, and QEMU
    writes what firmware prints byte by byte.
    """

    def run() -> None:
        with console:
            while console.recv(1 << 16):
                pass

    threading.Thread(target=run, daemon=True).start()


def hello(sock: socket.socket) -> None:
    """Wait until the agent answers."""
    nonce = b"0123456789abcdef"
    sock.sendall(HEADER.pack(HELLO, HELLO_ID, len(nonce)) + nonce)
    _exactly(sock, HEADER.size + len(nonce) + 4)


def spawn(sock: socket.socket, number: int, argv: Sequence[str], stdin: bytes = b"") -> int:
    """Run a command, feed it, throw its output away; how many bytes that was."""
    body = b"".join(text.encode() + b"\0" for text in ("", *argv))
    payload = TWO.pack(len(argv), 0) + body
    sock.sendall(HEADER.pack(SPAWN, number, len(payload)) + payload)
    sent = taken = written = 0
    open_ = True
    while True:
        while open_ and sent - taken < WINDOW:
            piece = stdin[sent : sent + min(PAYLOAD // 2, WINDOW - (sent - taken))]
            sock.sendall(HEADER.pack(STDIN, number, len(piece)) + piece)
            sent += len(piece)
            open_ = bool(piece)
        kind, _, size = HEADER.unpack(_exactly(sock, HEADER.size))
        data = _exactly(sock, size)
        if kind == EXIT:
            if TWO.unpack(data) != (0, 0):
                raise RuntimeError(f"{argv} ended with {TWO.unpack(data)}")
            return written
        if kind == STDIN_DONE:
            taken += struct.unpack("<I", data)[0]
        elif kind == STDOUT:
            written += size
