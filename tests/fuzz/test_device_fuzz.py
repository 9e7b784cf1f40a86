"""``vmtest fuzz device`` on a real QEMU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vmtest.devices.reproducer import read
from vmtest.host import find_emulator

VMTEST = Path(sys.executable).parent / "vmtest"


def _vmtest(*args: str, where: Path, code: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([VMTEST, *args], capture_output=True, text=True, timeout=300, check=False, cwd=where)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def test_a_known_crash_is_found(tmp_path: Path) -> None:
    """From nothing, the device edu ends QEMU by a DMA of nonsense: found, confirmed on a QEMU that was just started,
    made as small as it goes, and there again when it is replayed.
    """
    if (qemu := find_emulator("qemu-system-x86_64")).version >= (10, 0, 2):
        pytest.skip(f"{qemu.version_text} has mended it")
    said = _vmtest("fuzz", "device", "edu", "--time", "10", "--seed", "1", where=tmp_path, code=1).stdout
    assert "EDU: DMA range N-N out of bounds" in said
    (file,) = (tmp_path / "findings").iterdir()
    found = read(file)
    assert len(found.accesses) <= 8
    assert found.signature.startswith("EDU: DMA range")
    assert "1 of 1 are still there" in _vmtest("replay", str(file), where=tmp_path, code=1).stdout


def test_what_is_told(tmp_path: Path) -> None:
    """A run without a crash tells its numbers, as lines of JSON too, and leaves no file and no process."""
    args = ("fuzz", "device", "e1000e", "--time", "2", "--seed", "1")
    said = _vmtest(*args, where=tmp_path, code=0).stdout
    assert "seed 1" in said
    assert "no crash" in said
    begin, end = map(json.loads, _vmtest(*args, "--json", where=tmp_path, code=0).stdout.splitlines())
    assert (begin["event"], end["event"], end["target"], end["crashes"]) == ("begin", "end", "e1000e", [])
    assert end["operations"] > 1000
    assert end["sequences"] >= end["resets"] * 8
    assert list((tmp_path / "findings").iterdir()) == []


def test_bad_input(tmp_path: Path) -> None:
    """What cannot be worked on is one error, exit code 2, with what to do, and no traceback."""
    for args, told in (
        (("e1000x",), "such as e1000"),
        (("edu", "--machine", "nowhere"), "unsupported machine type"),
        (("edu", "--qemu", "qemu-system-zx80"), "is not on PATH"),
        (("edu", "--time", "0"), "must be a number above 0"),
        (("edu", "--arg=-nonsense"), "invalid option"),
        (("virtio-net-pci", "--machine", "isapc"), "No 'PCI' bus found"),
        ((), "Missing argument 'DEVICE'"),
    ):
        done = _vmtest("fuzz", "device", *args, where=tmp_path, code=2)
        assert told in done.stderr, (args, done.stderr)
        assert "Traceback" not in done.stderr
