"""The qtest protocol on a socket, without a QEMU: replies, interrupts between them, and an end in their midst."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from vmtest.errors import UsageError
from vmtest.qemu.qtest import AT_ONCE, Interrupt, Qtest, QtestEnded


def _talk(serve: Callable[[socket.socket], None], lines: list[bytes], *, goes_on: bool = False) -> tuple[Qtest, object]:
    """What comes of requests to that server: their replies, or the exception."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs:
            serve(theirs)

    thread = threading.Thread(target=run)
    thread.start()
    found = Qtest(ours, patience=0.05, goes_on=lambda: goes_on)
    try:
        said: object = found.run(lines)
    except QtestEnded as error:
        said = error
    found.close()
    thread.join()
    return found, said


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_interrupts_between_replies(step: int) -> None:
    """However what QEMU says is cut up, interrupts are told apart, each with the request that it belongs to."""
    said = b"IRQ raise 3\nOK\nOK 0x10\nIRQ lower 3\nIRQ raise 11\nOK\n"

    def serve(sock: socket.socket) -> None:
        for at in range(0, len(said), step):
            sock.sendall(said[at : at + step])
        sock.recv(100)

    found, replies = _talk(serve, [b"a", b"b", b"c"], goes_on=True)
    assert replies == [b"OK", b"OK 0x10", b"OK"]
    assert list(found.interrupts) == [Interrupt(0, 3, True), Interrupt(2, 3, False), Interrupt(2, 11, True)]


def test_neither_end_waits_for_the_other() -> None:
    """Megabytes of requests go through a server that takes none while nobody takes its replies."""
    number, request = 20_000, b"write " + b"x" * 500

    def serve(sock: socket.socket) -> None:
        with sock.makefile("rwb") as file:
            for _ in range(number):
                file.readline()
                file.write(b"OK " + b"y" * 100 + b"\n")

    _, replies = _talk(serve, [request] * number, goes_on=True)
    assert replies == [b"OK " + b"y" * 100] * number


def test_an_error_of_who_makes_requests() -> None:
    """What was sent before is answered, and the error raised: the next request has its own reply."""

    def serve(sock: socket.socket) -> None:
        with sock, sock.makefile("rwb") as file:
            while line := file.readline():
                file.write(b"OK " + line)
                file.flush()

    def lines() -> Iterator[bytes]:
        yield from [b"first"] * AT_ONCE
        raise UsageError("cannot be said")

    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs,))
    thread.start()
    found = Qtest(ours, patience=0.05, goes_on=lambda: True)
    with pytest.raises(UsageError, match="cannot be said"):
        found.run(lines())
    assert found.run([b"next"]) == [b"OK next"]
    found.close()
    thread.join()


def test_an_end_in_the_midst() -> None:
    """Where QEMU ends, what it has answered is told; where it falls silent, too, and that it does."""

    def ends(sock: socket.socket) -> None:
        sock.sendall(b"OK\nOK\nO")

    def is_silent(sock: socket.socket) -> None:
        sock.sendall(b"OK\n")
        while sock.recv(1000):
            pass

    _, ended = _talk(ends, [b"a"] * 5)
    assert isinstance(ended, QtestEnded)
    assert (ended.replies, ended.is_silent) == ([b"OK", b"OK"], False)
    _, silent = _talk(is_silent, [b"a"] * 5)
    assert isinstance(silent, QtestEnded)
    assert (silent.replies, silent.is_silent) == ([b"OK"], True)
