"""Cases a second of each executor, against the same loop written by hand in C over the same library or ioctl.

    python benchmarks/executors.py [--runs N] [--cases N] [--seed N] [--executors NAME ...]

The cases are single x86-64 instructions as programs have them (two thirds work on general registers, one third on
vectors; two fifths of all touch memory), with random registers, drawn from the seed. All run the same ones, each with
its own code, registers and memory; the loops (benchmarks/loops) read them from a file.

    NAME         the executor through Executor.run, a list of cases in, a list of outcomes out; the worker is up already
    NAME in C    the loop by hand; it reads no outcome and writes none, which is what the ratio shows
    native raw   the executor's own program, which is C, from packed cases to packed outcomes: what Python costs

Then `vmtest fuzz insn` from end to end: one worker with all its executors on one CPU, and two on two. Beside it, what
two CPUs of this machine are worth: two runs of one worker at a time, of half the cases each, that share nothing.

They take turns. How many cases came to their end is compared too, lest one does less than another.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from common import interleaved, median, reached
from tabulate import tabulate

from vmtest.errors import HostError
from vmtest.executors import EXECUTORS, Executor, executor, worker
from vmtest.fuzz.campaign import Plan, run
from vmtest.fuzz.generate import select
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import DATA, PAGE, isa

LOOPS = Path(__file__).parent / "loops"
TARGETS = {"unicorn": (40_000, 0.5), "kvm": (25_000, 0.6), "native": (40_000, None), "qemu": (5_000, None)}
"""By executor: cases a second, and how much of the C loop's; None where there is none."""
X86 = isa("x86_64")
BULK = [name for name, row in EXECUTORS.items() if X86.name in row.isas and row.bulk]

# Opcode (Intel SDM, volume 2, its opcode maps), bytes of the immediate; all have a ModRM byte.
GENERAL = [
    *((row, 0) for row in ("01", "03", "09", "0b", "11", "13", "19", "1b", "21", "23", "29", "2b", "31", "33")),
    *((row, 0) for row in ("39", "3b", "85", "87", "89", "8b", "63", "d1", "d3", "0fa3", "0fab", "0faf", "0fb6")),
    *((row, 0) for row in ("0fb7", "0fbe", "0fbf", "0fbc", "0fbd", "0fc1", "0f44", "0f4f", "0f94", "0f9c")),
    ("69", 4), ("6b", 1), ("81", 4), ("83", 1), ("c1", 1), ("c7", 4), ("0fa4", 1),
]  # fmt: skip
VECTOR = [
    *((f"660f{row}", 0) for row in ("6f", "7f", "fe", "d4", "ef", "db", "eb", "62", "74", "e4", "f4", "da", "58")),
    *((f"0f{row}", 0) for row in ("10", "28", "54", "57", "58", "59", "5c", "5d", "14", "c2")),
    *((f"f20f{row}", 0) for row in ("10", "58", "59", "5e", "51")),
    ("660f70", 1), ("660fc6", 1), ("660f3800", 0), ("660f3a0f", 1),
]  # fmt: skip


def instruction(draw: random.Random) -> tuple[bytes, int | None]:
    """Its code, and the register that has an address, where one does."""
    opcode, immediate = draw.choice(GENERAL if draw.random() < 0.66 else VECTOR)
    code = bytes.fromhex(opcode)
    prefix, code = (code[:1], code[1:]) if code[0] in (0x66, 0xF2) else (b"", code)
    wide = b"\x48" if opcode in ("63", "0fbe") or draw.random() < 0.5 else b""
    base = draw.choice((1, 2, 3, 6, 7)) if draw.random() < 0.4 else None
    if opcode == "0fc2":
        immediate = 1
    # Groups take their operation from the field of the register; one that all of them have is 0, and 5 for shifts.
    register = {"c7": 0, "81": 0, "83": 0}.get(opcode, draw.randrange(8))
    if opcode in ("d1", "d3", "c1") and register == 6:
        register = 5
    if opcode in ("0fa3", "0fab"):  # the bit may be far away in memory
        base = None
    modrm = bytes([register << 3 | base]) if base is not None else bytes([0xC0 | register << 3 | draw.randrange(8)])
    number = draw.randbytes(immediate) if opcode != "0fc2" else bytes([draw.randrange(8)])
    return prefix + wide + code + modrm + number, base


def make(number: int, seed: int) -> list[Case]:
    draw = random.Random(seed)
    names = [register.name for register in X86.registers[:8]]
    pick = (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
    cases = []
    for _ in range(number):
        code, base = instruction(draw)
        values = {name: draw.choice((draw.getrandbits(64), *pick)) for name in names if name != "rsp"}
        if base is not None:
            values[names[base]] = DATA + 16 * draw.randrange(2 * PAGE // 16)
        values |= {f"xmm{index}": draw.getrandbits(128) for index in range(8)}
        memory = ((values[names[base]] - DATA, draw.randbytes(16)),) if base is not None else ()
        cases.append(Case(isa=X86, code=code, state=X86.state(values), memory=memory))
    return cases


def compiler() -> list[str]:
    return ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]


def compile_loop(name: str, directory: Path) -> Path | None:
    """The loop over what that executor is over, where there is one."""
    source, output = LOOPS / f"{name}.c", directory / name
    if not source.is_file():
        return None
    flags: list[str] = []
    if name == "unicorn":
        spec = find_spec("unicorn")
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        library = package / "lib"
        flags = [f"-I{package / 'include'}", str(library / "libunicorn.so.2"), f"-Wl,-rpath,{library}"]
    subprocess.run([*compiler(), "-std=gnu11", "-O2", "-o", str(output), str(source), *flags], check=True)
    return output


def by_hand(loop: Path, file: Path, told: dict[str, int]) -> float:
    words = subprocess.run([loop, file], check=True, capture_output=True, text=True).stdout.split()
    told[f"{loop.name} in C"] = int(words[1])
    return float(words[0])


def through(found: Executor, cases: Sequence[Case], told: dict[str, int]) -> float:
    fresh = [replace(case) for case in cases]  # which have not been packed yet
    start = time.perf_counter()
    outcomes = found.run(fresh)
    seconds = time.perf_counter() - start
    told[found.name] = sum(outcome.status == "ok" for outcome in outcomes)
    return seconds


def raw(found: Executor, cases: Sequence[Case], told: dict[str, int]) -> float:
    """The same batches, packed before and unpacked after the clock."""
    batches = [worker._pack(cases[at : at + 256]) for at in range(0, len(cases), 256)]
    assert sum(number for number, _ in batches) == len(cases)
    answers = []
    start = time.perf_counter()
    for _, packed in batches:
        found._send(packed)
        size, number = worker.HEAD.unpack(found._receive(worker.HEAD.size))
        answers.append((number, found._receive(size)))
    seconds = time.perf_counter() - start
    ok = 0
    for number, data in answers:
        ok += sum(outcome.status == "ok" for outcome in Outcome.unpack(X86, data, number))
    told[f"{found.name} raw"] = ok
    return seconds


def measured(names: Sequence[str], cases: Sequence[Case], runs: int) -> list[str]:
    """Prints the table; a verdict for each target."""
    told: dict[str, int] = {}
    ways: dict[str, Callable[[], float]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = directory / "cases"
        file.write_bytes(b"".join(case.pack() for case in cases))
        executors = []
        for name in names:
            try:
                found = stack.enter_context(executor(name, X86))
            except HostError as error:
                print(f"{name} is left out: {error.message}\n")
                continue
            executors.append(found)
            ways[name] = partial(through, found, cases, told)
            if loop := compile_loop(name, directory):
                ways[f"{name} in C"] = partial(by_hand, loop, file, told)
            if name == "native":
                ways["native raw"] = partial(raw, found, cases, told)
        seconds = interleaved(ways, runs)
        deaths = sum(found.deaths for found in executors)
    speed = {way: len(cases) / median(times) for way, times in seconds.items()}
    # Of the runs that took turns each is held against the one beside it, so that what slows both shows in neither.
    share = {
        name: median([c / p for c, p in zip(seconds[f"{name} in C"], seconds[name], strict=True)])
        for name in speed
        if f"{name} in C" in speed
    }
    rows = [(way, speed[way], share.get(way), told[way], len(seconds[way])) for way in ways]
    print(f"{len(cases)} cases, {deaths} deaths\n")
    print(tabulate(rows, headers=("way", "cases/s", "of the C loop", "came to their end", "runs"), floatfmt=",.2f"))
    print()
    for name in share:
        if told[name] != told[f"{name} in C"]:
            print(
                f"not the same work: {name} had {told[name]} cases come to their end, the loop {told[f'{name} in C']}\n"
            )
    verdicts = []
    for name, (least, part) in TARGETS.items():
        if name in speed:
            verdicts.append(reached(f"{name}: cases/s", speed[name], least))
        if name in share and part is not None:
            verdicts.append(reached(f"{name}: of the C loop", share[name], part))
    return verdicts


END_TO_END = ("unicorn", "kvm", "native")


def end_to_end(cpus: set[int], jobs: int, cases: int, seed: int) -> float:
    """Seconds of `vmtest fuzz insn` for the cases, all that it starts on those CPUs: making, running, comparing,
    clustering and minimising. What it asks the executors before the first case is not in it.
    """
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        names = select(X86, None)
        plan = Plan(isa=X86.name, executors=END_TO_END, names=names, seed=seed, cases=cases, jobs=jobs)
        return run(plan).seconds
    finally:
        os.sched_setaffinity(0, all_of_them)


def side_by_side(cpus: list[int], cases: int, seed: int) -> float:
    """Seconds until both of two runs at a time, a CPU each, have run so many cases."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return max(pool.map(end_to_end, *zip(*(({cpu}, 1, cases, seed + cpu) for cpu in cpus), strict=True)))


def fuzzing(runs: int, cases: int, seed: int) -> list[str]:
    """Prints the table of `vmtest fuzz insn`; a verdict for each target."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    ways = {"one worker, one CPU": partial(end_to_end, {cpus[0]}, 1, cases, seed)}
    if len(cpus) == 2:
        ways["two workers, two CPUs"] = partial(end_to_end, set(cpus), 2, cases, seed)
        ways["two runs at a time"] = partial(side_by_side, cpus, cases // 2, seed)
    seconds = interleaved(ways, runs)
    rows = [(way, cases / median(times), len(times)) for way, times in seconds.items()]
    print(f"vmtest fuzz insn --executors {','.join(END_TO_END)}, {cases} cases\n")
    print(tabulate(rows, headers=("way", "cases/s", "runs"), floatfmt=",.0f"))
    print()
    one, *others = seconds.values()
    verdicts = [reached("end to end: cases/s", cases / median(one), 5_000)]
    if others:
        workers, apart = (median([a / b for a, b in zip(one, two, strict=True)]) for two in others)
        print(f"two runs at a time are {apart:.2f} times one here\n")
        verdicts.append(reached("two workers against one", workers, 1.8))
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--cases", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--executors", nargs="+", default=BULK)
    options = parser.parse_args()
    verdicts = measured(options.executors, make(options.cases, options.seed), options.runs)
    verdicts += fuzzing(max(1, options.runs // 3), 40 * options.cases, options.seed)  # a minute of one, as by default
    print(*verdicts, sep="\n")


if __name__ == "__main__":
    main()
