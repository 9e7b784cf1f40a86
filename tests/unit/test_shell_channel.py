"""The console channel against real shells on ptys of this host, with kernel messages thrown in."""

from __future__ import annotations

import hashlib
import os
import pty
import random
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vmtest.deadline import Deadline
from vmtest.errors import GuestError, GuestGone, UsageError
from vmtest.model.machine import Channel
from vmtest.qemu import posix
from vmtest.qemu.channel import Command
from vmtest.qemu.console import Console
from vmtest.qemu.shell import Shell
from vmtest.qemu.verdict import Verdict

FANCY = r"""
PS1='\[\e[1;32m\]\u@\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]\$ '
PROMPT_COMMAND='printf "\033]0;title %s\007" "$PWD"; echo "[status $?]"'
bind 'set enable-bracketed-paste on'
"""
PRINTK = (
    b"[   12.345678] foo: bar\r\n",
    b"[   99.000001] <4 = 3 QUJD 4> usb 1-1: new high-speed device; number 7\r\n",
    b"random: crng init done\r\n",
    b"[    3.141592] Oops: 0002 [#1] SMP\r\n[    3.141593] CPU: 0 PID: 1\r\n",
)
SETSID = shutil.which("setsid") or "setsid"
ENV = shutil.which("env") or "env"
TOOLS = "sh mkdir dd wc rm cat env sleep printf kill true seq"


class Line:
    """A serial line: a shell on a pty at one end, a socket at the other, and a kernel that talks in between."""

    def __init__(self, argv: list[str], env: dict[str, str], every: float = 0.0) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.random = random.Random(7)
        self.every = every
        self.left = self.gap()
        self.printed = 0
        self.master, slave = pty.openpty()
        self.shell = subprocess.Popen(
            [SETSID, "-c", ENV, "--default-signal", *argv], stdin=slave, stdout=slave, stderr=slave, env=env
        )
        os.close(slave)
        self.thread = threading.Thread(target=self.bridge, daemon=True)
        self.thread.start()

    def gap(self) -> int:
        return int(self.random.expovariate(1 / self.every)) if self.every else 1 << 60

    def noisy(self, data: bytes) -> bytes:
        out = []
        while len(data) > self.left:
            out += [data[: self.left], self.random.choice(PRINTK)]
            data, self.left = data[self.left :], self.gap()
            self.printed += 1
        self.left -= len(data)
        return b"".join([*out, data])

    def bridge(self) -> None:
        try:
            while True:
                ready, _, _ = select.select([self.master, self.theirs], [], [])
                if self.master in ready:
                    self.theirs.sendall(self.noisy(os.read(self.master, 65536)))
                if self.theirs in ready:
                    data = self.theirs.recv(65536)
                    if not data:
                        return
                    while data:
                        data = data[os.write(self.master, data) :]
        except OSError:
            self.theirs.close()

    def close(self) -> None:
        self.shell.kill()
        self.shell.wait()
        self.thread.join()
        os.close(self.master)
        self.theirs.close()


class Guest:
    def __init__(self, line: Line, log: Path) -> None:
        self.line = line
        self.verdict = Verdict()
        self.console = Console(line.ours, log=log, verdict=self.verdict)
        self.shell = Shell(self.console, self.verdict)

    def run(self, *argv: str, timeout: float = 30.0, **how: object) -> tuple[int, bytes, bytes, int | None]:
        got = {"stdout": bytearray(), "stderr": bytearray()}
        command = Command(argv=argv, **how)  # type: ignore[arg-type]
        status, signal = self.shell.run(
            command, deadline=Deadline(timeout), on_output=lambda stream, data: got[stream].extend(data)
        )
        return status, bytes(got["stdout"]), bytes(got["stderr"]), signal

    def sh(self, script: str, timeout: float = 30.0, **how: object) -> tuple[int, bytes, bytes, int | None]:
        return self.run("sh", "-c", script, timeout=timeout, **how)


Boot = Callable[..., Guest]


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """Starts a shell on a line: "ash" among busybox's tools, "dash" with few tools, "bash", "fancy" bash."""
    guests: list[Guest] = []

    def start(kind: str, every: float = 0.0) -> Guest:
        bin_ = tmp_path / f"bin{len(guests)}"
        bin_.mkdir()
        (tmp_path / "tmp").mkdir(exist_ok=True)
        env = {"PATH": str(bin_), "TERM": "vt220", "HOME": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")}
        (tmp_path / "rc").write_text(FANCY)
        if kind == "ash":
            busybox = shutil.which("busybox")
            if busybox is None:
                pytest.skip("no busybox on this host: apt-get install busybox-static")
            subprocess.run([busybox, "--install", "-s", str(bin_)], check=True)
            argv = [str(bin_ / "sh"), "-i"]
        elif kind == "dash":
            for tool in (TOOLS + " od").split():
                (bin_ / tool).symlink_to(shutil.which("dash" if tool == "sh" else tool) or "")
            argv = [str(bin_ / "sh"), "-i"]
        else:
            env["PATH"] += ":" + os.environ["PATH"]
            (bin_ / "sh").symlink_to(shutil.which("bash") or "")
            argv = ["bash", "--norc", "-i"] if kind == "bash" else ["bash", "--rcfile", str(tmp_path / "rc"), "-i"]
        guest = Guest(Line(argv, env, every), tmp_path / f"console{len(guests)}.log")
        guests.append(guest)
        assert guest.shell.connect(Deadline(20))
        return guest

    yield start
    for guest in guests:
        guest.console.close()
        guest.line.close()


@pytest.fixture(params=["ash", "dash", "bash", "fancy"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the shells that a console may have."""
    return str(request.param)


def test_a_command_comes_back(boot: Boot, kind: str) -> None:
    """Output, standard error and status of a command arrive apart, whatever shell has the console."""
    guest = boot(kind)
    assert guest.shell.kind is Channel.CONSOLE
    assert guest.sh("printf 'no newline'; printf 'to stderr\\n' >&2; exit 3") == (
        3,
        b"no newline",
        b"to stderr\n",
        None,
    )
    assert guest.run("true") == (0, b"", b"", None)
    assert guest.run("no-such-program")[0] == 127
    assert guest.run("printf", "%s|", "", "a b", "$HOME", "'", '"', "\\", "!", "*", "\n", "\t", "é", "-n")[1] == (
        "|a b|$HOME|'|\"|\\|!|*|\n|\t|é|-n|".encode()
    )


@pytest.mark.parametrize("every", [0.0, 1500.0, 150.0], ids=["quiet", "chatty", "flooding"])
def test_binary_output_is_identical(boot: Boot, kind: str, every: float) -> None:
    """Random bytes come out of the guest and back from standard input as they went in, printk or not."""
    guest = boot(kind, every)
    data = random.Random(1).randbytes(20_000) + bytes(range(256)) * 4 + b"\r\n\0\x1b[31m\x03\x04\x1a"
    status, out, err, _ = guest.sh("cat; printf '\\000\\377\\r' >&2", input=data)
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert (status, err) == (0, b"\0\xff\r")
    assert guest.line.printed > 0 or not every


@pytest.mark.parametrize("every", [0.0, 4000.0], ids=["quiet", "chatty"])
def test_big_output_is_identical(boot: Boot, kind: str, every: float, tmp_path: Path) -> None:
    """A MiB arrives whole, in a time that has room for retransmissions."""
    guest = boot(kind, every)
    data = random.Random(2).randbytes(1 << 20)
    (tmp_path / "big").write_bytes(data)
    _, out, _, _ = guest.run("cat", str(tmp_path / "big"), timeout=60)
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("every", [0.0, 4000.0], ids=["quiet", "chatty"])
def test_big_input_is_identical(boot: Boot, every: float) -> None:
    """300 KiB of input arrive whole, although a tty holds 4 KiB."""
    guest = boot("ash", every)
    data = random.Random(4).randbytes(300 << 10)
    assert guest.run("sha256sum", input=data)[1].split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_output_may_look_like_a_prompt_or_a_frame(boot: Boot, kind: str, tmp_path: Path) -> None:
    """Nothing that a command prints, its own typed line and the helper's language included, is taken for an answer."""
    guest = boot(kind)
    guest.run("true")
    text = (tmp_path / "console0.log").read_bytes() + b"# $ \n<abc 0 ready base64 setsid abc>\nlogin: "
    assert guest.run("cat", input=text)[1] == text


def test_signals_are_told(boot: Boot, kind: str) -> None:
    """A command that a signal ends is reported with the signal; SIGINT and SIGQUIT are not ignored in it."""
    guest = boot(kind)
    for number in (2, 3, 9, 15):
        suicide = f"import os; os.kill(os.getpid(), {number})"
        assert guest.run(sys.executable, "-SIc", suicide)[0::3] == (128 + number, number)
    assert guest.sh("exit 255")[0::3] == (255, None)


def test_stdin_is_empty_unless_given(boot: Boot, kind: str) -> None:
    """A command that reads standard input finds its end at once, and never what we type."""
    guest = boot(kind)
    assert guest.run("cat") == (0, b"", b"", None)
    assert guest.run("cat", input=b"a\nb")[1] == b"a\nb"


def test_environment_and_directory(boot: Boot, kind: str, tmp_path: Path) -> None:
    """Variables are added to the shell's own, the directory is the one asked for, and neither outlives the command."""
    guest = boot(kind)
    (tmp_path / "a 'dir'").mkdir()
    where = str(tmp_path / "a 'dir'")
    ran = guest.sh('printf %s "$PWD:$A:$HOME"', env={"A": "x'y $z\n"}, cwd=where)
    assert ran[1].decode() == f"{where}:x'y $z\n:{tmp_path}"
    assert guest.sh('printf %s "$A"')[1] == b""
    assert guest.run("true", cwd="/no/such")[0] == 126


def test_a_long_command_line(boot: Boot, kind: str) -> None:
    """20 KiB of arguments arrive, although the tty takes 4 KiB in a line."""
    guest = boot(kind)
    long = "".join(random.Random(3).choices("abc '\"\\$!\n", k=20_000))
    assert guest.run("printf", "%s", long)[1].decode() == long


def test_a_timeout_kills_and_the_console_is_usable_again(boot: Boot, kind: str, tmp_path: Path) -> None:
    """At the deadline the command is dead although it ignores signals; what it had written is handed over."""
    guest = boot(kind)
    got = []
    command = Command(argv=["sh", "-c", "trap '' INT TERM; echo $$; while :; do sleep 1; done"])
    with pytest.raises(TimeoutError):
        guest.shell.run(command, deadline=Deadline(0.6), on_output=lambda stream, data: got.append(data))
    with pytest.raises(ProcessLookupError):
        os.kill(int(got[0]), 0)
    assert guest.sh("echo again")[1] == b"again\n"
    assert list((tmp_path / "tmp").rglob("*.*")) == [next((tmp_path / "tmp").iterdir())]


def test_a_timeout_kills_children(boot: Boot) -> None:
    """Where there is setsid, the children of a command die with it."""
    guest = boot("ash")
    got = []
    command = Command(argv=["sh", "-c", "sleep 1000 & echo $!; wait"])
    with pytest.raises(TimeoutError):
        guest.shell.run(command, deadline=Deadline(0.6), on_output=lambda stream, data: got.append(data))
    state = Path(f"/proc/{int(got[0])}/status")
    assert not state.exists() or "zombie" in state.read_text()


def test_a_background_child_does_not_block(boot: Boot, kind: str) -> None:
    """A child that holds the command's output open is not waited for, and outlives the command."""
    guest = boot(kind)
    status, out, _, _ = guest.sh("sleep 1000 & echo $!")
    assert status == 0
    os.kill(int(out), 9)


def test_a_dialogue_on_the_console_goes_on_in_between(boot: Boot, kind: str) -> None:
    """Commands leave a prompt and an echo behind, and do not mind what a dialogue has left."""
    guest = boot(kind)
    guest.sh("echo one")
    guest.console.sendline("A=4; echo $((A+38))-")
    guest.console.expect("42-")
    guest.console.send("half a line that nobody ends")
    assert guest.sh("echo two")[1] == b"two\n"
    guest.console.sendline("echo $((A+1))+")
    guest.console.expect(r"5\+")
    assert guest.run("cat", input=bytes(10_000))[1] == bytes(10_000)
    guest.console.sendline("echo $((A+2))+")
    guest.console.expect(r"6\+")


def test_a_busy_console_is_told(boot: Boot) -> None:
    """Where another program has the console's foreground, the error shows the console and the hint says so."""
    guest = boot("bash")
    guest.console.sendline("echo star''ted; exec sleep 1000")
    guest.console.expect("started")
    with pytest.raises(GuestError, match="something else may be running"):
        guest.run("true", timeout=1)


def test_a_login_prompt_is_told(boot: Boot) -> None:
    """Where somebody has to log in first, nothing is typed and the error says what to do."""
    guest = boot("bash")
    guest.console.sendline("printf 'host log''in: '; read name; echo \"<$name>\"")
    guest.console.expect("login: ")
    with pytest.raises(GuestError, match="log in first"):
        guest.shell.connect(Deadline(10))
    guest.console.sendline("root")
    guest.console.expect("<root>")
    assert guest.shell.connect(Deadline(10))


def test_a_guest_that_says_nothing(tmp_path: Path) -> None:
    """Connecting to a line without a shell ends at the deadline with False."""
    ours, theirs = socket.socketpair()
    console = Console(ours, log=tmp_path / "log", verdict=Verdict())
    shell = Shell(console, Verdict())
    assert not shell.connect(Deadline(0.5))
    theirs.close()
    with pytest.raises(GuestGone):
        shell.connect(Deadline(5))
    console.close()


def test_it_answers(boot: Boot, kind: str, tmp_path: Path) -> None:
    """The alive check sees a prompt and a running command alive, and a stopped shell not, in spite of a dialogue."""
    guest = boot(kind)
    assert guest.shell.answers(Deadline(10))
    guest.console.sendline("echo mar''ker")
    assert guest.shell.answers(Deadline(10))
    guest.console.expect("marker")
    alive = []

    def look() -> None:
        alive.append(guest.shell.answers(Deadline(10)))
        (tmp_path / "seen").touch()

    thread = threading.Thread(target=look)
    thread.start()
    assert guest.sh("until [ -e seen ]; do sleep 0.02; done; echo done", cwd=str(tmp_path))[1] == b"done\n"
    thread.join()
    assert alive == [True]
    guest.line.shell.send_signal(19)
    assert not guest.shell.answers(Deadline(0.3))


def test_a_reset_ends_the_wait(boot: Boot, tmp_path: Path) -> None:
    """Whoever waits for a command when the guest is reset gets GuestGone once the guest prints again."""
    guest = boot("bash")
    os.mkfifo(tmp_path / "started")

    pids = []

    def reset() -> None:
        pids.append(int((tmp_path / "started").read_text()))
        guest.shell.forget()
        os.write(guest.line.master, b"\n")  # its echo stands for the firmware's first words

    thread = threading.Thread(target=reset)
    thread.start()
    with pytest.raises(GuestGone, match="reset"):
        guest.sh("echo $$ >started; exec sleep 1000", cwd=str(tmp_path))
    thread.join()
    with suppress(ProcessLookupError):  # the shell may have ended it
        os.kill(pids[0], 9)


def test_missing_programs_are_named(boot: Boot, tmp_path: Path) -> None:
    """A guest without an encoder is refused with the list of what was looked for."""
    guest = boot("dash")
    (tmp_path / "bin0" / "od").unlink()
    with pytest.raises(GuestError, match="one of base64, od, hexdump"):
        guest.run("true")
    assert guest.shell.answers(Deadline(10))


def test_a_lost_helper_is_stored_again(boot: Boot, kind: str, tmp_path: Path) -> None:
    """When the guest's temporary files are gone, the next command works all the same."""
    guest = boot(kind)
    guest.run("true")
    shutil.rmtree(next((tmp_path / "tmp").glob(".vmtest-*")))
    assert guest.sh("echo here")[1] == b"here\n"


def test_what_a_shell_cannot_pass_is_refused(boot: Boot) -> None:
    """NUL bytes in arguments and names that are none for a variable are the user's mistake, told before running."""
    guest = boot("ash")
    with pytest.raises(UsageError, match="NUL"):
        guest.run("printf", "a\0b")
    with pytest.raises(UsageError, match="a-b"):
        guest.run("true", env={"a-b": "c"})


def test_cksum_is_posix() -> None:
    """The checksum equals that of the cksum program."""
    for data in (b"", b"a", bytes(range(256)) * 3):
        ran = subprocess.run(["cksum"], input=data, capture_output=True, check=True)
        assert posix.cksum(data) == int(ran.stdout.split()[0])
