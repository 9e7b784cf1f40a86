"""How fast console text passes through Console, against a bare recv loop and against plain pexpect.

    python benchmarks/console.py [--runs N] [--megabytes N]

Each run has a child process of its own that writes the same lines into a socket pair and then an end marker; the
time is from the word "go" until the reader has seen the marker. Console also writes its log meanwhile.

The child writes in two ways: all at once, faster than any guest can; and in pieces of 4096 bytes, which is the most
that QEMU's character devices hand over at a time (a virtio console a page, a UART a byte).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this file is in

from common import interleaved, median, ratio, table, verdict
from pexpect.fdpexpect import fdspawn
from pexpect.socket_pexpect import SocketSpawn

from vmtest.crash import CrashScanner
from vmtest.qemu.console import Console
from vmtest.qemu.verdict import Verdict

MARKER = b"vmtest-init: ready\r\n"
REGEX = rb"vmtest-init: (ready|failed)\r\n"
LINE = "[{:12.6f}] usb {}-{}: new high-speed USB device number {} using xhci_hcd, {:#018x}\r\n"
PIECE = 4096
numbers = itertools.count()
Reader = Callable[[socket.socket], "Console | None"]


def text(megabytes: float) -> bytes:
    """Console lines as a kernel prints them, and the marker at the end."""
    block = b"".join(
        LINE.format(n / 1000, n % 7, n % 11, n % 127, n * 0x9E3779B97F4A7C15 % 2**64).encode() for n in range(20_000)
    )
    size = int(megabytes * 1e6)
    whole = block * (size // len(block) + 1)
    return whole[: whole.rindex(b"\n", 0, size) + 1] + MARKER


def write(sock: socket.socket, data: bytes, piece: int) -> None:
    """The child: wait for the word, then write."""
    sock.recv(1)
    for start in range(0, len(data), piece):
        sock.sendall(data[start : start + piece])


def timed(read: Reader, data: bytes, piece: int | None = None) -> float:
    """Seconds that ``read`` takes to see the end of ``data``."""
    ours, theirs = socket.socketpair()
    child = multiprocessing.get_context("fork").Process(target=write, args=(theirs, data, piece or len(data)))
    child.start()
    theirs.close()
    with ours:
        start = time.perf_counter()
        ours.send(b"g")
        console = read(ours)
        seconds = time.perf_counter() - start
    child.join()
    if console is not None:
        console.close()
        console.log_path.unlink()
    return seconds


def bare(sock: socket.socket) -> None:
    last = b""
    while not last.endswith(MARKER):
        last = (last + sock.recv(65536))[-len(MARKER) :]


def through_console(sock: socket.socket, folder: Path, *, exact: bool = True, scanned: bool = False) -> Console:
    options: dict[str, Any] = {"on_data": CrashScanner().feed} if scanned else {}
    log = folder / f"{next(numbers)}.log"
    console = Console(sock.dup(), log=log, verdict=Verdict(), timeout=600, **options)
    if exact:
        console.expect_exact(MARKER)
    else:
        console.expect(REGEX)
    return console


def plain_pexpect(sock: socket.socket, kind: type, window: int | None) -> None:
    kind(sock, searchwindowsize=window, timeout=600).expect(REGEX)


def cases(data: bytes, folder: Path, piece: int | None) -> dict[str, Callable[[], float]]:
    ours = {
        "bare recv": bare,
        "expect_exact": partial(through_console, folder=folder),
        "expect": partial(through_console, folder=folder, exact=False),
        "expect_exact + crash scanner": partial(through_console, folder=folder, scanned=True),
    }
    return {name: partial(timed, read, data, piece) for name, read in ours.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--megabytes", type=float, default=25.0)
    options = parser.parse_args()
    size, data = options.megabytes, text(options.megabytes)
    verdicts = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, piece in (("all at once", None), (f"in pieces of {PIECE} bytes", PIECE)):
            seconds = interleaved(cases(data, folder, piece), options.runs)
            print(f"{size:g} MB, written {title}\n\n{table(seconds, 'bare recv')}\n")
            verdicts += [
                verdict(f"{case} against bare recv, {title}", ratio(seconds, case, "bare recv"), 3.0)
                for case in seconds
                if case != "bare recv"
            ]
        pexpects: dict[str, Callable[[], float]] = {
            "Console.expect": partial(timed, partial(through_console, folder=folder, exact=False), data)
        }
        # Its default settings are quadratic (25 MB take minutes), so that they get the tenth part.
        small = text(size / 10)
        for kind in (fdspawn, SocketSpawn):
            pexpects[f"{kind.__name__}, window 2000"] = partial(
                timed, partial(plain_pexpect, kind=kind, window=2000), data
            )
            pexpects[f"{kind.__name__}, default, {size / 10:g} MB"] = partial(
                timed, partial(plain_pexpect, kind=kind, window=None), small
            )
        print(f"{size:g} MB through plain pexpect\n\n{table(interleaved(pexpects, 1), 'Console.expect')}\n")
        sizes = {
            f"{part * size:g} MB": partial(timed, partial(through_console, folder=folder), text(part * size), PIECE)
            for part in (0.5, 1, 2)
        }
        seconds = interleaved(sizes, options.runs)
        _, middle, last = seconds
        print(f"expect_exact, growing, in pieces of {PIECE} bytes\n\n{table(seconds, middle)}\n")
        verdicts.append(verdict("twice the size", median(seconds[last]) / median(seconds[middle]), 2.5))
    print("\n".join(verdicts))


if __name__ == "__main__":
    main()
