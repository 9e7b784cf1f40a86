"""Devices programmed by hand on real QEMUs: PCI without firmware on several boards, memory, interrupts, and ends."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest
from oncase import needs

from vmtest.devices import session as sessions
from vmtest.devices import silence
from vmtest.devices.access import (
    ClockStep,
    Csr,
    Endianness,
    Fill,
    Flush,
    In,
    Intercept,
    Load,
    Out,
    Read,
    Reset,
    Store,
    Write,
)
from vmtest.devices.bench import Bench
from vmtest.devices.board import Board
from vmtest.devices.events import ERRORS, OWN
from vmtest.devices.session import Session
from vmtest.errors import HostError, QemuDied, UsageError
from vmtest.host import find_emulator

BOARDS = [
    ("qemu-system-x86_64", "q35"),
    ("qemu-system-x86_64", "pc"),
    ("qemu-system-aarch64", "virt"),
    ("qemu-system-riscv64", "virt"),
]
NOWHERE = 0xFFFFFFFFF0
"""An address that has nothing."""
E1000E = 0x10D38086
# docs/specs/edu.rst of QEMU.
EDU_FACTORIAL, EDU_STATUS, EDU_RAISE, EDU_ACK = 0x08, 0x20, 0x60, 0x64
EDU_SOURCE, EDU_TARGET, EDU_COUNT, EDU_COMMAND = 0x80, 0x88, 0x90, 0x98


@pytest.mark.parametrize(("binary", "machine"), BOARDS)
def test_a_pci_device_on_each_board(binary: str, machine: str) -> None:
    """A device is found by its type and mapped: its registers are as its manual has them, in memory and in ports."""
    with Bench(binary=binary, machine=machine) as bench:
        nic = bench.pci("e1000e")
        nic.enable()
        assert nic.config(0) == E1000E
        assert nic.config(4, 2) & 7 == 7
        assert nic.bar(0).readl(0x0008) & 0x80000000 == 0  # STATUS, 82574L data sheet
        assert nic.bar(0).readl(0x5400) == 0x12005452  # RAL0: QEMU's 52:54:00:12…
        assert {region.number for region in nic.regions.values()} == {0, 1, 2, 3, 6}
        nic.bar(2).writel(0, 0x5400)  # IOADDR, and IODATA behind it
        assert nic.bar(2).readl(4) == 0x12005452


def test_the_qtest_accelerator_is_not_needed() -> None:
    """On a QEMU without it the CPU halts at once, and the machine runs: timers do, the CPU uses no time."""
    with Bench() as bench:
        edu = bench.pci("edu")
        edu.enable()
        bar = edu.bar(0)
        bar.writel(EDU_FACTORIAL, 5)
        assert bench.session.qmp.execute("query-status")["running"]
        until_it_is_done = (bar.readl(EDU_STATUS) & 1 for _ in range(10_000))
        assert 0 in until_it_is_done
        assert bar.readl(EDU_FACTORIAL) == 120


def test_memory() -> None:
    """Memory is written and read in every size, as bytes, and filled; answers come in the order of the operations."""
    with Bench() as bench:
        done = bench.run(
            [
                Store(0x1000, bytes(range(16))),
                Read(0x1000, 1),
                Read(0x1001, 2),
                Read(0x1004, 4),
                Read(0x1008, 8),
                Fill(0x1000, 4, 0xEE),
                Flush(),
                Write(0x1002, 0x1234, 2),
                Load(0x1000, 6),
            ]
        )
        assert done.crash is None
        assert done.replies == [
            None,
            0,
            0x0201,
            0x07060504,
            0x0F0E0D0C0B0A0908,
            None,
            None,
            b"\xee\xee\x34\x12\x04\x05",
        ]
        bench.store(0x2000, b"abc")
        assert bench.load(0x1FFF, 5) == b"\0abc\0"


def test_interrupts() -> None:
    """The lines of an interrupt controller that are intercepted are told when a device raises and lowers them."""
    with Bench() as bench:
        edu = bench.pci("edu")
        edu.enable()
        session = bench.session
        paths = {
            session.qmp.execute("qom-get", path=f"/machine/q35/{row['name']}", property="type"): row["name"]
            for row in session.qmp.execute("qom-list", path="/machine/q35")
            if row["type"].startswith("child<ioapic")
        }
        session.ask(Intercept(f"/machine/q35/{paths['ioapic']}"))
        bar = edu.bar(0)
        bar.writel(EDU_RAISE, 1)
        bar.writel(EDU_ACK, 1)
        up, down = (interrupt for interrupt in session.interrupts if interrupt.line >= 16)  # below are a timer's
        assert (up.is_raised, down.is_raised, up.line) == (True, False, down.line)
        assert up.request < down.request


@pytest.mark.parametrize("lockstep", [True, False])
def test_what_ends_qemu_is_told(lockstep: bool) -> None:
    """A device that ends QEMU by a timer: how, by which words, and behind which operation; nothing is left."""
    with Bench() as bench:
        edu = bench.pci("edu")
        edu.enable()
        at = edu.bar(0).address
        accesses = [
            Write(at + EDU_SOURCE, 0, 4),
            Write(at + EDU_TARGET, 0xFFFF_0000, 4),
            Write(at + EDU_COUNT, 4, 4),
            Write(at + EDU_COMMAND, 1, 4),
            *[ClockStep()] * 5,  # its timer waits 0.1 s, and a busy host longer
            Read(at, 4),
        ]
        done = bench.run(accesses, lockstep=lockstep)
        version = bench.session.qemu.version
        if version < (10, 0, 2):
            assert done.crash is not None
            assert done.crash.kind == "error"
            assert 4 <= done.crash.done < 9
            assert done.crash.signature.startswith("EDU: DMA range ")
            assert "hardware error: EDU" in done.crash.words
        with pytest.raises(QemuDied, match="was not answered: QEMU has ended"):
            bench.inb(0x80)
        directory = Path(str(bench.session.process.stderr_path)).parent
        pid = bench.session.process.pid
    assert not directory.exists()
    assert not psutil.pid_exists(pid)


def test_a_hang_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that is silent is looked at: one that works for too long has hung, and so has one that does nothing."""
    monkeypatch.setattr(sessions, "PATIENCE", 0.001)
    with Bench() as bench:
        assert bench.inb(0x80) == 0xFF
        monkeypatch.setattr(silence, "HANG", 0.0)
        done = bench.run([Load(0, 1 << 24)] * 20)
        assert done.crash is not None
        assert (done.crash.kind, bench.session.process.returncode) == ("hang", -signal.SIGKILL)
    monkeypatch.setattr(silence, "HANG", 10.0)
    with Bench() as bench, Session(bench.board, bench.qemu, lost=1.0) as session:
        psutil.Process(session.process.pid).suspend()
        crash = session.run([In(0x80, 1)]).crash
        assert crash is not None
        assert (crash.kind, crash.signature) == ("hang", "no answer, and no work")


def test_a_machine_that_is_stopped_is_told() -> None:
    """Under KVM a CPU that leaves memory has the machine stopped, which QEMU survives: that is told too."""
    needs("kvm")
    board = Board(arguments=("-M", "q35", "-m", "64M", "-nodefaults"), accel="kvm")
    vector, message = Store(4 * 2, bytes((0, 0, 0, 0xA0))), Write(0xFEE00000, 4 << 8, 4)  # of an NMI, and one
    with Session(board, find_emulator("qemu-system-x86_64")) as session:
        done = session.run((vector, message))
        for _ in range(200):  # it happens in another thread, soon
            done = done if done.crash else session.run((), settle=0.05)
        crash = done.crash
        assert crash is not None
        assert (crash.kind, crash.signature) == ("internal-error", "KVM internal error. Suberror: 1")
        assert session.process.returncode == -signal.SIGKILL


def test_what_a_target_has_beside_registers() -> None:
    """A target's byte order is told; a command that this QEMU has not is its refusal, and what it would take."""
    for binary in ("qemu-system-x86_64", "qemu-system-riscv64"):
        with Bench(binary=binary) as bench:
            assert bench.session.ask(Endianness()) == b"little"
            if binary.endswith("riscv64") and bench.qemu.version < (10,):
                with pytest.raises(HostError, match="Unknown command"):
                    bench.session.ask(Csr(0, 0x340))
            elif binary.endswith("riscv64"):
                assert bench.session.ask(Csr(0, 0x340, 0x1234)) == 0x1234


def test_events_are_told_no_more() -> None:
    """An event is switched off on a QEMU that runs, or from its start; where it is none, what QEMU says of a
    guest's errors is.
    """
    accesses = Out(0x510, 0, 2), In(0x511, 1), Read(NOWHERE, 1)  # of fw_cfg
    with Bench() as bench, Session(bench.board, bench.qemu, told=True) as session:
        assert session.events is not None
        session.events.take()  # of its start
        session.run(accesses)
        assert _kinds(session.events.take()) == {b"fw_cfg_select", b"fw_cfg_read", b"Invalid"}
        assert session.untell(["fw_cfg_select"]) == {"fw_cfg_select"}
        session.run(accesses)
        assert _kinds(session.events.take()) == {b"fw_cfg_read", b"Invalid"}
        assert session.untell(["Invalid"]) == {ERRORS}
        session.run(accesses)
        assert _kinds(session.events.take()) == {b"fw_cfg_read"}
    with Session(bench.board, bench.qemu, told=True, untold={"fw_cfg_select", ERRORS}) as session:
        assert session.events is not None
        session.events.take()
        session.run(accesses)
        assert _kinds(session.events.take()) == {b"fw_cfg_read"}


def _kinds(lines: Iterable[bytes]) -> set[bytes]:
    """Of devices."""
    return {line.partition(b" ")[0] for line in lines if not line.startswith(OWN)}


def test_resets_and_events() -> None:
    """A reset in the midst of operations brings registers back; what QEMU does is told meanwhile, each line once."""
    with Bench() as bench, Session(bench.board, bench.qemu, told=True) as session:
        assert session.events is not None
        select, command = Out(0xCF8, 0x8000FA04, 4), In(0xCFC, 2)  # of the AHCI controller
        told = Out(0x510, 0, 2)  # to fw_cfg
        done = session.run([select, Out(0xCFC, 7, 2), command, told, Reset(), select, command])
        assert done.crash is None
        assert [reply for reply in done.replies if reply is not None] == [7, 0]
        lines = session.events.take()
        assert any(line.startswith(b"fw_cfg_select") for line in lines)
        assert not any(line.startswith((b"memory_region", b"qemu_mutex", b"x86")) for line in lines)
        assert session.events.take() == []


def test_what_works_does_not_hang() -> None:
    """Operations that take long, one after another, are none, however little patience there is for one that sleeps."""
    with Bench() as bench, Session(bench.board, bench.qemu, lost=1.0) as session:
        assert session.run([Load(0, 14 << 20)] * 4).crash is None
        assert session.reset() is None


def test_where_a_hang_waits() -> None:
    """Where it is in QEMU's code is told of one that is looked at."""
    with Bench() as bench, Session(bench.board, bench.qemu, traced=True) as session:
        assert session._tracer is not None
        assert session._tracer.look().startswith("+0x")
        assert session.run([In(0x80, 1)]).crash is None
    assert not session._tracer._thread.is_alive()


def test_a_machine_that_does_not_start() -> None:
    """QEMU's own words say why; what it is told of its devices is checked before."""
    with pytest.raises(HostError, match="does not start") as raised, Bench(machine="nowhere") as bench:
        bench.inb(0x80)
    assert "unsupported machine type" in str(raised.value)
    with pytest.raises(UsageError, match=r"such as .*e1000e"), Bench() as bench:
        bench.pci("e1000x")
    with pytest.raises(UsageError, match="no property 'speed'"), Bench() as bench:
        bench.pci("e1000e", speed=3)
    with Bench() as bench:
        bench.inb(0x80)
        with pytest.raises(UsageError, match="cannot be added any more"):
            bench.add("edu")
    with pytest.raises(HostError, match="qemu-system-nowhere is not on PATH"):
        Bench(binary="qemu-system-nowhere")


def test_the_clock_needs_no_accelerator() -> None:
    """A step of the clock lets time pass on a QEMU that cannot be told, and is no error."""
    with Session(Board.parse("-M q35 -nodefaults", accel="tcg"), find_emulator("qemu-system-x86_64")) as session:
        done = session.run([Out(0x80, 1, 1), ClockStep(1000), ClockStep(), In(0x80, 1)])
        assert [type(reply) for reply in done.replies] == [type(None), type(None), type(None), int]


def test_no_network_and_no_drive_of_the_users() -> None:
    """What a device stands on leads nowhere: a hub without another port, a drive of zeros."""
    with Bench() as bench:
        bench.add("e1000e")
        bench.add("virtio-blk-pci")
        command = bench.session.process.command
        assert "hubport,id=netdev0,hubid=0" in command
        assert "if=none,id=drive1,file=null-co://,file.read-zeroes=on,format=raw" in command
