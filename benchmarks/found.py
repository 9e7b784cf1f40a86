"""What is found in the same time on each of twenty devices, on one QEMU or another: the table of docs/found.md.

    python benchmarks/found.py [--seconds S] [--at-once N] [--bin DIR] [--findings DIR] [DEVICE ...]
    python benchmarks/found.py --table

Each device is one run of ``vmtest fuzz device`` with seed 1 and one process. What has come of it goes into
docs/found.csv, a row for each crash; a device that has rows of this QEMU's version is not run again, so that what was
broken off goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tabulate import tabulate

from vmtest.devices.reproducer import read
from vmtest.host import find_emulator

FILE = Path(__file__).parent.parent / "docs/found.csv"
FIELDS = ("qemu", "device", "seconds", "operations", "ends", "signature", "seen", "length", "sent")
DEVICES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ide-hd", "nvme", "sd-card", "edu", "virtio-iommu-pci", "virtio-gpu-pci", "virtio-scsi-pci"), ()),
    **dict.fromkeys(
        ("virtio-blk-pci", "virtio-net-pci", "virtio-serial-pci", "usb-storage", "usb-uas", "usb-ccid"), ()
    ),
    **dict.fromkeys(("e1000e", "rtl8139", "vmxnet3", "pvscsi"), ()),
    "scsi-hd,bus=hba.0 (megasas)": ("-device", "megasas,id=hba"),
    "scsi-hd,bus=hba.0 (mptsas1068)": ("-device", "mptsas1068,id=hba"),
    "xlnx-zcu102": (),
}
"""By what is worked on, QEMU's arguments beside it."""


def emulator(binary: str, folder: str) -> str:
    """Where it is."""
    return f"{folder}/{binary}" if folder else binary


def version_of(path: str) -> str:
    """As QEMU says it."""
    return ".".join(map(str, find_emulator(path).version))


def run(device: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of one device."""
    name = device.partition(" ")[0]
    path = emulator("qemu-system-aarch64" if name.startswith("xlnx") else "qemu-system-x86_64", options.bin)
    version = version_of(path)
    findings = options.findings / version / device.replace(" ", "-")
    command = [str(Path(sys.executable).with_name("vmtest")), "fuzz", "device", name, "--qemu", path]
    command += ["--time", str(options.seconds), "--findings", str(findings), "--seed", "1", "--json"]
    command += [f"--arg={word}" for word in DEVICES.get(device, ())]
    shutil.rmtree(findings, ignore_errors=True)  # of one that was broken off
    findings.mkdir(parents=True)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    common = {"qemu": version, "device": device, "seconds": options.seconds}
    # 1 says that there are crashes.
    if done.returncode not in (0, 1) or not done.stdout:
        return [{**common, "operations": 0, "ends": 0, "signature": done.stderr.partition("\n")[0]}]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    end = events[-1]
    common |= {"operations": end["operations"], "ends": end["ends"]}
    seen = {crash["signature"]: crash["seen"] for crash in end["crashes"]}
    crashes = [read(Path(event["file"])) for event in events if event["event"] == "crash"]
    return [
        {
            **common,
            "signature": crash.seen[version],
            "seen": seen.get(crash.seen[version], 1),
            "length": len(crash.accesses),
            "sent": "in lockstep" if crash.lockstep else "pipelined",
        }
        for crash in crashes
    ] or [{**common, "signature": ""}]


def known() -> list[dict[str, str]]:
    """What has been written down."""
    if not FILE.exists():
        return []
    with FILE.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Sequence[dict[str, str]]) -> str:
    """A row for each crash of a device, and in a column for each QEMU how many operations it takes there."""
    versions = sorted({row["qemu"] for row in rows}, key=lambda text: [int(word) for word in text.split(".")])
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in (row for row in rows if row["operations"] != "0"):
        words = row["signature"]
        # Places in QEMU's code are those of one build.
        key = row["device"], words.partition(" at +")[0] if len(versions) > 1 else words
        found.setdefault(key, {}).setdefault(row["qemu"], []).append(row["length"] or "-")
    came = {(row["device"], row["qemu"]): "not found" if row["operations"] != "0" else "does not start" for row in rows}

    def cells(device: str, lengths: dict[str, list[str]]) -> Iterator[str]:
        for version in versions:
            yield ", ".join(lengths.get(version, [came.get((device, version), "not run")]))

    some = {device for device, words in found if words}
    lines = [
        (device, words or "nothing", *cells(device, lengths))
        for (device, words), lengths in sorted(found.items())
        if words or device not in some
    ]
    return tabulate(lines, ("device", "how QEMU ends", *versions), tablefmt="github")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help=f"of {', '.join(DEVICES)}")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--at-once", type=int, default=2, help="devices that are run at once  [2]")
    parser.add_argument("--bin", default="", help="where the QEMU is  [PATH]")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        version = version_of(emulator("qemu-system-x86_64", options.bin))
        done = {row["device"] for row in known() if row["qemu"] == version}
        wanted = [device for device in options.devices or DEVICES if device not in done]
        with ThreadPoolExecutor(options.at_once) as pool:
            for rows in pool.map(lambda device: run(device, options), wanted):
                is_new = not FILE.exists()
                with FILE.open("a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    if is_new:
                        writer.writeheader()
                    writer.writerows(rows)
                print(rows[0]["device"], len(rows), flush=True)
    print(table(known()))


if __name__ == "__main__":
    main()
