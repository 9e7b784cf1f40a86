"""Many operations on many device types: whether anything of ours breaks, leaks, or is left behind.

    python benchmarks/breadth.py [--operations N] [--devices N]

The device types are taken evenly from those that can be fuzzed on the installed QEMU. That QEMU ends is no trouble, and
counted; trouble is an error of ours, a process, a file or a descriptor that is left, and memory that grows.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
from tabulate import tabulate

from vmtest.devices.reproducer import Reproducer
from vmtest.devices.survey import survey
from vmtest.devices.target import target
from vmtest.errors import VmtestError
from vmtest.fuzz.device import Hunt, Report
from vmtest.workdir import base

LONGEST = 300.0
"""Seconds that a device may take: one that ends QEMU all the time does not come to so many operations."""


class _Enough(Exception):
    pass


def fuzzed(kind: str, operations: int) -> Report:
    def told(report: Report, made: Reproducer | None) -> None:
        if report.operations >= operations:
            raise _Enough

    found, qemu = target(kind)
    hunt = Hunt(found, qemu, 1, confirming=False)
    with suppress(_Enough):
        hunt.run(seconds=LONGEST, told=told)
    return hunt.report


def left() -> tuple[int, int, int]:
    """Processes below ours, our descriptors, and directories of ours in the place for temporary files."""
    below = len(psutil.Process().children(recursive=True))
    return below, len(list(Path("/proc/self/fd").iterdir())), len(list(base().glob(f"*-{os.getpid()}-*")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=50)
    options = parser.parse_args()
    can = [row.kind for row in survey() if not row.why]
    chosen = can[:: max(1, len(can) // options.devices)][: options.devices]
    rows, troubles, before, begin = [], [], left(), time.monotonic()
    for kind in chosen:
        try:
            report = fuzzed(kind, options.operations)
        except VmtestError as error:
            troubles.append(f"{kind}: {type(error).__name__}: {error.message}")
            continue
        rows.append((kind, report.operations, report.ends, len(report.seen), psutil.Process().memory_info().rss >> 20))
        print(*rows[-1], flush=True)
        if report.operations < options.operations:
            troubles.append(f"{kind}: only {report.operations} operations in {LONGEST:g} s")
        if left() != before:
            troubles.append(f"{kind}: {left()} of processes, descriptors, directories, and {before} before")
    print(tabulate(rows, ("device", "operations", "ends of QEMU", "ways", "our MiB"), intfmt=","))
    print(f"\n{len(rows)} device types, {sum(row[1] for row in rows):,} operations, {time.monotonic() - begin:.0f} s")
    print("\n".join(troubles) or "no trouble")
    return 1 if troubles else 0


if __name__ == "__main__":
    raise SystemExit(main())
