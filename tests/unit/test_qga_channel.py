"""The guest agent's channel against the real qemu-ga, run as an ordinary process of this host."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmtest.deadline import Deadline
from vmtest.errors import GuestError, GuestGone, HostError, UsageError
from vmtest.model.machine import Channel
from vmtest.qemu.channel import Command
from vmtest.qemu.qga import Qga
from vmtest.qemu.verdict import Verdict

QEMU_GA = shutil.which("qemu-ga", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(QEMU_GA is None, reason="no qemu-ga here: apt-get install qemu-guest-agent")


class Guest:
    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        self.errors = (home / "errors").open("wb")
        path = home / "sock"
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home / "tmp"), "QGA_CONF": "/none"}
        (home / "tmp").mkdir()
        files = [f"--{name}={home / name}" for name in ("pidfile", "logfile")]
        self.agent = subprocess.Popen(
            [QEMU_GA or "", "--method=unix-listen", f"--path={path}", f"--statedir={home}", *files, *options],
            env=env,
            stdin=subprocess.DEVNULL,
            stderr=self.errors,
        )
        self.sock = socket.socket(socket.AF_UNIX)
        deadline = Deadline(20)
        while self.sock.connect_ex(os.path.relpath(path)) and self.agent.poll() is None and not deadline.expired:
            threading.Event().wait(0.01)  # it listens when its socket is there; nothing tells
        self.verdict = Verdict()
        self.qga = Qga(self.sock, self.verdict)

    def run(self, *argv: str, timeout: float = 30.0, **how: object) -> tuple[int, bytes, bytes, int | None]:
        got = {"stdout": bytearray(), "stderr": bytearray()}
        status, signal = self.qga.run(
            Command(argv=argv, **how),  # type: ignore[arg-type]
            deadline=Deadline(timeout),
            on_output=lambda stream, data: got[stream].extend(data),
        )
        return status, bytes(got["stdout"]), bytes(got["stderr"]), signal

    def sh(self, script: str, timeout: float = 30.0, **how: object) -> tuple[int, bytes, bytes, int | None]:
        return self.run("sh", "-c", script, timeout=timeout, **how)

    def close(self) -> None:
        self.qga.close()
        self.agent.kill()
        self.agent.wait()
        self.errors.close()


Start = Callable[..., Guest]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a guest agent with these options; nobody has connected to it yet."""
    guests: list[Guest] = []

    def make(*options: str) -> Guest:
        guests.append(Guest(tmp_path, *options))
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


@pytest.fixture
def guest(start: Start) -> Guest:
    """A guest agent that has answered."""
    made = start()
    assert made.qga.connect(Deadline(20))
    return made


def test_a_command_comes_back(guest: Guest) -> None:
    """Output, standard error and status arrive apart, and arguments as they were given."""
    assert guest.qga.kind is Channel.QGA
    assert guest.sh("printf 'no newline'; printf 'error\\n' >&2; exit 3") == (3, b"no newline", b"error\n", None)
    assert guest.run("true") == (0, b"", b"", None)
    assert guest.run("no-such-program")[0] == 127
    said = guest.run("printf", "%s|", "", "a b", "$HOME", "'", '"', "\\", "\n", "é", os.fsdecode(b"\xff"), "-n")
    assert said[1] == "|a b|$HOME|'|\"|\\|\n|é|".encode() + b"\xff|-n|"
    assert list((guest.home / "tmp").iterdir()) == []


def test_binary_through_both_ways(guest: Guest) -> None:
    """Random bytes come back from standard input as they went in; without input there is its end at once."""
    data = random.Random(1).randbytes(1 << 20) + bytes(range(256))
    assert guest.run("cat", input=data)[1] == data
    assert guest.run("cat") == (0, b"", b"", None)


def test_several_mib(guest: Guest) -> None:
    """8 MiB of each stream arrive whole."""
    data = random.Random(2).randbytes(8 << 20)
    (guest.home / "big").write_bytes(data)
    _, out, err, _ = guest.sh("cat big; cat big >&2", cwd=str(guest.home))
    assert hashlib.sha256(out).digest() == hashlib.sha256(err).digest() == hashlib.sha256(data).digest()


def test_too_much_output_is_told(guest: Guest) -> None:
    """What the agent truncates is an error that says what to do, never data that is silently incomplete."""
    with pytest.raises(GuestError, match="16 MiB") as caught:
        guest.sh("head -c 17000000 /dev/zero")
    assert "write to a file" in caught.value.hint
    assert guest.sh("echo next")[1] == b"next\n"


def test_signals_are_told(guest: Guest) -> None:
    """A command that a signal ends is reported with the signal, and nobody adds words to its standard error."""
    for number in (9, 10, 15):
        suicide = f"import os; os.kill(os.getpid(), {number})"
        assert guest.run(sys.executable, "-SIc", suicide) == (128 + number, b"", b"", number)
    assert guest.sh("exit 255")[0::3] == (255, None)


def test_environment_and_directory(guest: Guest) -> None:
    """Variables are added to the agent's own environment, and the directory is the one asked for."""
    (guest.home / "a 'dir'").mkdir()
    where = str(guest.home / "a 'dir'")
    ran = guest.sh('printf %s "$PWD:$A:$HOME"', env={"A": "x'y $z\n"}, cwd=where)
    assert ran[1].decode() == f"{where}:x'y $z\n:{guest.home}"
    assert guest.run("true", cwd="/no/such")[0] == 126
    assert guest.run("/bin/echo", "hi", env={"PATH": "/none"})[:2] == (0, b"hi\n")


def test_a_timeout_kills_the_command_and_its_children(guest: Guest) -> None:
    """At the deadline everything is dead although it ignores signals; what it had written is handed over."""
    got = []
    script = "trap '' INT TERM; sleep 1000 & echo $$ $!; while :; do sleep 1; done"
    with pytest.raises(TimeoutError):
        guest.qga.run(
            Command(argv=["sh", "-c", script]),
            deadline=Deadline(0.5),
            on_output=lambda stream, data: got.append(data),
        )
    for pid in b"".join(got).split():
        state = Path(f"/proc/{int(pid)}/status")
        assert not state.exists() or "zombie" in state.read_text()
    assert guest.sh("echo again")[1] == b"again\n"
    assert list((guest.home / "tmp").iterdir()) == []


def test_a_background_child_does_not_block(guest: Guest) -> None:
    """A child that holds the command's output open is not waited for, and outlives the command."""
    status, out, _, _ = guest.sh("sleep 1000 & echo $!")
    assert status == 0
    os.kill(int(out), 9)


def test_several_at_once(guest: Guest) -> None:
    """Threads run a command each at the same time, and nobody gets another's output."""
    (guest.home / "fifo").mkdir()
    os.mkfifo(guest.home / "fifo" / "pipe")
    said: dict[str, bytes] = {}

    def ask(name: str, script: str) -> None:
        said[name] = guest.sh(script, cwd=str(guest.home / "fifo"))[1]

    scripts = {"reader": "cat pipe", "writer": "echo hello >pipe; echo written"}
    threads = [threading.Thread(target=ask, args=item) for item in scripts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {"reader": b"hello\n", "writer": b"written\n"}


def test_what_was_left_is_skipped(guest: Guest) -> None:
    """Half a request and unread answers of an earlier connection do not disturb the next command."""
    guest.sock.setblocking(True)
    guest.sock.sendall(b'{"execute": "guest-info"}\n{"execute": "guest-pi')
    guest.sock.setblocking(False)
    assert guest.qga.connect(Deadline(20))
    assert guest.sh("echo fine")[1] == b"fine\n"


def test_it_answers(guest: Guest) -> None:
    """The alive check sees an agent alive, also with a verdict, and a stopped one not."""
    assert guest.qga.answers(Deadline(10))
    guest.verdict.set(lambda: HostError("over"))
    assert guest.qga.answers(Deadline(10))
    guest.agent.send_signal(19)
    assert not guest.qga.answers(Deadline(0.3))
    assert not guest.qga.connect(Deadline(0.0))


@pytest.fixture
def sleeper(guest: Guest) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Runs a command that sleeps, calls something once it does, and kills what is left in the end."""
    os.mkfifo(guest.home / "started")
    pids = []

    def run(then: Callable[[], object]) -> None:
        def wait() -> None:
            pids.append(int((guest.home / "started").read_text()))
            then()

        thread = threading.Thread(target=wait)
        thread.start()
        try:
            guest.sh("echo $$ >started; exec sleep 1000", cwd=str(guest.home), timeout=60)
        finally:
            thread.join()

    yield run
    for pid in pids:
        os.kill(pid, 9)


def test_a_verdict_ends_the_wait(guest: Guest, sleeper: Callable[[Callable[[], object]], None]) -> None:
    """Whoever waits for a command gets the guest's fatal error at once."""
    with pytest.raises(HostError, match="over"):
        sleeper(lambda: guest.verdict.set(lambda: HostError("over")))


def test_a_reset_ends_the_wait(guest: Guest, sleeper: Callable[[Callable[[], object]], None]) -> None:
    """Whoever waits for a command when the guest is reset gets GuestGone, and can go on after connect."""
    with pytest.raises(GuestGone, match="reset"):
        sleeper(guest.qga.forget)
    assert guest.qga.connect(Deadline(20))
    assert guest.run("true")[0] == 0


def test_closing_ends_a_request_that_is_being_sent() -> None:
    """close() does not wait for a guest that takes nothing: whoever talks to it gets GuestGone."""
    ours, theirs = socket.socketpair()
    qga = Qga(ours, Verdict())
    qga._synced = True
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            qga.run(
                Command(argv=["cat"], input=bytes(8 << 20)), deadline=Deadline(20), on_output=lambda name, data: None
            )
        except (GuestGone, TimeoutError) as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    with theirs:
        thread.start()
        assert theirs.recv(1, socket.MSG_PEEK)
        qga.close()
        thread.join()
    assert isinstance(outcome[0], GuestGone)


def test_descriptors_above_1023(guest: Guest) -> None:
    """A process may have thousands of files open; the channel works with whatever numbers its sockets have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this host lets nobody open 2000 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    try:
        for name in ("_sock", "_woken"):
            end = getattr(guest.qga, name)
            moved = socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 1500))
            end.close()
            setattr(guest.qga, name, moved)
        data = bytes(4 << 20)
        assert guest.sh("cat; sleep 0.1", input=data)[1] == data
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_agent_that_ends(guest: Guest) -> None:
    """When the port closes, that is said at once."""
    guest.agent.kill()
    with pytest.raises(GuestGone, match="closed"):
        guest.run("true")


def test_an_agent_that_may_not(start: Start) -> None:
    """Where the distribution has forbidden guest-exec, the error names the settings that allow it."""
    guest = start("--block-rpcs=guest-exec")
    assert guest.qga.connect(Deadline(20))
    with pytest.raises(GuestError, match="guest-exec") as caught:
        guest.run("true")
    assert "/etc/sysconfig/qemu-ga" in caught.value.hint


def test_what_it_cannot_take_is_refused(guest: Guest) -> None:
    """Input beyond what the agent's JSON parser takes, and NUL bytes in arguments, are told before anything runs."""
    with pytest.raises(UsageError, match="32 MiB"):
        guest.run("cat", input=bytes((32 << 20) + 1))
    with pytest.raises(UsageError, match="NUL"):
        guest.run("printf", "a\0b")
