"""Compile the programs that are not Python before the package is put together: each for the machines it runs on."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Sources in images/, and what each is compiled for: the output is beside it, its suffix the target.
PROGRAMS = {
    "_agent/agent.c": ("x86_64", "aarch64", "riscv64"),
    "_executors/native.c": ("x86_64",),
    "_executors/loops.c": ("x86_64", "aarch64", "riscv64"),
    "_executors/runner_x86_64.S": ("x86_64",),
    "_executors/runner_aarch64.S": ("aarch64",),
    "_executors/runner_riscv64.S": ("riscv64",),
}
# Those that a process of ours loads are shared, and native.c moves itself to another address.
MORE = {"_executors/loops.c": ["-fPIC", "-shared"], "_executors/native.c": ["-fPIC", "-static"]}
# No libc: they make their own system calls, so that 0.1 s compiles all targets (musl would take 90 s).
FLAGS = "-std=c11 -Os -Wall -Wextra -Werror -ffreestanding -nostdlib -s -fno-stack-protector".split()  # noqa: SIM905
FLAGS += ["-fno-sanitize=all", "-fno-builtin"]


class ProgramsBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":  # the sdist ships the source only
            return
        for name, targets in PROGRAMS.items():
            source = Path(self.root, "images", name)
            for target in targets:
                output = source.with_suffix(f".{target}")
                command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{target}-linux-none", *FLAGS]
                command += MORE.get(name, ["-static"])
                subprocess.run([*command, "-o", str(output), str(source)], check=True)
                self.app.display_info(f"compiled {output.name} ({output.stat().st_size} bytes)")
        stamp = hashlib.sha256()  # as vmtest/executors/programs.py has it
        for source in sorted(Path(self.root, "images", "_executors").iterdir()):
            if source.suffix in (".c", ".h", ".S"):
                stamp.update(source.name.encode() + b"\0" + source.read_bytes())
        Path(self.root, "images", "_executors", "compiled").write_text(stamp.hexdigest() + "\n")
        if version == "standard":  # an editable installation reads images/ beside the package
            build_data["force_include"]["images"] = "vmtest/images/data"
