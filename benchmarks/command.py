"""Commands in a guest that runs already, against a hand-written loop over the same channel of the same guest.

    python benchmarks/command.py [--runs N]

The loop (bare.py) borrows the guest's agent socket for the time of a command, sends the same frames and blocks until
the command has ended. Below it the other ways of running commands, where there is an image for them: over the serial
console, and by QEMU's own guest agent. Last, what passes through standard output and input.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from socket import socket

import bare
from common import interleaved, median, ratio, table, verdict
from tabulate import tabulate

import vmtest
from vmtest.guest import Guest
from vmtest.images import load
from vmtest.images.prepared import cached
from vmtest.model.spec import DEFAULT_GUEST
from vmtest.qemu import loop
from vmtest.qemu.agent import Agent

RATIO, SECONDS = 1.5, 5.0
MIB = 1 << 20
DD = ["dd", "if=/dev/urandom", "bs=1M", "count=10"]
SHELL = ["/bin/sh", "-c", "true"]
NUMBERS = itertools.count(1 << 30)  # vmtest's own numbers of commands start at 1


@contextmanager
def borrowed(guest: Guest) -> Iterator[socket]:
    """The agent's socket, which nobody else reads meanwhile. What is done to get it is not timed."""
    agent = guest._uplink.channel
    assert isinstance(agent, Agent)
    sock = agent._sock
    loop.call(lambda running: running.remove_reader(sock.fileno()))
    sock.setblocking(True)
    try:
        yield sock
    finally:
        sock.setblocking(False)
        loop.call(agent._listen)


def by_hand(guest: Guest, argv: Sequence[str], stdin: bytes = b"", expected: int = 0) -> float:
    with borrowed(guest) as sock:
        start = time.perf_counter()
        written = bare.spawn(sock, next(NUMBERS), argv, stdin)
        seconds = time.perf_counter() - start
    assert written == expected
    return seconds


def ours(guest: Guest, command: str | list[str], stdin: bytes = b"", expected: int = 0) -> float:
    start = time.perf_counter()
    result = guest.run(command, input=stdin)
    seconds = time.perf_counter() - start
    assert len(result.check().stdout_bytes) == expected
    return seconds


def other_channels(stack: ExitStack) -> dict[str, Guest]:
    guests = {"console": stack.enter_context(vmtest.boot(DEFAULT_GUEST, cold=True, channel="console"))}
    if cached(load("linux-x86_64-qga")):
        guests["qemu-ga"] = stack.enter_context(vmtest.boot("linux-x86_64-qga", cold=True))
    return guests


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    with ExitStack() as stack:
        guest = stack.enter_context(vmtest.boot(DEFAULT_GUEST, cold=True))
        others = other_channels(stack)
        time.sleep(2)  # init goes on for a while after the agent answers
        seconds = interleaved(
            {
                "bare, shell": partial(by_hand, guest, SHELL),
                "vmtest, shell": partial(ours, guest, "true"),
                "bare, list": partial(by_hand, guest, ["true"]),
                "vmtest, list": partial(ours, guest, ["true"]),
            },
            runs,
        )
        others_seconds = interleaved(
            {name: partial(ours, other, "true") for name, other in {"agent": guest, **others}.items()},
            min(runs, 30),
        )
        data = os.urandom(10 * MIB)
        through = interleaved(
            {
                "bare, dd of 10 MiB": partial(by_hand, guest, DD, expected=10 * MIB),
                "vmtest, dd of 10 MiB": partial(ours, guest, DD, expected=10 * MIB),
                "bare, 10 MiB through cat": partial(by_hand, guest, ["cat"], data, 10 * MIB),
                "vmtest, 10 MiB through cat": partial(ours, guest, ["cat"], data, 10 * MIB),
            },
            5,
        )
    kinds = {kind: {name: seconds[name] for name in (f"bare, {kind}", f"vmtest, {kind}")} for kind in ("shell", "list")}
    print(f'guest.run("true")\n\n{table(kinds["shell"], "bare, shell")}\n')
    print(f'guest.run(["true"])\n\n{table(kinds["list"], "bare, list")}\n')
    print(f'guest.run("true") over each channel\n\n{table(others_seconds, "agent")}\n')
    rows = [(name, median(times), 10 * MIB / 1e6 / median(times)) for name, times in through.items()]
    print(tabulate(rows, headers=("case", "median s", "MB/s"), floatfmt=("", ".2f", ".1f")), end="\n\n")
    for kind, both in kinds.items():
        print(
            verdict(
                f"true as a {kind} command: vmtest against bare", ratio(both, f"vmtest, {kind}", f"bare, {kind}"), RATIO
            )
        )
    print(verdict("seconds for dd of 10 MiB", median(through["vmtest, dd of 10 MiB"]), SECONDS))


if __name__ == "__main__":
    main()
