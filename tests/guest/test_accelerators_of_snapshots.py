"""Snapshots under every accelerator, and from one to another: with a bare-metal guest, since a KVM may be too slow for
Linux.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from bootsector import checksum, write_disk

import vmtest
from vmtest.errors import UsageError
from vmtest.host import find_qemu, measure
from vmtest.model.snapshot import CROSSINGS, Crossing
from vmtest.snapshots import store

ROWS = {f"{row.saved}-{row.restored}": row for row in CROSSINGS}
COMMON = {"machine": "pc-q35-5.1,smm=off", "cpu": "qemu64,-kvmclock"}
"""What every crossing can do with."""
COUNT = 0x103  # its low byte is what memory is filled with


def need(accel: str) -> None:
    """Skip the test where this host cannot have it."""
    status = measure(find_qemu("qemu-system-x86_64", "x86_64"), accel)
    if not status.works:
        pytest.skip(f"{accel}: {status.why}")


class Bare(Protocol):
    """What the ``bare`` fixture is."""

    def __call__(self, **said: object) -> vmtest.Guest:
        """Boot a guest that has no image, and do not wait for it."""


@pytest.fixture
def bare() -> Iterator[Bare]:
    """Boot guests that end with the test. (The plugin's fixture would add an image, and its limits.)"""
    with ExitStack() as guests:

        def boot(**said: object) -> vmtest.Guest:
            return guests.enter_context(vmtest.boot(wait=False, **said))  # type: ignore[arg-type]

        yield boot


def machine(disk: Path, accel: str, **said: str) -> dict[str, object]:
    """The machine that boots the bare-metal guest."""
    return {"disk": disk, "accel": accel, "channel": "console", "memory": 64, **said}


def ask(guest: vmtest.Guest, commands: str, answer: str) -> None:
    """Send one-letter commands, and see the answer to the last."""
    guest.console.send(commands)
    guest.console.expect_exact(f"{answer}\r\n")


def prepare(guest: vmtest.Guest) -> None:
    """Put state into memory and on the disk: the counter, what memory is filled with, and another counter on disk."""
    for _ in range(COUNT - 1):
        guest.console.send("c")  # more at a time than its UART holds would be lost
        guest.console.expect_exact("\r\n")
    ask(guest, "w", "wrote")
    ask(guest, "c", f"count={COUNT:04x}")
    ask(guest, "f", "filled")


def check(guest: vmtest.Guest) -> None:
    """See what ``prepare`` has left, and that the machine still does all it can."""
    ask(guest, "p", f"count={COUNT:04x}")
    ask(guest, "s", f"sum={checksum(COUNT):04x}")
    ask(guest, "r", f"disk={COUNT - 1:04x}")
    ask(guest, "c", f"count={COUNT + 1:04x}")
    ask(guest, "f", "filled")
    ask(guest, "s", f"sum={checksum(COUNT + 1):04x}")
    ask(guest, "w", "wrote")
    ask(guest, "x", "ready")
    ask(guest, "p", "count=0000")
    ask(guest, "r", f"disk={COUNT + 1:04x}")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """What it boots from."""
    return write_disk(tmp_path / "disk.img")


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a snapshot that is gone after the test."""
    name = f"accelerators-{os.getpid()}"
    yield name
    store.remove(store.named_path(name))


@pytest.mark.parametrize("accel", ["tcg", "kvm"])
def test_there_and_back(bare: Bare, disk: Path, accel: str) -> None:
    """A guest of that accelerator's default CPU and machine goes back to its snapshot, again and again, even halted."""
    need(accel)
    guest = bare(**machine(disk, accel))
    guest.console.expect_exact("ready\r\n")
    prepare(guest)
    snapshot = guest.snapshot()
    guest.console.send("cz")
    for _ in range(2):
        assert guest.restore(snapshot) is guest
        assert guest.accel == accel
        check(guest)
    assert disk.read_bytes() == write_disk(disk.with_name("other")).read_bytes()


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_crossing(bare: Bare, disk: Path, name: str, row: Crossing) -> None:
    """What was saved under one accelerator goes on under the other with counter, memory and disk as they were."""
    need(row.saved)
    need(row.restored)
    guest = bare(**machine(disk, row.saved, **COMMON))
    guest.console.expect_exact("ready\r\n")
    prepare(guest)
    guest.snapshot(name)
    guest.kill()
    assert row.works
    other = bare(snapshot=name, accel=row.restored)
    assert other.accel == row.restored
    check(other)


@pytest.mark.parametrize(
    ("saved", "said", "advice"),
    [
        ("tcg", {}, "cpu='qemu64'"),
        ("tcg", {"machine": "pc-q35-5.1,smm=off", "cpu": "max"}, "cpu='qemu64'"),
        ("tcg", {"machine": "q35", "cpu": "qemu64"}, "machine='q35,smm=off'"),
        ("tcg", {"machine": "pc,smm=on", "cpu": "qemu64"}, "machine='q35,smm=off'"),
        ("kvm", {}, "cpu='qemu64'"),
        ("kvm", {"machine": "pc-q35-5.1,smm=off", "cpu": "qemu64"}, "cpu='qemu64,-kvmclock'"),
        ("kvm", {"machine": "q35,smm=off", "cpu": "qemu64,-kvmclock"}, "machine='pc-q35-5.1,smm=off'"),
        ("kvm", {"machine": "pc-q35-7.2,smm=off", "cpu": "qemu64,-kvmclock"}, "machine='pc-q35-5.1,smm=off'"),
    ],
)
def test_refusal(bare: Bare, disk: Path, name: str, saved: str, said: dict[str, str], advice: str) -> None:
    """What cannot cross is a usage error, before anything is started, that names what to save it with."""
    need(saved)
    guest = bare(**machine(disk, saved, **said))
    guest.snapshot(name)
    guest.kill()
    restored = {"tcg": "kvm", "kvm": "tcg"}[saved]
    with pytest.raises(UsageError, match=f"saved under {saved} cannot be restored under {restored}") as caught:
        bare(snapshot=name, accel=restored)
    assert advice in str(caught.value)
    assert bare(snapshot=name).accel == saved
