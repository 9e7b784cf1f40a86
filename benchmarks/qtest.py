"""Operations a second on devices over qtest, against the same requests by a loop in C over the same kind of socket.

    python benchmarks/qtest.py [--runs N] [--accesses N]

The operations are those of a driver on an e1000e: two thirds read and write its registers, the rest memory. vmtest
takes them as values and gives values back; the loop (benchmarks/loops/qtest.c) takes lines and counts replies.

    lockstep     each waits for the last one's answer
    pipelined    as fast as QEMU takes them

Each way has a QEMU of its own; they take turns. Then, all on one CPU:

    end to end   vmtest fuzz device: sequences drawn and changed, done, trace events read, what is new of them kept;
                 QEMU is started again when it has ended, but crashes are not looked into, which another CPU does
    reset, start what each rung of the ladder costs, from the machine's reset button to a QEMU that was just started
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from common import interleaved, median, reached
from executors import compiler
from tabulate import tabulate

from vmtest.devices.access import Access, Load, Read, Reset, Store, Write, encode
from vmtest.devices.bench import Bench
from vmtest.devices.session import Session
from vmtest.devices.target import target
from vmtest.fuzz.device import Hunt

TARGETS = {"lockstep": 0.6, "pipelined": 0.8}
"""How much of the C loop's operations a second."""
END_TO_END = 25_000
"""Operations a second: the median of the devices."""
DEVICES = ("e1000e", "ide-hd", "nvme", "sd-card", "virtio-blk-pci", "virtio-net-pci", "usb-tablet")


def accesses(number: int, base: int, seed: int = 0) -> list[Access]:
    draw = random.Random(seed)
    found = list[Access]()
    for _ in range(number):
        register = base + 4 * draw.randrange(0x1600)
        match draw.randrange(6):
            case 0 | 1:
                found.append(Read(register, 4))
            case 2 | 3:
                found.append(Write(base + 0x5400 + 4 * draw.randrange(32), draw.getrandbits(32), 4))
            case 4:
                found.append(Store(0x100000 + 16 * draw.randrange(4096), draw.randbytes(16)))
            case _:
                found.append(Load(0x100000 + 16 * draw.randrange(4096), 16))
    return found


def machine(stack: ExitStack) -> tuple[Bench, int]:
    bench = stack.enter_context(Bench())
    nic = bench.pci("e1000e")
    nic.enable()
    return bench, nic.bar(0).address


def ours(bench: Bench, several: Sequence[Access], lockstep: bool) -> float:
    start = time.perf_counter()
    done = bench.run(several, lockstep=lockstep)
    seconds = time.perf_counter() - start
    assert done.crash is None
    assert len(done.replies) == len(several)
    return seconds


def by_hand(program: Path, bench: Bench, file: Path, mode: str, number: int) -> float:
    sock = bench.session.qtest.fileno()
    command = [program, file, str(sock), mode]
    words = subprocess.run(command, check=True, capture_output=True, text=True, pass_fds=[sock]).stdout.split()
    assert int(words[1]) == number
    return float(words[0])


def end_to_end(device: str, seconds: float, *, feedback: bool) -> tuple[float, float]:
    """Operations a second, and how many of a sequence's there are."""
    found, qemu = target(device)
    hunt = Hunt(found, qemu, 1, feedback=feedback, confirming=False)
    report = hunt.run(seconds=seconds, told=lambda report, made: None)
    return report.operations / report.fuzzing, report.operations / report.sequences


def rungs(device: str, runs: int) -> tuple[float, float]:
    """Milliseconds of a reset, with the device mapped again; and of a start, up to its first answer."""
    found, qemu = target(device)
    resets, starts = [], []
    for _ in range(runs):
        begin = time.perf_counter()
        with Session(found.board, qemu, told=True) as session:
            session.run(found.begin)
            starts.append(time.perf_counter() - begin)
            for _ in range(10):
                begin = time.perf_counter()
                session.run((Reset(), *found.begin))
                resets.append(time.perf_counter() - begin)
    return 1000 * median(resets), 1000 * median(starts)


def pin(cpus: set[int]) -> None:
    """Have all our threads on these: QEMUs are started by one of them, and inherit that."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cpus)


def on_one_cpu(seconds: float, runs: int) -> None:
    before = os.sched_getaffinity(0)
    pin({max(before)})
    try:
        rows = []
        for device in DEVICES:
            rate, length = end_to_end(device, seconds, feedback=True)
            without, _ = end_to_end(device, seconds, feedback=False)
            rows.append((device, rate, without, length, *rungs(device, runs)))
    finally:
        pin(before)
    head = ("device", "operations/s", "without feedback", "a sequence", "reset ms", "start ms")
    print(tabulate(rows, head, floatfmt=("", ",.0f", ",.0f", ".0f", ".1f", ".0f")))
    print()
    print(reached("end to end, on one CPU", median([row[1] for row in rows]), END_TO_END))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--accesses", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=15, help="of each device, end to end")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program, file = directory / "qtest", directory / "lines"
        subprocess.run(
            [*compiler(), "-std=gnu11", "-O2", "-o", program, Path(__file__).parent / "loops/qtest.c"], check=True
        )
        ways = {}
        for mode in TARGETS:
            bench, base = machine(stack)
            several = accesses(options.accesses, base)
            ways[mode] = partial(ours, bench, several, mode == "lockstep")
            bench, _ = machine(stack)
            ways[f"{mode} in C"] = partial(by_hand, program, bench, file, mode, options.accesses)
        file.write_bytes(b"\n".join(map(encode, several)) + b"\n")
        rates = {
            way: [options.accesses / seconds for seconds in times]
            for way, times in interleaved(ways, options.runs).items()
        }
    rows = [(way, median(several), len(several)) for way, several in rates.items()]
    print(tabulate(rows, ("way", "operations/s", "runs"), floatfmt=("", ",.0f", "d")))
    print()
    for mode, least in TARGETS.items():
        print(reached(f"{mode}: of the C loop", median(rates[mode]) / median(rates[f"{mode} in C"]), least))
    print()
    on_one_cpu(options.seconds, options.runs)


if __name__ == "__main__":
    main()
