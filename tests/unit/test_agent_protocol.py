"""The real guest agent, compiled for this host, and the host's end of its protocol."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import pty
import select
import signal
import socket
import subprocess
import threading
import tty
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmtest.deadline import Deadline
from vmtest.errors import GuestError, GuestGone, GuestPanicked, UsageError, VmtestError
from vmtest.host.system import guarded
from vmtest.model.arch import ARCHES
from vmtest.model.observation import CrashReport, Severity
from vmtest.qemu import agent as module
from vmtest.qemu import loop
from vmtest.qemu.agent import HEADER, HELLO, HELLO_ID, PING, SPAWN, TWO, Agent
from vmtest.qemu.channel import Command, Exit
from vmtest.qemu.verdict import Verdict

REPO = Path(__file__).parents[2]
SOURCE = REPO / "images" / "_agent" / "agent.c"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def binary() -> Path:
    """The agent of this host's architecture, as the installation of the package has compiled it."""
    built = SOURCE.with_name(f"agent.{platform.machine()}")
    if platform.machine() not in ARCHES:
        pytest.skip(f"the agent is not made for {platform.machine()}")
    assert built.stat().st_mtime >= SOURCE.stat().st_mtime, "agent.c is newer than the agent: pip install -e ."
    return built


class Guest:
    """The agent as a process on a pty, which stands for the virtio port, and a socket that leads there."""

    def __init__(self, binary: Path, *, first: bytes = b"", wrapper: tuple[str, ...] = ()) -> None:
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        self.socket, self.far = socket.socketpair()
        if first:
            os.write(self.master, first)
        environment = {"PATH": os.environ["PATH"], "FROM_INIT": "yes", "CHANGED": "no"}
        command = guarded((*wrapper, str(binary), os.ttyname(slave)))  # a test run that is killed leaves none behind
        self.process = subprocess.Popen(command, env=environment, cwd="/")
        self.slave = slave
        self.verdict = Verdict()
        self.threads = [threading.Thread(target=self.to_guest), threading.Thread(target=self.to_host)]
        for thread in self.threads:
            thread.start()
        self.agent = Agent(self.socket, self.verdict)

    def to_guest(self) -> None:
        while data := self.far.recv(65536):
            while data:
                data = data[os.write(self.master, data) :]

    def to_host(self) -> None:
        try:
            while data := os.read(self.master, 65536):
                self.far.sendall(data)
        except OSError:  # the agent is gone, or our end
            pass

    def close(self) -> None:
        self.agent.close()
        for pid in self.children():
            with contextlib.suppress(ProcessLookupError):  # it may be ending, or not have a group yet
                os.killpg(int(pid), signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        for thread in self.threads:
            thread.join(PATIENCE)
        os.close(self.master)
        self.far.close()

    def children(self) -> list[str]:
        """The commands that run: not the process that the agent keeps for the next one, which still is the agent."""
        spare = self.spares()
        return [pid for pid in self._forked() if pid not in spare]

    def spares(self) -> list[str]:
        """The processes that the agent has forked ahead."""
        try:
            own = Path(f"/proc/{self.process.pid}/exe").readlink()
        except FileNotFoundError:  # it was killed
            return []
        return [pid for pid in self._forked() if Path(f"/proc/{pid}/exe").readlink() == own]

    def spare(self) -> int:
        """The one that the agent has forked ahead: there is one while no command runs."""
        enough = Deadline(PATIENCE)
        while len(found := self.spares()) != 1:
            assert not enough.expired, found
        return int(found[0])

    def _forked(self) -> list[str]:
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()

    def run(self, *argv: str, timeout: float = PATIENCE, **options: Any) -> tuple[Exit, bytes, bytes]:
        streams = {"stdout": bytearray(), "stderr": bytearray()}
        command = Command(argv=argv, **options)
        result = self.agent.run(command, deadline=Deadline(timeout), on_output=lambda n, data: streams[n].extend(data))
        return result, bytes(streams["stdout"]), bytes(streams["stderr"])

    def sh(self, script: str, **options: Any) -> tuple[Exit, bytes, bytes]:
        return self.run("/bin/sh", "-c", script, **options)


@pytest.fixture
def guest(binary: Path) -> Iterator[Guest]:
    """An agent that runs and is connected."""
    guest = Guest(binary)
    try:
        assert guest.agent.connect(Deadline(PATIENCE))
        yield guest
    finally:
        guest.close()


@pytest.mark.parametrize("target", sorted(ARCHES))
def test_compiled_for_every_architecture(target: str) -> None:
    """The installation compiles the agent for every architecture; it needs no libc and no loader, and is tiny."""
    head = SOURCE.with_name(f"agent.{target}").read_bytes()
    assert len(head) < 16 * 1024
    assert head[:5] == b"\x7fELF\x02"
    assert int.from_bytes(head[18:20], "little") == ARCHES[target].elf_machine
    assert b"/ld-" not in head


def test_needs_a_port(binary: Path) -> None:
    """Without a port, or with one that is not there, it says so and exits with status 1."""
    run = subprocess.run([binary, "/nowhere"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (1, "vmtest-agent: cannot open /nowhere: No such file or directory\n")
    assert subprocess.run([binary], capture_output=True, check=False).returncode == 1


def test_rests_while_the_host_is_away(binary: Path) -> None:
    """With the host's end closed the agent sleeps between two looks at its port, every time."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    agent = subprocess.Popen(guarded((str(binary), os.ttyname(slave))))
    try:
        hello = HEADER.pack(HELLO, HELLO_ID, 16) + bytes(16)
        os.write(master, hello)
        answer = b""
        while len(answer) < HEADER.size + 20:
            answer += os.read(master, 100)
        os.close(master)
        os.close(slave)
        slept, enough = sleeps(agent.pid), Deadline(PATIENCE)
        while sleeps(agent.pid) < slept + 10:
            assert not enough.expired, "it spins"
            threading.Event().wait(0.01)
    finally:
        agent.kill()
        agent.wait()


def sleeps(pid: int) -> int:
    """How often a process has waited for something: one that spins never does."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_streams_apart(guest: Guest) -> None:
    """Standard output and error come apart, with nothing added."""
    assert guest.sh("echo out; echo err >&2; printf '\\0\\377\\r\\n'") == (Exit(0, None), b"out\n\0\xff\r\n", b"err\n")


def test_big_binary_output(guest: Guest, tmp_path: Path) -> None:
    """Eight MiB of random bytes arrive unchanged on both streams at once."""
    data = os.urandom(8 << 20)
    (tmp_path / "data").write_bytes(data)
    result, out, err = guest.sh(f"cat {tmp_path}/data & cat {tmp_path}/data >&2; wait")
    assert result == Exit(0, None)
    assert hashlib.sha256(out).digest() == hashlib.sha256(err).digest() == hashlib.sha256(data).digest()


def test_big_input_comes_back(guest: Guest) -> None:
    """Five MiB through cat come back unchanged: neither end is ever full for good."""
    data = os.urandom(5 << 20)
    result, out, err = guest.run("cat", input=data)
    assert (result, err) == (Exit(0, None), b"")
    assert out == data


@pytest.mark.parametrize("script", ["true", "exec <&-; cat /proc/self/cmdline >/dev/null", "head -c1 >/dev/null"])
def test_input_that_nobody_reads(guest: Guest, script: str) -> None:
    """A command that does not read its input ends as it would in a pipe, and the agent lives."""
    for _ in range(5):
        assert guest.sh(script, input=bytes(1 << 20))[0] == Exit(0, None)
    assert guest.sh("echo alive")[1] == b"alive\n"


def test_input_ends(guest: Guest) -> None:
    """A command without input sees its end at once."""
    assert guest.run("wc", "-c")[1].strip() == b"0"


@pytest.mark.parametrize(
    ("argv", "want", "words"),
    [
        (["/bin/sh", "-c", "exit 7"], Exit(7, None), b""),
        (["/bin/sh", "-c", "exit 255"], Exit(255, None), b""),
        (["/bin/sh", "-c", "kill -SEGV $$"], Exit(0, signal.SIGSEGV), b""),
        (["/bin/sh", "-c", "kill -KILL $$"], Exit(0, signal.SIGKILL), b""),
        (["no-such-command"], Exit(127, None), b"cannot run no-such-command: No such file or directory"),
        (["/etc/passwd"], Exit(126, None), b"cannot run /etc/passwd: Permission denied"),
        (["/bin"], Exit(126, None), b"cannot run /bin: Permission denied"),
        ([""], Exit(127, None), b"cannot run"),
    ],
)
def test_how_a_command_ends(guest: Guest, argv: list[str], want: Exit, words: bytes) -> None:
    """Statuses, signals, and a shell's 126 and 127 for what cannot be run or is not there."""
    result, _, err = guest.run(*argv)
    assert result == want
    assert words in err


def test_environment_and_directory(guest: Guest) -> None:
    """Variables are added to the agent's own or replace them; the directory is the one asked for."""
    env = {"CHANGED": "now", "NEW": "a=b c\n\xe9", "EMPTY": ""}
    script = 'echo "$FROM_INIT,$CHANGED,$NEW,${EMPTY-unset}"; pwd'
    assert guest.sh(script, env=env, cwd="/usr")[1].decode() == "yes,now,a=b c\n\xe9,\n/usr\n"
    result, _, err = guest.run("true", cwd="/nowhere")
    assert (result, err) == (Exit(126, None), b"vmtest-agent: cannot change to /nowhere: No such file or directory\n")


def test_path_of_the_command(guest: Guest, tmp_path: Path) -> None:
    """The command is looked for along the PATH that it is given, as a shell does it."""
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho found")
    tool.chmod(0o755)
    assert guest.run("tool", env={"PATH": f"/nowhere:/etc/passwd:{tmp_path}"})[1] == b"found\n"


def test_many_at_once(guest: Guest) -> None:
    """Sixteen commands from sixteen threads run at the same time and nothing is mixed up."""
    barrier = threading.Barrier(16)

    def one(number: int) -> bool:
        data = bytes([number]) * 300_000
        barrier.wait(PATIENCE)
        result, out, err = guest.sh(f"cat; echo {number} >&2; exit {number}", input=data)
        return (result, out, err) == (Exit(number, None), data, b"%d\n" % number)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(16)))


def test_too_many_at_once(guest: Guest, tmp_path: Path) -> None:
    """The 33rd command at once is refused in plain words, and there is room again when one has ended."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    started = threading.Semaphore(0)
    command = Command(argv=["/bin/sh", "-c", f"echo up; read line <{fifo}"])

    def one() -> Exit:
        return guest.agent.run(command, deadline=Deadline(PATIENCE), on_output=lambda name, data: started.release())

    # Open for reading too, so that nobody waits for the other end; each command takes one line of it.
    with ThreadPoolExecutor(32) as pool, open(os.open(fifo, os.O_RDWR), "wb", buffering=0) as lines:  # noqa: PTH123
        running = [pool.submit(one) for _ in range(32)]
        for _ in range(32):
            assert started.acquire(timeout=PATIENCE)
        with pytest.raises(GuestError, match="too many commands at once"):
            guest.run("true")
        lines.write(b"\n" * 32)
        assert {run.result(PATIENCE) for run in running} == {Exit(0, None)}
    assert guest.run("true")[0] == Exit(0, None)


def test_timeout_kills_the_group(guest: Guest) -> None:
    """A command that does not end in time is killed with its children, and its output until then is there."""
    out = bytearray()
    script = Command(argv=["/bin/sh", "-c", "sleep 1000 & echo $! $$; wait"])
    with pytest.raises(TimeoutError):
        guest.agent.run(script, deadline=Deadline(0.5), on_output=lambda name, data: out.extend(data))
    assert all(pid_ends(int(pid)) for pid in out.split())
    assert len(out.split()) == 2
    assert guest.run("true")[0] == Exit(0, None)


def test_timeout_of_a_command_that_never_pauses(guest: Guest) -> None:
    """A command that always has output waiting is ended at its deadline all the same."""
    most = Deadline(PATIENCE)

    def reads_slowly(name: str, data: bytes) -> None:
        assert not most.expired, "the deadline is not seen"
        with guest.agent._changed:
            assert guest.agent._changed.wait_for(lambda: any(guest.agent._queues.values()), PATIENCE)

    with pytest.raises(TimeoutError):
        guest.agent.run(Command(argv=["yes"]), deadline=Deadline(0.3), on_output=reads_slowly)
    assert guest.children() == []


def test_spare_process_is_killed(guest: Guest) -> None:
    """Somebody kills the process that waits for its command: the next command runs all the same."""
    for number in range(20):
        os.kill(spare := guest.spare(), signal.SIGKILL)
        assert pid_ends(spare)
        assert guest.sh(f"echo {number}")[:2] == (Exit(0, None), b"%d\n" % number)


def test_spare_process_is_stopped(guest: Guest) -> None:
    """Somebody stops the process that waits for its command: the next command runs all the same."""
    os.kill(guest.spare(), signal.SIGSTOP)
    assert guest.sh("echo on", timeout=10)[:2] == (Exit(0, None), b"on\n")
    os.kill(guest.spare(), signal.SIGSTOP)
    longest = "x" * 60_000
    assert guest.run("echo", longest, timeout=10)[1].decode() == longest + "\n"


def test_spare_process_ends_with_the_agent(guest: Guest) -> None:
    """When the agent is killed, the process that waited for a command ends by itself."""
    spare = guest.spare()
    os.kill(guest.process.pid, signal.SIGKILL)
    assert pid_ends(spare)


def test_spare_process_is_no_command(guest: Guest) -> None:
    """It has a session of its own and nobody's terminal, and a reconnection of the host leaves it alone."""
    spare = guest.spare()
    assert os.getsid(spare) == spare
    assert guest.agent.connect(Deadline(PATIENCE))
    assert guest.spare() == spare
    result, out, _ = guest.sh("echo $$")
    assert (result, int(out)) == (Exit(0, None), spare)
    assert guest.spare() != spare


WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
"""An agent that may not touch the clock and the random numbers: those of this host are not for tests."""


@pytest.fixture
def powerless(binary: Path) -> Iterator[Guest]:
    """An agent that runs, is not connected, and may do nothing that not everybody may."""
    guest = Guest(binary, wrapper=WITHOUT_RIGHTS if os.getuid() == 0 else ())
    try:
        yield guest
    finally:
        guest.close()


@pytest.mark.parametrize("connected", [False, True])
def test_wake_that_is_refused(powerless: Guest, connected: bool) -> None:
    """A guest that cannot renew its random numbers says so with the kernel's reason; and it answers from there on."""
    if connected:
        assert powerless.agent.connect(Deadline(PATIENCE))
    with pytest.raises(GuestError, match="random numbers could not be set anew: Operation not permitted"):
        powerless.agent.wake(lambda: None, Deadline(PATIENCE), connected=connected)
    assert powerless.sh("echo alive")[1] == b"alive\n"


def test_wake_tells_of_each(powerless: Guest) -> None:
    """The answer has an error number for the random numbers and one for the clock."""
    assert powerless.agent.connect(Deadline(PATIENCE))
    for size in (1, 64, 256):
        assert wake(powerless, module.struct.pack("<QQ", 0, 0) + bytes(size)) == [(module.WAKE, TWO.pack(1, 1))]


@pytest.mark.parametrize("payload", [b"", bytes(8), bytes(16), bytes(16 + 257), bytes(60_000)])
def test_malformed_wake(powerless: Guest, payload: bytes) -> None:
    """A WAKE without random bytes, or with more than the agent has room for, is ignored."""
    assert powerless.agent.connect(Deadline(PATIENCE))
    assert wake(powerless, payload) == []
    assert powerless.sh("echo alive")[1] == b"alive\n"


def wake(guest: Guest, payload: bytes) -> list[tuple[int, bytes]]:
    """Send that WAKE; the frames that came as answers by the time of the next answer."""
    guest.agent._queues[99] = frames = module.deque()
    guest.agent._send(module.WAKE, 99, payload, Deadline(PATIENCE))
    assert guest.agent.answers(Deadline(PATIENCE))
    return [*frames]


def test_wake_is_first(powerless: Guest) -> None:
    """What stands still finds HELLO and WAKE waiting before anything else when it goes on."""
    powerless.process.send_signal(signal.SIGSTOP)
    went_on = []

    def go_on() -> None:
        went_on.append(True)
        powerless.process.send_signal(signal.SIGCONT)

    with pytest.raises(GuestError, match="not permitted"):
        powerless.agent.wake(go_on, Deadline(PATIENCE), connected=False)
    assert went_on == [True]
    assert powerless.sh("echo alive")[1] == b"alive\n"


@pytest.mark.parametrize("connected", [False, True])
def test_wake_that_nobody_answers(powerless: Guest, connected: bool) -> None:
    """A guest that does not go on is told by the deadline, and can be connected to later."""
    if connected:
        assert powerless.agent.connect(Deadline(PATIENCE))
    powerless.process.send_signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        powerless.agent.wake(lambda: None, Deadline(0.3), connected=connected)
    powerless.process.send_signal(signal.SIGCONT)
    assert powerless.agent.connect(Deadline(PATIENCE))
    assert powerless.sh("echo alive")[1] == b"alive\n"


def pid_ends(pid: int) -> bool:
    """Wait until a process that was killed has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE)[0])
    finally:
        os.close(descriptor)


def test_timeout_before_it_began(guest: Guest) -> None:
    """A deadline that has passed when the command is sent still leaves nothing behind, every time."""
    for _ in range(30):
        with pytest.raises(TimeoutError):
            guest.run("sleep", "1000", timeout=0)
    assert guest.children() == []


def test_error_in_the_callers_callback(guest: Guest) -> None:
    """An error in on_output ends the command, and the next one runs."""

    def broken(name: str, data: bytes) -> None:
        raise ValueError(data)

    with pytest.raises(ValueError, match="y"):
        guest.agent.run(Command(argv=["yes"]), deadline=Deadline(PATIENCE), on_output=broken)
    assert guest.run("true")[0] == Exit(0, None)


def test_our_own_error_in_the_callers_callback(guest: Guest) -> None:
    """Also an error of vmtest's, such as that of the output limit, leaves no command behind."""

    def limited(name: str, data: bytes) -> None:
        raise GuestError("too much output")

    with pytest.raises(VmtestError, match="too much"):
        guest.agent.run(Command(argv=["yes"]), deadline=Deadline(PATIENCE), on_output=limited)
    assert guest.children() == []
    assert guest.run("true")[0] == Exit(0, None)


def test_slow_caller(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the caller is slow the guest waits, whether the caller then takes everything or gives up."""
    monkeypatch.setattr(module, "BACKLOG", 1 << 18)
    paused = lambda: guest.agent._paused  # noqa: E731
    size = 4 << 20
    got = bytearray()

    def slow(name: str, data: bytes) -> None:
        with guest.agent._changed:
            if not got:
                assert guest.agent._changed.wait_for(paused, PATIENCE)
        got.extend(data)

    command = Command(argv=["head", "-c", str(size), "/dev/zero"])
    assert guest.agent.run(command, deadline=Deadline(PATIENCE), on_output=slow) == Exit(0, None)
    assert len(got) == size

    def gives_up(name: str, data: bytes) -> None:
        with guest.agent._changed:
            assert guest.agent._changed.wait_for(paused, PATIENCE)
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        guest.agent.run(command, deadline=Deadline(PATIENCE), on_output=gives_up)
    assert guest.sh("echo alive")[1] == b"alive\n"


def test_background_child_does_not_block(guest: Guest) -> None:
    """A background child that keeps the output open is not waited for, and what was written is not lost."""
    result, out, _ = guest.sh("echo before; sleep 1000 & echo $!; exit 3")
    assert (result, out.split()[0]) == (Exit(3, None), b"before")
    os.kill(int(out.split()[1]), signal.SIGKILL)


def test_connect_again(guest: Guest) -> None:
    """Connecting anew kills what ran, and commands run as before."""
    started = threading.Event()
    pids: list[int] = []

    def on_output(name: str, data: bytes) -> None:
        pids.append(int(data))
        started.set()

    with ThreadPoolExecutor(1) as pool:
        command = Command(argv=["/bin/sh", "-c", "echo $$; exec sleep 1000"])
        running = pool.submit(guest.agent.run, command, deadline=Deadline(PATIENCE), on_output=on_output)
        assert started.wait(PATIENCE)
        guest.agent.forget()
        with pytest.raises(GuestGone, match="reset"):
            running.result(PATIENCE)
    assert guest.agent.connect(Deadline(PATIENCE))
    assert pid_ends(pids[0])
    assert guest.agent.connect(Deadline(PATIENCE))
    assert guest.sh("echo alive")[1] == b"alive\n"
    assert guest.agent.answers(Deadline(PATIENCE))


@pytest.mark.parametrize(
    "first",
    [
        b"\n" * 5,
        os.urandom(100_0),
        HEADER.pack(SPAWN, 7, 60000) + b"half",
        HEADER.pack(HELLO, HELLO_ID, 16)[:7],
        HEADER.pack(HELLO, HELLO_ID, 17),
        HEADER.pack(99, 1, 0) * 3,
    ],
    ids=["newlines", "noise", "half-spawn", "half-hello", "other-hello", "unknown"],
)
def test_garbage_before_hello(binary: Path, first: bytes) -> None:
    """Whatever an earlier life has left in the port, a new agent finds the HELLO behind it."""
    guest = Guest(binary, first=first)
    try:
        assert guest.agent.connect(Deadline(PATIENCE))
        assert guest.sh("echo alive")[1] == b"alive\n"
    finally:
        guest.close()


@pytest.mark.parametrize("torn", [HEADER.pack(99, 1, 8), HEADER.pack(SPAWN, 1, 1 << 30), b"\xff" * 40])
def test_agent_that_lost_its_place(guest: Guest, torn: bytes) -> None:
    """After bytes that are no frame the agent ignores everything until the next HELLO, and then works."""
    guest.socket.sendall(torn + HEADER.pack(SPAWN, 5, TWO.size + 8) + TWO.pack(1, 0) + b"\0reboot\0")
    assert guest.agent.connect(Deadline(PATIENCE))
    assert guest.sh("echo alive")[1] == b"alive\n"


@pytest.mark.parametrize(
    "payload", [b"", b"x", TWO.pack(1, 0), TWO.pack(0, 0) + b"\0", TWO.pack(5, 5) + b"\0a\0", b"\xff" * 99]
)
def test_malformed_spawn(guest: Guest, payload: bytes) -> None:
    """A SPAWN that makes no sense is refused and harms nothing."""
    guest.agent._queues[99] = frames = module.deque()
    guest.agent._send(SPAWN, 99, payload, Deadline(PATIENCE))
    guest.agent.answers(Deadline(PATIENCE))
    assert [kind for kind, _ in frames] == [module.REFUSED]
    assert guest.run("true")[0] == Exit(0, None)


def test_too_long_arguments(guest: Guest) -> None:
    """A command line that the protocol cannot carry is the user's mistake, with a way out; nothing is sent."""
    for argv in (["x" * 70_000], ["x"] * 2500):
        with pytest.raises(UsageError, match="the agent takes") as caught:
            guest.run("echo", *argv)
        assert "input=" in caught.value.hint
    with pytest.raises(UsageError, match="NUL"):
        guest.run("echo", "a\0b")
    longest = ["x" * 60_000, *["y"] * 1900]
    assert guest.run("echo", *longest)[1].split() == [word.encode() for word in longest]


def test_port_closes(guest: Guest) -> None:
    """When the port closes a running command ends with GuestGone at once, and so do later ones."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(guest.run, "sleep", "1000")
        guest.far.shutdown(socket.SHUT_RDWR)
        with pytest.raises(GuestGone):
            running.result(PATIENCE)
    with pytest.raises(GuestGone):
        guest.run("true")
    assert not guest.agent.answers(Deadline(0))


def test_closed_for_good() -> None:
    """What still arrives while close() is under way does not open the agent again."""
    ours, theirs = socket.socketpair()
    agent = Agent(ours, Verdict())

    def late(running: module.asyncio.AbstractEventLoop) -> None:
        agent._closed = True  # as close() does, before the background thread has its turn
        theirs.send(b"late")
        agent._readable(running)

    with theirs:
        loop.call(late)
        assert agent._closed
        agent.close()


def test_verdict_ends_a_command(guest: Guest) -> None:
    """A panic that is seen elsewhere ends a running command at once."""
    started = threading.Event()
    report = CrashReport(kind="panic", severity=Severity.FATAL, title="panic", text="panic")
    with ThreadPoolExecutor(1) as pool:
        command = Command(argv=["/bin/sh", "-c", "echo; exec sleep 1000"])
        running = pool.submit(
            guest.agent.run, command, deadline=Deadline(PATIENCE), on_output=lambda name, data: started.set()
        )
        assert started.wait(PATIENCE)
        guest.verdict.set(lambda: GuestPanicked("panic", report=report))
        with pytest.raises(GuestPanicked):
            running.result(PATIENCE)


def test_torn_frame_is_completed(binary: Path) -> None:
    """A frame that was cut short by a deadline is completed before the next one is sent."""
    ours, theirs = socket.socketpair()
    agent = Agent(ours, Verdict())
    sent = 0
    with theirs, pytest.raises(TimeoutError):  # noqa: PT012
        while True:
            agent._send(module.STDIN, 1, bytes(60_000), Deadline(0))
            sent += 1
    ours2, theirs2 = socket.socketpair()
    ours2.setblocking(False)
    rest = agent._unsent
    assert 0 < len(rest) < HEADER.size + 60_000
    agent.close()
    agent._sock = ours2
    agent._send(PING, 2, b"", Deadline(PATIENCE))
    with theirs2, ours2:
        assert theirs2.recv(1 << 20) == rest + HEADER.pack(PING, 2, 0)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 200), max_size=12), st.binary(min_size=1, max_size=300))
def test_frames_cut_anywhere(guest: Guest, cuts: list[int], data: bytes) -> None:
    """However the bytes of the frames are cut on their way to the agent, the command gets what was meant for it."""
    number = next(guest.agent._ids)
    payload = module._spawn_payload(Command(argv=["cat"]))
    stream = HEADER.pack(SPAWN, number, len(payload)) + payload
    stream += HEADER.pack(module.STDIN, number, len(data)) + data + HEADER.pack(module.STDIN, number, 0)
    guest.agent._queues[number] = module.deque()
    for cut in cuts:
        os.write(guest.master, stream[:cut])
        stream = stream[cut:]
    os.write(guest.master, stream)
    out = b""
    while (frame := guest.agent._next(number, Deadline(PATIENCE))) and frame[0] != module.EXIT:
        out += frame[1] if frame[0] == module.STDOUT else b""
    assert out == data
