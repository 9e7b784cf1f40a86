"""Public reproducers, through the importer and the replayer: whether the QEMU here ends by each as was observed.

    python benchmarks/known.py FILE [--only TEXT]

FILE is JSON, which is no part of vmtest: a list of objects with ``name``, ``binary``, ``args``, ``commands`` (lines of
qtest) and ``observed_on_7_2``: what came of them with ``tcg_hlt_lockstep`` and ``qtest_accel_pipelined``. Of assertions
the function and the first word of what is asserted are compared; of other ends that it was no exit in order. What is to
crash is tried five times.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

from common import reached

from vmtest.devices.reproducer import TRIES, Reproducer, run
from vmtest.devices.upstream import from_shell
from vmtest.errors import HostError
from vmtest.host import find_emulator

MODES = {"tcg_hlt_lockstep": True, "qtest_accel_pipelined": False}
"""By what was observed: whether each operation waits for the last one's answer."""


def imported(row: dict[str, object]) -> Reproducer:
    """As ``vmtest import`` takes it."""
    commands = row["commands"]
    assert isinstance(commands, list)
    return from_shell("\n".join([f"cat << EOF | {row['binary']} {row['args']} -qtest stdio", *commands, "EOF", ""]))


def ends(found: Reproducer) -> str:
    """How QEMU ends, as it is observed."""
    try:
        crash = run(found, find_emulator(found.binary))
    except HostError as error:
        return "not-run" if "is not a valid device model name" in str(error.evidence) else f"it failed: {error}"
    return "survives" if crash is None else f"{'exit' if crash.is_clean else 'CRASH'} {crash.signature}"


def is_same(observed: str, now: str) -> bool:
    """Whether they say the same."""
    if asserted := re.search(r"ASSERT .*?:\d+ (\w+): (\w+)", observed):
        return f" {asserted[1]}: {asserted[2]}" in now
    return observed.split(":")[0].split()[0] == now.split()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("--only", default="", metavar="TEXT", help="those with this in their names")
    options = parser.parse_args()
    same = total = 0
    rows = [row for row in json.loads(options.file.read_text()) if options.only in row["name"]]
    for row in rows:
        found = imported(row)
        for mode, observed in row["observed_on_7_2"].items():
            if mode not in MODES:
                continue
            for _ in range(TRIES):
                if is_same(observed, now := ends(replace(found, lockstep=MODES[mode]))) or not observed.startswith(
                    "CRASH"
                ):
                    break
            total += 1
            same += is_same(observed, now)
            if not is_same(observed, now):
                print(f"{row['name']}, {mode}: {observed} was observed, and now: {now}", flush=True)
    print(f"{len(rows)} reproducers, {same} of {total} observations the same")
    print(reached("observations that are the same, of all", same / total, 1.0))
    return 0 if same == total else 1


if __name__ == "__main__":
    raise SystemExit(main())
