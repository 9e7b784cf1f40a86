"""``vmtest fuzz device`` on a real QEMU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
from oncase import needs

from vmtest.devices.reproducer import read
from vmtest.host import find_emulator

VMTEST = Path(sys.executable).parent / "vmtest"


def _vmtest(*args: str, where: Path, code: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([VMTEST, *args], capture_output=True, text=True, timeout=300, check=False, cwd=where)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def test_a_known_crash_is_found(tmp_path: Path) -> None:
    """From nothing, the device edu ends QEMU by a DMA of nonsense: found, confirmed on a QEMU that was just started,
    made smaller, and there again when it is replayed.
    """
    if (qemu := find_emulator("qemu-system-x86_64")).version >= (10, 0, 2):
        pytest.skip(f"{qemu.version_text} has mended it")
    args = ("fuzz", "device", "edu", "--time", "10", "--seed", "1", "--json")
    lines = [json.loads(line) for line in _vmtest(*args, where=tmp_path, code=1).stdout.splitlines()]
    first, *smaller = (line for line in lines if line.get("signature", "").startswith("EDU: DMA range"))
    assert first["event"] == "crash"
    file = tmp_path / first["file"]
    # Five operations, where there is time: how far that goes in so many seconds is the machine's.
    assert [line["event"] for line in smaller] == ["smaller"] * len(smaller)
    assert first["unfinished"]
    assert len(read(file).accesses) == smaller[-1]["operations"] < first["operations"]
    assert read(file).unfinished == smaller[-1]["unfinished"]
    assert "1 of 1 are still there" in _vmtest("replay", str(file), where=tmp_path, code=1).stdout


def test_structures_are_known(tmp_path: Path) -> None:
    """From nothing, a network card on virtio ends QEMU 7.2 by a packet in a queue that is too short: it takes a queue
    with descriptors, which is known. Two processes find it, in one file, and it is there again when it is replayed.
    """
    if (qemu := find_emulator("qemu-system-x86_64")).version >= (8, 0, 0):
        pytest.skip(f"{qemu.version_text} may have mended it")
    command = [VMTEST, "fuzz", "device", "virtio-net-pci", "--time", "300", "--seed", "2", "-j", "2", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True) as run:
        assert run.stdout is not None
        lines = [json.loads(run.stdout.readline())]
        while "iov_copy" not in lines[-1].get("signature", ""):
            lines.append(json.loads(run.stdout.readline()))
        os.kill(run.pid, signal.SIGINT)
        lines += map(json.loads, run.stdout)
    assert run.returncode == 1
    assert (lines[0]["event"], lines[-1]["event"]) == ("begin", "end")
    files = [tmp_path / line["file"] for line in lines if line["event"] == "crash"]
    assert len(files) == len(set(files)) == len(lines[-1]["crashes"]), lines
    (found,) = (file for file in files if "iov_copy" in read(file).signature)
    assert "1 of 1 are still there" in _vmtest("replay", str(found), where=tmp_path, code=1).stdout


def test_several_processes_end_together(tmp_path: Path) -> None:
    """Ctrl-C, or the end of who started them, ends all processes and QEMUs; with a summary of what there was."""
    command = [VMTEST, "fuzz", "device", "sd-card", "--time", "100", "--seed", "1", "-j", "2", "--json"]
    for how, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
        ) as run:
            _until(lambda: len(_qemus(run.pid)) >= 2)
            below = [run.pid, *(one.pid for one in psutil.Process(run.pid).children(recursive=True))]
            # A terminal's Ctrl-C is for all of them.
            (os.killpg if how == signal.SIGINT else os.kill)(run.pid, how)
            said, words = run.communicate(timeout=30)
            assert run.returncode == code
            _until(partial(_are_gone, below))
        assert "Traceback" not in words
        events = [json.loads(line)["event"] for line in said.splitlines()]
        assert events == (["begin", "end"] if how == signal.SIGINT else ["begin"])


def test_ctrl_c_ends_what_is_done_beside_the_run(tmp_path: Path) -> None:
    """Ctrl-C while a crash is made smaller ends that too: with the crash, a summary, and no QEMU left."""
    if (qemu := find_emulator("qemu-system-x86_64")).version >= (10, 0, 2):
        pytest.skip(f"{qemu.version_text} has mended it")
    command = [VMTEST, "fuzz", "device", "edu", "--time", "300", "--seed", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True) as run:
        assert run.stdout is not None
        while json.loads(run.stdout.readline())["event"] != "crash":
            pass
        below = [run.pid, *(one.pid for one in psutil.Process(run.pid).children(recursive=True))]
        os.kill(run.pid, signal.SIGINT)
        said, _ = run.communicate(timeout=30)
        _until(partial(_are_gone, below))
    assert run.returncode == 1
    assert [crash["seen"] for crash in json.loads(said.splitlines()[-1])["crashes"]] >= [1]


def test_what_an_earlier_run_has_is_kept(tmp_path: Path) -> None:
    """A crash that an earlier run left by fewer operations is not written over by the same, as it is confirmed."""
    if (qemu := find_emulator("qemu-system-x86_64")).version >= (10, 0, 2):
        pytest.skip(f"{qemu.version_text} has mended it")
    args = ("fuzz", "device", "edu", "--time", "4", "--seed", "1")
    _vmtest(*args, where=tmp_path, code=1)
    (file,) = (file for file in (tmp_path / "findings").iterdir() if "EDU: DMA" in read(file).signature)
    found = read(file)
    small = replace(found, accesses=found.accesses[-1:])  # which it is not, but that is not tried
    file.write_text(small.dumps())
    _vmtest(*args, where=tmp_path, code=1)
    assert read(file).accesses == small.accesses


def _until(is_so: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_so():
            return
        threading.Event().wait(0.1)
    raise AssertionError("it takes too long")


def _are_gone(pids: Sequence[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def _qemus(pid: int) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [one] if one.name().startswith("qemu") else []
    return found


def test_devices_are_listed(tmp_path: Path) -> None:
    """Each device type that a pattern matches is listed with what is known of it, or why it cannot be fuzzed."""
    said = _vmtest("fuzz", "device", "e1000*", "--list", where=tmp_path, code=0).stdout
    assert "4 of 4 device types can be fuzzed" in said
    rows = _vmtest("fuzz", "device", "usb-t*", "--list", "--json", where=tmp_path, code=0).stdout.splitlines()
    (tablet,) = (json.loads(row) for row in rows if json.loads(row)["kind"] == "usb-tablet")
    assert (tablet["models"], tablet["why"]) == (["xHCI"], "")


def test_kvm(tmp_path: Path) -> None:
    """A machine under KVM has its devices worked on as well."""
    needs("kvm")
    args = ("fuzz", "device", "rtl8139", "--accel", "kvm", "--time", "2", "--seed", "1", "--json")
    end = json.loads(_vmtest(*args, where=tmp_path, code=0).stdout.splitlines()[-1])
    assert end["operations"] > 100


def test_what_is_told(tmp_path: Path) -> None:
    """A run without a crash tells its numbers, as lines of JSON too, and leaves no file and no process."""
    args = ("fuzz", "device", "rtl8139", "--time", "2", "--seed", "1")
    said = _vmtest(*args, where=tmp_path, code=0).stdout
    assert "seed 1" in said
    assert "no crash" in said
    begin, end = map(json.loads, _vmtest(*args, "--json", where=tmp_path, code=0).stdout.splitlines())
    assert (begin["event"], end["event"], end["target"], end["crashes"]) == ("begin", "end", "rtl8139", [])
    assert end["operations"] > 100
    assert end["sequences"] >= end["resets"] * 8
    assert list((tmp_path / "findings").iterdir()) == []


def test_bad_input(tmp_path: Path) -> None:
    """What cannot be worked on is one error, exit code 2, with what to do, and no traceback."""
    for args, told in (
        (("e1000x",), "such as e1000"),
        (("edu", "--machine", "nowhere"), "unsupported machine type"),
        (("edu", "--qemu", "qemu-system-zx80"), "is not on PATH"),
        (("edu", "--time", "0"), "must be a number above 0"),
        (("edu", "-j", "0"), "must be a number above 0"),
        ((), "DEVICE is missing"),
        (("e1000x*", "--list"), "no device"),
        (("e1000e,speed", "--time", "1"), "is no property"),
        (("e1000e,speed=1", "--time", "1"), "no property 'speed'"),
        (("edu", "--arg=-nonsense"), "invalid option"),
        (("virtio-net-pci", "--machine", "isapc"), "No 'PCI' bus found"),
    ):
        done = _vmtest("fuzz", "device", *args, where=tmp_path, code=2)
        assert told in done.stderr, (args, done.stderr)
        assert "Traceback" not in done.stderr
