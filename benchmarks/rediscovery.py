"""How long it takes to find known crashes of QEMU 7.2 again, from an empty corpus, with machines and devices as in the
reports on them.

    python benchmarks/rediscovery.py [--seeds N] [--seconds S] [--no-feedback] [NAME ...]

Each seed is a run of its own, which ends when the crash has been found, confirmed on a QEMU that was just started, and
made small: at most 15 operations. What is to be reached: each within 120 s, and on 4 of 5 seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

from tabulate import tabulate

from vmtest.devices.reproducer import Reproducer
from vmtest.devices.target import target
from vmtest.fuzz.device import Hunt, Report

SHARE, LARGEST = 0.8, 15


class Known(NamedTuple):
    """A crash: ``says`` is in its signature, or key. ``issue`` is upstream's."""

    name: str
    issue: str
    device: str
    says: str
    binary: str = "qemu-system-x86_64"
    machine: str = ""
    arguments: Sequence[str] = ("-m", "512M")


KNOWN = (
    Known("ahci prep_size", "gitlab 2777", "ide-hd", "prep_size >= 0"),
    Known("ahci null", "none known", "ide-hd", "SIGSEGV"),
    Known("packed queue", "gitlab 2803", "virtio-net-pci,packed=on", "_le_cached"),
    Known(
        "msix vector", "gitlab 2631", "virtio-mouse-pci,vectors=19923041", "msix_vector_use", "qemu-system-i386", "pc"
    ),
    Known("iommu probe", "gitlab 2359", "virtio-iommu-pci", "sz == output_size"),
    Known("can fifo", "gitlab 1425", "xlnx-zcu102", "fifo8_pop", "qemu-system-aarch64", "", ()),
    Known("edu", "none known", "edu", "EDU: DMA range"),
)


class _Found(Exception):
    pass


class _Over(Exception):
    pass


def seconds_to(known: Known, seed: int, limit: float, *, feedback: bool = True) -> tuple[float, int] | None:
    """How long it took, and how many operations are left of it; None where it was not found."""
    found, qemu = target(known.device, binary=known.binary, machine=known.machine, arguments=known.arguments)
    begin = time.monotonic()
    last: list[Reproducer] = []

    def told(report: Report, made: Reproducer | None) -> None:
        if made and known.says in f"{made.signature} {made.title}" and len(made.accesses) <= LARGEST:
            last.append(made)
            raise _Found
        if time.monotonic() - begin > limit:  # what is made smaller then comes too late
            raise _Over

    try:
        Hunt(found, qemu, seed, feedback=feedback).run(seconds=limit, told=told)
    except _Found:
        return time.monotonic() - begin, len(last[0].accesses)
    except _Over:
        pass
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(known.name for known in KNOWN)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--no-feedback", action="store_true", help="all is drawn: to compare with")
    options = parser.parse_args()
    rows = []
    for known in (known for known in KNOWN if not options.names or known.name in options.names):
        tries = [
            seconds_to(known, seed, options.seconds, feedback=not options.no_feedback)
            for seed in range(1, options.seeds + 1)
        ]
        times = [one for one in tries if one is not None and one[0] <= options.seconds]
        said = [f"{one[0]:.0f}" if one else "-" for one in tries]
        most = max((operations for _, operations in times), default=0)
        enough = len(times) >= SHARE * options.seeds and most <= LARGEST
        rows.append((known.name, known.issue, known.device, " ".join(said), most, enough))
        print(f"{known.name}: {' '.join(said)} s, at most {most} operations", flush=True)
    head = ("crash", "upstream's issue", "device", "seconds, by seed", "operations", "reached")
    print(tabulate([(*row[:5], "met" if row[5] else "MISSED") for row in rows], head))
    return 0 if all(row[5] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
