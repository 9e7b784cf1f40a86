"""How fast console text passes through Console, against a bare recv loop and against plain pexpect.

    python benchmarks/console.py [--runs N] [--megabytes N]

Each run has a child process of its own that writes the same lines into a socket pair and then an end marker; the
time is from the word "go" until the reader has seen the marker.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import interleaved, median, ratio, table, verdict
from pexpect.fdpexpect import fdspawn
from pexpect.socket_pexpect import SocketSpawn

from vmtest.qemu.console import Console
from vmtest.qemu.verdict import Verdict

MARKER = b"vmtest-init: ready\r\n"
REGEX = rb"vmtest-init: (ready|failed)\r\n"
LINE = "[{:12.6f}] usb {}-{}: new high-speed USB device number {} using xhci_hcd, {:#018x}\r\n"
import itertools
FOLDER=Path("/tmp/cbench"); FOLDER.mkdir(exist_ok=True)
NUMBER=itertools.count()
Reader = Callable[[socket.socket], None]


def text(megabytes: float) -> bytes:
    """Console lines as a kernel prints them, and the marker at the end."""
    block = b"".join(
        LINE.format(n / 1000, n % 7, n % 11, n % 127, n * 0x9E3779B97F4A7C15 % 2**64).encode() for n in range(20_000)
    )
    size = int(megabytes * 1e6)
    whole = block * (size // len(block) + 1)
    return whole[: whole.rindex(b"\n", 0, size) + 1] + MARKER


def write(sock: socket.socket, data: bytes) -> None:
    sock.recv(1)
    sock.sendall(data)


def timed(read: Reader, data: bytes) -> float:
    ours, theirs = socket.socketpair()
    child = multiprocessing.get_context("fork").Process(target=write, args=(theirs, data))
    child.start()
    theirs.close()
    with ours:
        start = time.perf_counter()
        ours.send(b"g")
        res = read(ours)
        seconds = time.perf_counter() - start
        if res: res.close(); res.log_path.unlink()
    child.join()
    return seconds


def bare(sock: socket.socket) -> None:
    last = b""
    while not last.endswith(MARKER):
        last = (last + sock.recv(65536))[-len(MARKER):]


def plain_pexpect(sock: socket.socket, kind: type, window: int | None) -> None:
    spawn = kind(sock, searchwindowsize=window, timeout=600)
    spawn.expect(REGEX)


def ours(sock: socket.socket, exact: bool) -> None:
    console = Console(sock.dup(), log=FOLDER / f"console{next(NUMBER)}.log", verdict=Verdict(), timeout=600)
    if exact:
        console.expect_exact(MARKER)
    else:
        console.expect(REGEX)
    return console

if __name__ == "__main__":
    data = text(25)
    cases = {"bare": lambda: timed(bare, data), "exact": lambda: timed(partial(ours, exact=True), data), "re": lambda: timed(partial(ours, exact=False), data),
    "pexpect win": lambda: timed(partial(plain_pexpect, kind=fdspawn, window=2000), data) }
    print(table(interleaved(cases, 7), "bare"))
