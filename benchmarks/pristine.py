"""A guest that nobody has touched, in several ways; what a clone costs in memory; a suite of which each test gets one.

    python benchmarks/pristine.py [--runs N] [--guest NAME ...] [--no-suite | --only-suite] [--full-suite]

Each way is timed from where somebody wants a pristine guest until that one has answered `guest.run(["true"])`. Killing
what was there before is not timed, nor what is made ahead:

    cold boot           boot(NAME, cold=True)
    loadvm              a QEMU driven by hand (bare.py) that keeps its state in a qcow2 file: the monitor's `loadvm`
    new-process clone   boot(NAME), without a pool
    pooled clone        boot(NAME) when a pool of one has a clone ready; it makes the next one meanwhile
    pooled, no refill   the same with a pool that makes no more: what the making of the next one costs the first
    reset_to            guest.reset_to(snapshot), when what it prepares for the next time is ready
    reset_to at once    the same right after another one

Then, for one guest: the private memory of clones that stand still (what they share with each other or the template is
not counted), and whether a clone of a larger guest takes longer. Last the suite: tests that make a mess of their guest,
and look first for that of others, run by pytest with reboots, with clones, and with clones out of a pool. Its times are
those of whole pytest processes; the template lies in the cache.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import bare
from boot import GUESTS
from common import interleaved, median, ratio, verdict
from tabulate import tabulate

import vmtest
from vmtest.booting import use_pool
from vmtest.cloning import clone, template
from vmtest.deadline import Deadline
from vmtest.guest import Guest
from vmtest.images import load
from vmtest.images.prepared import cached
from vmtest.model.machine import Drive
from vmtest.model.manner import Manner
from vmtest.model.snapshot import obstacle
from vmtest.model.spec import DEFAULT_GUEST, GuestSpec
from vmtest.pool import Pool
from vmtest.qemu.argv import Wiring, argv
from vmtest.qemu.qcow2 import create_overlay
from vmtest.qemu.qmp import Qmp
from vmtest.resolve import plan
from vmtest.snapshots import Snapshot

COLD, CLONE, POOLED = "cold boot", "new-process clone", "pooled clone"
CLONE_TIMES, POOLED_TIMES, POOLED_MS = 18, 150, 20.0
SUITE_TIMES, GUESTS_A_SECOND = 15, 9.0
SMALL, LARGE, LARGE_RATIO = 256, 1024, 1.15
PAUSED, PAUSED_MIB = 8, 25.0
TESTS, REBOOTS = 100, 20
SETTLED = 10  # resets after which reset_to has measured its ways

MODULE = """\
import pytest

MESS = '''
test ! -e /tmp/mess && test -e /etc/passwd && test "$(cat /proc/sys/vm/swappiness)" = 60 || exit 99
dd if=/dev/urandom of=/tmp/mess bs=1k count=64 2>/dev/null
rm -rf /etc /mnt && mkdir /mnt && mount -t tmpfs none /mnt && echo 7 >/proc/sys/vm/swappiness
'''


def test_nothing():
    pass


@pytest.mark.parametrize("number", range({tests}))
def test_mess(guest, number):
    guest.run(MESS).check()
"""


def clonable(name: str) -> bool:
    machine, qemu, _ = plan(GuestSpec(image=name))
    if why := obstacle(machine, qemu.version):
        print(f"{name} is left out: {why}\n")
    return not why


def booted(name: str, **said: object) -> float:
    start = time.perf_counter()
    with vmtest.boot(name, **said) as guest:
        guest.run(["true"]).check()
        return time.perf_counter() - start


def wait_ready(pool: Pool, number: int = 1) -> None:
    with pool._changed:
        if not pool._changed.wait_for(lambda: len(pool.ready) >= number, 120):
            raise TimeoutError(f"the pool did not get {number} clones ready: {pool.shortage}")


@contextmanager
def filled(name: str, size: int, **said: object) -> Iterator[Pool]:
    """A pool with that many clones ready."""
    pool = use_pool(size)
    try:
        vmtest.boot(name, **said).close()  # tells the pool of what to make clones
        wait_ready(pool, size)
        yield pool
    finally:
        pool.close()


def pooled(name: str, *, refill: bool) -> float:
    with filled(name, 1) as pool:
        pool.wanted = None if refill else 0
        return booted(name)


def reset(guest: Guest, snapshot: Snapshot, *, again: bool = False) -> float:
    if again:
        guest.reset_to(snapshot)
    guest.run("echo mess >/tmp/mess").check()
    start = time.perf_counter()
    guest.reset_to(snapshot)
    guest.run(["true"]).check()
    seconds = time.perf_counter() - start
    if pool := getattr(getattr(guest, "_resetter", None), "_pool", None):
        wait_ready(pool)  # also so that the other cases have the host for themselves
    return seconds


class LoadVm:
    """A machine that goes back to its saved state within the same QEMU, by hand."""

    def __init__(self, name: str, directory: Path) -> None:
        machine, qemu, _ = plan(GuestSpec(image=name))
        backing, state = directory / "empty.raw", directory / "state.qcow2"
        backing.write_bytes(bytes(512))
        create_overlay(state, str(backing), "raw", 512)
        machine = replace(machine, drives=(Drive(path=state, format="qcow2", snapshot=False),))
        pairs = {port: socket.socketpair() for port in ("console", "qmp", "agent")}
        theirs = {port: pair[1].fileno() for port, pair in pairs.items()}
        command = argv(machine, Wiring.sockets(**theirs), sandbox=qemu.sandbox)
        self._qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=list(theirs.values()))
        for _, end in pairs.values():
            end.close()
        bare.drain(pairs["console"][0])
        self._agent = pairs["agent"][0]
        bare.hello(self._agent)
        bare.spawn(self._agent, 1, ["true"])
        time.sleep(2)  # init goes on for a while after the agent answers
        self._qmp = Qmp(pairs["qmp"][0], on_event=lambda event: None, deadline=Deadline(30))
        self._monitor("savevm pristine")

    def _monitor(self, line: str) -> None:
        if said := self._qmp.execute("human-monitor-command", command_line=line, timeout=60):
            raise RuntimeError(f"{line}: {said}")

    def reset(self) -> float:
        bare.spawn(self._agent, 2, ["/bin/sh", "-c", "echo mess >/tmp/mess"])
        start = time.perf_counter()
        self._monitor("loadvm pristine")
        bare.spawn(self._agent, 2, ["true"])
        seconds = time.perf_counter() - start
        bare.spawn(self._agent, 3, ["test", "!", "-e", "/tmp/mess"])
        return seconds

    def close(self) -> None:
        self._qemu.kill()
        self._qemu.wait()
        self._qmp.close()


def ways(name: str, runs: int) -> dict[str, list[float]]:
    """Each way to a pristine guest, in turn. The two machines that go back and back are idle meanwhile."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loadvm = LoadVm(name, directory)
        stack.callback(loadvm.close)
        cases: dict[str, Callable[[], float]] = {
            COLD: partial(booted, name, cold=True),
            "loadvm": loadvm.reset,
            CLONE: partial(booted, name),
            POOLED: partial(pooled, name, refill=True),
            "pooled, no refill": partial(pooled, name, refill=False),
        }
        guest = stack.enter_context(vmtest.boot(name))
        snapshot = guest.snapshot()
        for _ in range(SETTLED):
            reset(guest, snapshot)
        cases["reset_to"] = partial(reset, guest, snapshot)
        cases["reset_to at once"] = partial(reset, guest, snapshot, again=True)
        print(f"{name}: reset_to has chosen its way: {guest.reset_way}\n")
        return interleaved(cases, runs)


def of_ways(name: str, runs: int) -> list[str]:
    seconds = ways(name, runs)
    rows = [
        (way, *(f(times) * 1000 for f in (median, min, max)), 1 / ratio(seconds, way, COLD), len(times))
        for way, times in seconds.items()
    ]
    headers = ("a pristine guest", "median ms", "min ms", "max ms", "x faster than cold", "runs")
    print(
        f"{name}: from the start to the first answered command\n\n{tabulate(rows, headers=headers, floatfmt='.1f')}\n"
    )
    cold, clone, hand_out = (median(seconds[case]) * 1000 for case in (COLD, CLONE, POOLED))
    return [
        verdict(f"{name}: ms of a {CLONE}, 1/{CLONE_TIMES} of a cold boot", clone, round(cold / CLONE_TIMES, 1)),
        verdict(f"{name}: ms of a {POOLED}, 1/{POOLED_TIMES} of a cold boot", hand_out, round(cold / POOLED_TIMES, 1)),
        verdict(f"{name}: ms of a {POOLED}", hand_out, POOLED_MS),
    ]


def private_mib(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", rollup, re.MULTILINE))) / 1024


def restored_mib(name: str, memory: int) -> float:
    """The private memory of a clone that was restored and stands still, of several: what they share is not counted."""
    machine, qemu, _ = plan(GuestSpec(image=name, memory=memory))
    manner = Manner(name=name)
    with ExitStack() as stack:
        pids = []
        for _ in range(PAUSED):
            life = clone(template(machine, qemu, manner), qemu, manner)
            stack.callback(life.close)
            pids.append(life.running.process.pid)
        return sum(map(private_mib, pids)) / PAUSED


def pooled_mib(name: str, memory: int) -> float:
    """The same for one of a pool, which has run a command: what an emulator has translated for it is its own."""
    with filled(name, PAUSED, memory=memory) as pool:
        return sum(private_mib(life.running.process.pid) for life in pool.ready) / PAUSED


def of_sizes(name: str, runs: int) -> list[str]:
    sizes = {f"{memory} MiB": memory for memory in (SMALL, LARGE)}
    seconds = interleaved({size: partial(booted, name, memory=memory) for size, memory in sizes.items()}, runs)
    restored = {size: restored_mib(name, memory) for size, memory in sizes.items()}
    private = {size: pooled_mib(name, memory) for size, memory in sizes.items()}
    rows = [
        (size, median(seconds[size]) * 1000, min(seconds[size]) * 1000, restored[size], private[size]) for size in sizes
    ]
    each = f"private MiB of each of {PAUSED} paused clones"
    headers = ("guest's memory", f"{CLONE}, median ms", "min ms", f"{each}, just restored", "out of the pool")
    print(f"{name}\n\n{tabulate(rows, headers=headers, floatfmt='.1f')}\n")
    small, large = sizes
    return [
        *(verdict(f"{name}: private MiB of a restored clone of {size}", restored[size], PAUSED_MIB) for size in sizes),
        *(verdict(f"{name}: private MiB of a pooled clone of {size}", private[size], PAUSED_MIB) for size in sizes),
        verdict(f"{name}: a clone of {large} against one of {small}", ratio(seconds, large, small), LARGE_RATIO),
    ]


def pytest_seconds(directory: Path, *options: str) -> float:
    """How long a pytest run takes; all its tests must pass."""
    command = [sys.executable, "-m", "pytest", "-qx", "-pno:cacheprovider", "--rootdir=.", *options, "test_mess.py"]
    # Or pytest would compile itself and its plugins each time.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return seconds


def reboot_seconds(directory: Path, full: bool, *options: str) -> float:
    """The suite by reboots; unless ``full``, from the time of a part of it, that of pytest's own start set aside."""
    if full:
        return pytest_seconds(directory, *options)
    empty = pytest_seconds(directory, *options, "-k", "nothing")
    part = " or ".join(f"[{number}]" for number in range(REBOOTS))
    return empty + (pytest_seconds(directory, *options, "-k", part) - empty) * TESTS / REBOOTS


def suite(name: str, workers: int, full: bool) -> dict[str, float]:
    """Seconds of the suite by each kind of guest."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "pytest.ini").write_text("[pytest]\n")
        (directory / "test_mess.py").write_text(MODULE.format(tests=TESTS))
        options = (f"--vm-guest={name}", f"-n{workers}")
        return {
            "reboots": reboot_seconds(directory, full, *options, "--vm-cold"),
            "clones, no pool": pytest_seconds(directory, *options, "--vm-pool=0"),
            "clones out of a pool": pytest_seconds(directory, *options),
        }


def of_suite(name: str, full: bool) -> list[str]:
    vmtest.boot(name).close()  # so that its template lies in the cache
    rows, verdicts = [], []
    for workers in (0, 2):
        seconds = suite(name, workers, full)
        cold, pool = seconds["reboots"], seconds["clones out of a pool"]
        rows += [(f"-n {workers}", how, took, TESTS / took, cold / took) for how, took in seconds.items()]
        bound = round(cold / SUITE_TIMES, 1)
        verdicts.append(verdict(f"{name}, -n {workers}: s of the suite, 1/{SUITE_TIMES} of reboots", pool, bound))
    told = "all measured" if full else f"reboots measured for {REBOOTS} tests and scaled to {TESTS}; all: --full-suite"
    headers = ("workers", "each test's guest", "s", "guests/s", "x faster than reboots")
    print(f"{name}: a suite of {TESTS} tests, a pristine guest each ({told}; {os.cpu_count()} cores)\n")
    print(tabulate(rows, headers=headers, floatfmt=".1f"), end="\n\n")
    most = 1000 / GUESTS_A_SECOND
    return [*verdicts, verdict(f"{name}, -n 2: ms a guest, {GUESTS_A_SECOND:g} a second", pool / TESTS * 1000, most)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--guest", nargs="+", help="by default those of the three Linux images that are built")
    parser.add_argument("--full-suite", action="store_true", help=f"reboot for all {TESTS} tests, not for {REBOOTS}")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--no-suite", action="store_true", help="leave the suite out")
    only.add_argument("--only-suite", action="store_true", help="run nothing but the suite")
    options = parser.parse_args()
    named = options.guest or [name for name in GUESTS if name == DEFAULT_GUEST or cached(load(name))]
    guests = [name for name in named if clonable(name)]
    verdicts = []
    if not options.only_suite:
        for name in guests:
            verdicts += of_ways(name, options.runs)
        verdicts += of_sizes(guests[0], options.runs)
    if not options.no_suite:
        verdicts += of_suite(guests[0], options.full_suite)
    print(*verdicts, sep="\n")


if __name__ == "__main__":
    main()
