"""The same boot driven by labgrid: QEMUDriver on the same machine, ShellDriver on its serial console.

benchmarks/boot.py runs this with a Python that has labgrid: it describes the machine on the first line of standard
input; for each further line there is one boot, and its seconds on standard output. Imports are not timed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]  # comes with labgrid
from labgrid import Environment  # type: ignore[import-not-found,unused-ignore]

PROMPT = "~ # "


def environment(machine: dict[str, Any], folder: str) -> Environment:
    """labgrid wants its configuration in a file."""
    shell = {"prompt": PROMPT, "login_prompt": "login: ", "username": "root"}
    config = {
        "targets": {"main": {"drivers": {"QEMUDriver": machine["qemu"], "ShellDriver": shell}}},
        "tools": {"qemu": machine["binary"]},
        "images": {"kernel": machine["kernel"]},
    }
    path = Path(folder) / "environment.yaml"
    path.write_text(yaml.safe_dump(config))
    return Environment(str(path))


def boot(machine: dict[str, Any]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        target = environment(machine, folder).get_target()
        qemu = target.get_driver("QEMUDriver", activate=False)
        shell = target.get_driver("ShellDriver", activate=False)
        start = time.perf_counter()
        target.activate(qemu)
        qemu.on()
        target.activate(shell)  # waits for the prompt
        shell.run_check("true")
        seconds = time.perf_counter() - start
        target.cleanup()
        return seconds


if __name__ == "__main__":
    described = json.loads(sys.stdin.readline())
    for _ in sys.stdin:
        print(boot(described), flush=True)
