"""The command ``vmtest insn``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vmtest.executors import EXECUTORS

VMTEST = str(Path(sys.executable).with_name("vmtest"))


def _vmtest(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([VMTEST, "insn", *args], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


HIGH = ("--set", "rbx=0xffffffffffffff00", "--set", "rcx=0xffffffffffffff00")


def test_side_by_side() -> None:
    """Where executors differ the table marks it, the last line says who stands alone, and the exit code is 1; it is 0
    where they agree.
    """
    said = _vmtest("run", "c4e263f5c1", *HIGH, "--executors", "unicorn,native", code=1)
    lines = said.stdout.splitlines()
    assert lines[1] == "pdep eax,ebx,ecx"
    assert next(line.split() for line in lines if "rax" in line and "!=" in line)[1:3] == ["rax", "0x0"]
    assert lines[-1] == "they differ: rax"
    said = _vmtest("run", "x86_64 4801d8 rax=1 rbx=2", "--executors", "unicorn,native")
    assert said.stdout.splitlines()[-1] == "no difference"
    again = _vmtest("run", *["x86_64", "4801d8", "rax=0x1", "rbx=0x2"], "--executors", "unicorn,native")
    assert again.stdout == said.stdout


def test_one_executor_and_memory() -> None:
    """A single executor is run without a comparison; --mem sets what the case reads."""
    said = _vmtest("run", "8b0424", "--mem", "0x1000=2a", "--executors", "unicorn")
    assert "0x2a" in said.stdout
    assert said.stdout.splitlines()[-1] == "nothing to compare it with"


def test_json() -> None:
    """--json says all of it: the case as a line, whether they differ, each outcome."""
    said = json.loads(_vmtest("run", "0f0b", "--executors", "unicorn,native", "--json").stdout)
    assert (said["case"], said["differs"]) == ("x86_64 0f0b", False)
    assert said["outcomes"]["native"]["vector"] == 6
    assert said["outcomes"]["unicorn"]["registers"]["rsp"] == 0x20001000


def test_list() -> None:
    """The executors are listed, with what each runs and its version."""
    rows = _vmtest("list").stdout.splitlines()
    assert list(dict.fromkeys(row.split()[0] for row in rows[2:])) == list(EXECUTORS)
    by_name = {row.split()[0]: row for row in rows[2:]}
    assert re.search(r"QEMU \d+\.\d+\.\d+, TCG, -cpu (max|rv64)$", by_name["qemu"])
    assert "riscv64 riscv32 mips32" in by_name["unicorn"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["run", "9"], "'9' are not bytes in hex: 1 digits"),
        (["run", "90", "--set", "rax"], "'rax' is neither REGISTER=NUMBER nor [PLACE]=HEX"),
        (["run", "90", "--set", "x0=1"], "x86_64 has no register 'x0' that can be set"),
        (["run", "90", "--mem", "9000=00"], "1 at 0x2328 are not in it"),
        (["run", "90", "--mem", "much=00"], "'much' is not a number"),
        (["run", "90", "--isa", "vax"], "unknown instruction set 'vax'"),
        (["run", "90", "--executors", "bochs"], "unknown executor 'bochs'"),
        (["run", "90", "--executors", "native:x"], "'native:x' is no executor"),
        (["run", "90", "--executors", "qemu:"], "'qemu:' is no executor"),
        (["run", "90", "--executors", "qemu:/nowhere"], "the QEMU binary /nowhere cannot be used"),
        (["run", "90", "--executors", ","], "--executors names none"),
        (["run", "2000028b", "--isa", "aarch64", "--executors", "kvm"], "kvm does not run aarch64"),
    ],
)
def test_bad_input(args: list[str], told: str) -> None:
    """What cannot be is one error that says what, and exit code 2."""
    said = _vmtest(*args, code=2)
    assert said.stdout == ""
    assert said.stderr.startswith(f"vmtest: usage error: {told}") or told in said.stderr.splitlines()[0]
