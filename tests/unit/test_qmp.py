"""QMP, against a real QEMU without a machine."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmtest.deadline import Deadline
from vmtest.errors import QmpError
from vmtest.qemu import loop
from vmtest.qemu.qmp import Event, Qmp

QEMU = shutil.which("qemu-system-x86_64")
OPTIONS = ["-machine", "none", "-nodefaults", "-display", "none", "-S", "-mon", "chardev=qmp,mode=control"]
PATIENCE = 60.0
needs_qemu = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")


class Qemu:
    """A QEMU that has no machine, and its monitor."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        monitor = f"socket,id=qmp,fd={theirs.fileno()}"
        self.process = subprocess.Popen(
            [str(QEMU), *OPTIONS, "-chardev", monitor],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.events: list[Event] = []
        self.changed = threading.Condition()
        self.qmp = Qmp(ours, on_event=self.on_event, deadline=Deadline(PATIENCE))

    def on_event(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def wait_event(self, name: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: any(event["event"] == name for event in self.events), PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.qmp.close()


@pytest.fixture
def qemu() -> Iterator[Qemu]:
    """A QEMU that has no machine, and its monitor."""
    qemu = Qemu()
    yield qemu
    qemu.close()


@needs_qemu
def test_commands(qemu: Qemu) -> None:
    """A command returns what QEMU returns; underscores in argument names stand for dashes."""
    assert qemu.qmp.execute("query-status")["status"] == "prelaunch"
    assert qemu.qmp.execute("human-monitor-command", command_line="info version").startswith(("7", "8", "9", "1"))


@needs_qemu
def test_refused_command(qemu: Qemu) -> None:
    """What QEMU refuses is an error with QEMU's own words, and the connection goes on."""
    with pytest.raises(QmpError, match=r"no-such-command failed: .*not been found"):
        qemu.qmp.execute("no-such-command")
    with pytest.raises(QmpError, match="qom-get"):
        qemu.qmp.execute("qom-get", path="/nowhere", property="type")
    assert qemu.qmp.execute("query-version")["qemu"]["major"] >= 7


@needs_qemu
def test_events(qemu: Qemu) -> None:
    """Events arrive, in the order in which they happened."""
    qemu.qmp.execute("cont")
    qemu.qmp.execute("stop")
    qemu.wait_event("STOP")
    qemu.qmp.execute("quit")
    qemu.wait_event("SHUTDOWN")
    assert [event["event"] for event in qemu.events] == ["RESUME", "STOP", "SHUTDOWN"]
    assert qemu.process.wait(PATIENCE) == 0


@needs_qemu
def test_commands_from_several_threads(qemu: Qemu) -> None:
    """Each thread gets the answer to its own command."""
    answers: list[bool] = []

    def ask(kind: str) -> None:
        for _ in range(50):
            answers.append(qemu.qmp.execute("qom-list-types", implements=kind)[0]["name"] != "")

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in ("device", "machine", "cpu", "accel")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == [True] * 200


@needs_qemu
def test_qemu_is_killed_in_the_middle(qemu: Qemu) -> None:
    """A QEMU that dies while a command waits for its answer ends the command at once, and later ones too."""
    qemu.process.send_signal(signal.SIGSTOP)
    errors: list[QmpError] = []

    def ask() -> None:
        with pytest.raises(QmpError) as caught:
            qemu.qmp.execute("query-status", timeout=PATIENCE)
        errors.append(caught.value)

    asking = threading.Thread(target=ask)
    asking.start()
    qemu.process.kill()
    asking.join(PATIENCE)
    assert not asking.is_alive()
    assert "query-status failed" in str(errors[0])
    with pytest.raises(QmpError):
        qemu.qmp.execute("query-status")
    qemu.qmp.close()
    qemu.qmp.close()


@needs_qemu
def test_no_answer(qemu: Qemu) -> None:
    """A QEMU that hangs ends a command at its time-out, and its late answer disturbs nothing."""
    qemu.process.send_signal(signal.SIGSTOP)
    with pytest.raises(QmpError, match="no answer in time"):
        qemu.qmp.execute("query-name", timeout=0.1)
    qemu.process.send_signal(signal.SIGCONT)
    assert qemu.qmp.execute("query-status")["status"] == "prelaunch"


@pytest.mark.parametrize(
    "greeting",
    [b"", b'{"QMP": {"vers', b"hello\r\n", b"{}\r\n", b'{"QMP": {"version": {}, "capabilities": []}}\r\n'],
    ids=["nothing", "half", "no-json", "no-greeting", "then-nothing"],
)
def test_socket_closes_half_way(greeting: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """A monitor that breaks off while it is being greeted is one clear error, and leaves no task behind."""
    before = loop.call(lambda running: asyncio.all_tasks(running))
    ours, theirs = socket.socketpair()
    theirs.sendall(greeting)
    theirs.shutdown(socket.SHUT_WR)
    with theirs, pytest.raises(QmpError, match="did not answer on its QMP monitor"):
        Qmp(ours, on_event=lambda event: None, deadline=Deadline(PATIENCE))
    ours.close()
    # Guests of the whole session may live in this process; this very call is a task, too.
    assert len(loop.call(lambda running: asyncio.all_tasks(running) - before)) == 1
    assert capfd.readouterr().err == ""


def test_silent_monitor() -> None:
    """A monitor that says nothing is given up at the deadline."""
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(QmpError, match="no answer in time"):
        Qmp(ours, on_event=lambda event: None, deadline=Deadline(0.1))
    ours.close()


@needs_qemu
def test_no_descriptors_leak() -> None:
    """A connection that was closed holds no descriptor."""
    Qemu().close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        Qemu().close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
