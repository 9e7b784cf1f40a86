"""What feedback buys: how much of a device's model is newly reached in the same time with it and without.

    python benchmarks/feedback.py [--seconds S] [--seeds N] [DEVICE ...]

Both are told the trace events, and count what is new in them and, where there are few, in the values of registers
(vmtest/fuzz/coverage.py). With feedback some of the sequences are ones that showed something new, changed; what has
brought more is drawn more often (vmtest/fuzz/choice.py), and so are registers that answer. Without it all are drawn.
They take turns, on all CPUs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common import median, reached
from tabulate import tabulate

from vmtest.devices.target import target
from vmtest.fuzz.device import Hunt, Report

DEVICES = ("e1000e", "nvme", "usb-storage", "virtio-scsi-pci", "sd-card", "edu", "xlnx-zcu102")
LEAST = 1.0
"""Features with feedback, as a multiple of those without: the median of the devices."""


def run(name: str, seed: int, seconds: float, *, feedback: bool) -> Report:
    found, qemu = target(name, binary="qemu-system-aarch64" if name == "xlnx-zcu102" else "")
    # A crash is not looked into, which takes longer for some than for others.
    hunt = Hunt(found, qemu, seed, feedback=feedback, counting=True, confirming=False)
    return hunt.run(seconds=seconds, told=lambda report, made: None)


def row(name: str, seeds: Sequence[int], seconds: float) -> tuple[str, float, float, float, float, float]:
    pairs = [tuple(run(name, seed, seconds, feedback=feedback) for feedback in (True, False)) for seed in seeds]
    with_it, without = ([pair[index] for pair in pairs] for index in (0, 1))
    features = [median([report.features for report in several]) for several in (with_it, without)]
    events = [median([report.events for report in several]) for several in (with_it, without)]
    return name, *features, features[0] / features[1], *events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help=f"of {', '.join(DEVICES)}")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1)
    rows = [row(name, seeds, options.seconds) for name in options.devices or DEVICES]
    head = ("device", "features", "without", "ratio", "kinds of events", "without")
    print(tabulate(rows, head, floatfmt=("", ",.0f", ",.0f", ".2f", ".0f", ".0f")))
    print()
    print(reached("features with feedback, of those without", median([one[3] for one in rows]), LEAST))


if __name__ == "__main__":
    main()
