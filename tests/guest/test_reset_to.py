"""reset_to: back to one snapshot again and again, by loadvm in the same QEMU and by clones in others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import vmtest
from tests import bootsector
from vmtest.errors import GuestGone, GuestPanicked, SnapshotError, UsageError
from vmtest.resetting import Way

WAYS: tuple[Way, ...] = ("loadvm", "clone")


Bare = Callable[..., vmtest.Guest]


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    """Boots the bare-metal guest under that accelerator, and brings its counter and disk to 2."""
    with ExitStack() as guests:

        def boot(accel: str = "tcg", qemu_args: tuple[str, ...] = ()) -> vmtest.Guest:
            disk = bootsector.write_disk(tmp_path / "disk.img")
            guest = vmtest.boot(
                None,
                arch="x86_64",
                accel=accel,
                disk=disk,
                memory=64,
                channel="console",
                wait=False,
                qemu_args=qemu_args,
            )
            guests.enter_context(guest)
            guest.console.expect_exact("ready\r\n")
            for key, answer in (("c", "count=0001"), ("c", "count=0002"), ("w", "wrote"), ("f", "filled")):
                asked(guest, key, answer)
            return guest

        yield boot


def asked(guest: vmtest.Guest, key: str, answer: str) -> None:
    """Type a key, and wait for that answer and no other."""
    guest.console.send(key)
    guest.console.expect(r"(\S+)\r\n")
    assert guest.console.match[1] == answer.encode()  # type: ignore[index]


def dirty(guest: vmtest.Guest) -> None:
    """Leave nothing of it as it was: memory, disk, an answer that nobody reads, keys that it has not read."""
    asked(guest, "c", "count=0003")
    asked(guest, "w", "wrote")
    asked(guest, "f", "filled")
    guest.console.send("pppp")
    guest.console.expect_exact("count=")
    guest.console.send("z" + 100 * "c")  # from z on it halts, and reads no more


def pristine(guest: vmtest.Guest) -> None:
    """It is as ``bare`` has left it, in memory and on disk, and its console shows nothing of earlier lives."""
    asked(guest, "p", "count=0002")
    asked(guest, "r", "disk=0002")
    asked(guest, "s", f"sum={bootsector.checksum(2):04x}")


@pytest.mark.parametrize("accel", ["tcg", "kvm"])
def test_exact_and_measured(bare: Bare, accel: str) -> None:
    """However often it is reset, memory, disk and console are the snapshot's; and the faster way has been found."""
    guest = bare(accel)
    snapshot = guest.snapshot()
    assert guest.reset_way is None
    for _ in range(30):
        dirty(guest)
        guest.reset_to(snapshot)
        pristine(guest)
    assert guest.reset_way in WAYS


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accel", ["tcg", "kvm"])
def test_either_way_is_exact(bare: Bare, accel: str, way: Way) -> None:
    """Each way gives the snapshot's state; loadvm does it in one QEMU, and its files do not grow."""
    guest = bare(accel)
    snapshot = guest.snapshot()
    pids, sizes = set(), set()
    for _ in range(10):
        guest.reset_to(snapshot, way=way)
        pristine(guest)
        dirty(guest)
        pids.add(guest.pid)
        sizes.add(tuple(path.stat().st_size for path in sorted(guest._life.workdir.path.glob("*.qcow2"))))
    assert len(pids) == (1 if way == "loadvm" else 10)
    assert len(sizes) == 1


def test_other_snapshots(bare: Bare) -> None:
    """A guest is reset to whichever snapshot it is told, by turns, and a snapshot of a reset guest is as good."""
    guest = bare("tcg")
    two = guest.snapshot()
    guest.reset_to(two, way="loadvm").reset_to(two, way="loadvm")
    asked(guest, "c", "count=0003")
    three = guest.snapshot()
    guest.reset_to(two, way="loadvm")
    pristine(guest)
    for _ in range(2):
        guest.reset_to(three, way="loadvm")
        asked(guest, "p", "count=0003")
        asked(guest, "r", "disk=0002")
    guest.pause()
    again = guest.snapshot()
    guest.reset_to(again, way="loadvm")
    asked(guest, "p", "count=0003")


def test_reset_by_itself(bare: Bare) -> None:
    """A guest that has reset itself since, and so runs in a QEMU without the state, goes back as well."""
    guest = bare("tcg")
    snapshot = guest.snapshot()
    for _ in range(2):
        guest.reset_to(snapshot, way="loadvm").reset_to(snapshot, way="loadvm")
        guest.console.send("x")
        guest.console.expect_exact("ready\r\n")
        guest.reset_to(snapshot, way="loadvm")
        pristine(guest)


def test_refused(bare: Bare) -> None:
    """Where QEMU cannot load a state in place clones are used, and who asks for loadvm is told why."""
    guest = bare(qemu_args=("-no-reboot",))
    snapshot = guest.snapshot()
    with pytest.raises(SnapshotError, match="-no-reboot"):
        guest.reset_to(snapshot, way="loadvm")
    for count in range(6):
        guest.reset_to(snapshot)
        pristine(guest)
        assert guest.reset_way in (("clone",) if count > 3 else (None, "clone"))


@pytest.fixture(scope="module", params=["linux-x86_64", "linux-aarch64"])
def linux(request: pytest.FixtureRequest) -> Iterator[tuple[vmtest.Guest, vmtest.Snapshot]]:
    """A guest with a file, and a snapshot of it; each test begins with a reset."""
    with vmtest.boot(request.param) as guest:
        guest.run("echo kept > /tmp/file").check()
        yield guest, guest.snapshot()


def uptime(guest: vmtest.Guest) -> float:
    """Seconds since its kernel began."""
    return float(guest.run("cat /proc/uptime").check().stdout.split()[0])


@pytest.mark.parametrize("way", WAYS)
def test_linux_goes_back(linux: tuple[vmtest.Guest, vmtest.Snapshot], way: Way) -> None:
    """Files, processes and uptime are the snapshot's; the date is now's, and random numbers differ each time."""
    guest, snapshot = linux
    seen, first = set(), uptime(guest.reset_to(snapshot, way=way))
    for _ in range(4):
        guest.run("echo lost > /tmp/file; touch /tmp/other; sleep 1000 & sleep 1").check()
        guest.reset_to(snapshot, way=way)
        now = uptime(guest)
        if guest.machine.arch != "x86_64" or way == "clone":  # the TSC goes on, as reset_to tells
            assert now < first + 1
        seen.add(guest.run("cat /proc/sys/kernel/random/uuid; cd /tmp; ls other; cat file; pidof sleep").stdout)
        assert abs(float(guest.run("date +%s").stdout) - time.time()) <= 3
    assert len(seen) == 4
    assert {text.partition("\n")[2] for text in seen} == {"kept\n"}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_has_happened(linux: tuple[vmtest.Guest, vmtest.Snapshot], way: Way) -> None:
    """A guest that has panicked, is paused, has lost its agent, or whose QEMU was killed, lives again."""
    guest, snapshot = linux

    def back() -> None:
        guest.reset_to(snapshot, way=way)
        assert guest.run("cat /tmp/file").stdout == "kept\n"
        assert guest.reports == ()

    back()
    with pytest.raises(GuestPanicked):
        guest.run("echo c > /proc/sysrq-trigger; sleep 1000")
    back()
    guest.pause()
    back()
    with pytest.raises(GuestGone):
        guest.run("kill -9 -1; sleep 1000")
    back()
    os.kill(guest.pid, signal.SIGKILL)
    back()
    back()


@pytest.mark.parametrize("way", WAYS)
def test_a_panic_that_is_not_judged_yet(linux: tuple[vmtest.Guest, vmtest.Snapshot], way: Way) -> None:
    """A panic that was printed a moment before the reset is not held against the life after it."""
    guest, snapshot = linux
    for _ in range(3):
        guest.reset_to(snapshot, way=way).reset_to(snapshot, way=way)
        with ThreadPoolExecutor(1) as pool:
            crash = pool.submit(guest.run, "echo c > /proc/sysrq-trigger; sleep 1000")
            guest.console.expect_exact("Kernel panic")
            guest.reset_to(snapshot, way=way)
            assert guest.run("sleep 2; cat /tmp/file").stdout == "kept\n"
            with pytest.raises((GuestGone, GuestPanicked)):
                crash.result(60)


@pytest.mark.parametrize("way", WAYS)
def test_commands_of_the_life_before(linux: tuple[vmtest.Guest, vmtest.Snapshot], way: Way) -> None:
    """Commands that run, write and are written to while their guest is reset raise GuestGone and disturb nothing."""
    guest, snapshot = linux
    guest.reset_to(snapshot, way=way)
    for _ in range(3):
        guest.reset_to(snapshot, way=way)
        with ThreadPoolExecutor(3) as pool:
            told = [
                pool.submit(guest.run, "echo begun > /dev/console; sleep 1000", timeout=1000),
                pool.submit(guest.run, "exec cat", input=bytes(1 << 26), stream=lambda name, data: None, timeout=1000),
                pool.submit(guest.run, "exec yes", stream=lambda name, data: None, timeout=1000),
            ]
            guest.console.expect_exact("begun")
            guest.reset_to(snapshot, way=way)
            assert guest.run("cat", input=b"through").stdout == "through"
            for command in told:
                with pytest.raises((GuestGone, UsageError)):
                    command.result(60)


def test_linux_is_cloned(linux: tuple[vmtest.Guest, vmtest.Snapshot]) -> None:
    """A kernel that keeps time by an x86's TSC is reset by clones; for others the faster way is measured."""
    guest, snapshot = linux
    guest.reset_to(guest.snapshot())
    for _ in range(10):
        guest.reset_to(snapshot)
        assert guest.run("cat /tmp/file").stdout == "kept\n"
    assert guest.reset_way == "clone" if guest.machine.arch == "x86_64" else guest.reset_way in WAYS


@pytest.mark.parametrize("way", WAYS)
def test_over_the_console(way: Way) -> None:
    """A guest whose commands go over its console answers them after each reset."""
    with vmtest.boot(channel="console", cold=True) as guest:
        guest.run("echo kept > /tmp/file").check()
        snapshot = guest.snapshot()
        for _ in range(3):
            guest.reset_to(snapshot, way=way)
            assert guest.run("cat /tmp/file; echo lost > /tmp/file").stdout == "kept\n"
