"""What feedback buys: how much of a device's model is newly reached in the same time with it and without.

    python benchmarks/feedback.py [--seconds S] [--seeds N] [DEVICE ...]

Both are told the trace events, and count what is new in them and, where there are few, in the values of registers
(vmtest/fuzz/coverage.py). With feedback some of the sequences are ones that showed something new, changed; what has
brought more is drawn more often (vmtest/fuzz/choice.py), and so are registers that answer, where no model knows them.
Without it all are drawn. They take turns, on all CPUs. A model draws much that is new by itself: for devices that one
knows feedback is to cost nothing, for others it is to bring more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common import median, reached
from tabulate import tabulate

from vmtest.devices.target import target
from vmtest.fuzz.device import Hunt, Report

KNOWN = ("e1000e", "nvme", "usb-storage", "virtio-scsi-pci", "sd-card")
BLIND = ("edu", "intel-hda", "cirrus-vga", "AC97", "ES1370", "bochs-display", "xlnx-zcu102")
"""Of the machine a model knows the least part."""
LEAST = {KNOWN: 0.95, BLIND: 1.2}
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
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help=f"of {', '.join((*KNOWN, *BLIND))}")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1)
    wanted = options.devices or (*KNOWN, *BLIND)
    rows = {name: row(name, seeds, options.seconds) for name in wanted}
    head = ("device", "features", "without", "ratio", "kinds of events", "without")
    print(tabulate(rows.values(), head, floatfmt=("", ",.0f", ",.0f", ".2f", ".0f", ".0f")))
    print()
    for what, names in (("devices that a model knows", KNOWN), ("others", BLIND)):
        if ratios := [rows[name][3] for name in names if name in rows]:
            print(reached(f"features with feedback, of those without, {what}", median(ratios), LEAST[names]))


if __name__ == "__main__":
    main()
