"""The console: nothing lost, nothing unbounded, and whoever waits is woken."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmtest.deadline import Deadline
from vmtest.errors import ConsoleTimeout, GuestGone, GuestPanicked, HostError, QemuDied, UsageError
from vmtest.model.observation import CrashReport, Severity
from vmtest.qemu import console as module
from vmtest.qemu import loop
from vmtest.qemu.console import Console
from vmtest.qemu.verdict import Verdict

PATIENCE = 60.0
REPORT = CrashReport(kind="panic", severity=Severity.FATAL, title="panic", text="panic")


class Guest:
    """A console and the other end of its socket."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.verdict = Verdict()
        self.socket, ours = socket.socketpair()
        self.console = Console(ours, log=folder / "console.log", verdict=self.verdict, timeout=PATIENCE, **options)

    def prints(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def prints_one_by_one(self, *pieces: bytes) -> None:
        """Each piece only when the console has received the one before."""
        for piece in pieces:
            total = self.console.total + len(piece)
            self.socket.sendall(piece)
            self.wait_total(total)

    def wait_total(self, total: int) -> None:
        with self.console._changed:
            assert self.console._changed.wait_for(lambda: self.console.total >= total, PATIENCE)

    def close(self) -> None:
        self.console.close()
        self.socket.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A console and the other end of its socket."""
    guest = Guest(tmp_path)
    yield guest
    guest.close()


class Waiting(threading.Thread):
    """Calls something in a thread of its own; ``outcome`` is what it returned or raised."""

    def __init__(self, function: Any) -> None:
        super().__init__(daemon=True)
        self.function = function
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.function()
        except Exception as error:
            self.outcome = error

    def result(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), "still waiting"
        return self.outcome


def until_expecting(console: Console) -> None:
    """Return when another thread's expect has looked at all there was and waits."""
    while console._search is None:
        threading.Event().wait(0.001)


# -- matching --------------------------------------------------------------------------------------------------------


def test_match_split_over_chunks(guest: Guest) -> None:
    """A match is found wherever the bytes were cut apart."""
    expecting = Waiting(lambda: guest.console.expect(r"login(: )+$"))
    guest.prints_one_by_one(*(b"%c" % byte for byte in b"Debian\r\nlog"), b"in:", b" ")
    assert expecting.result() == 0
    assert (guest.console.before, guest.console.after) == (b"Debian\r\n", b"login: ")


def test_exact_match_split_over_chunks(guest: Guest) -> None:
    """The same for plain text, in which nothing is special."""
    expecting = Waiting(lambda: guest.console.expect_exact("[ok] (.*)"))
    guest.prints_one_by_one(b"x" * 100_000, b"[ok", b"] (", b".*", b") rest")
    assert expecting.result() == 0
    assert guest.console.before == b"x" * 100_000
    assert guest.console.match == guest.console.after == b"[ok] (.*)"
    assert guest.console.read(99, Deadline(0)) == b" rest"


def test_several_patterns(guest: Guest) -> None:
    """Of several patterns the one that matches first in the stream wins, then the first in the list."""
    guest.prints(b"one two three")
    console = guest.console
    assert console.expect(["three", "two", re.compile("t.o"), rb"(?P<name>four)"]) == 1
    assert console.expect_exact(["never", b"three", "thr"]) == 1
    guest.prints(b"four")
    assert console.expect(["x", "(?P<name>four)"]) == 1
    assert isinstance(console.match, re.Match)
    assert console.match["name"] == b"four"


def test_eof_and_timeout_patterns(guest: Guest) -> None:
    """EOF and TIMEOUT among the patterns give their index instead of an error, and a time-out consumes nothing."""
    console = guest.console
    guest.prints(b"last words")
    assert console.expect(["never", pexpect.TIMEOUT, pexpect.EOF], timeout=0) == 1
    assert console.expect_exact([pexpect.TIMEOUT, "never"], timeout=0) == 0
    assert console.match is pexpect.TIMEOUT
    guest.socket.close()
    assert console.expect_exact(["never", pexpect.EOF]) == 1
    assert (console.before, console.after) == (b"last words", pexpect.EOF)
    assert console.expect(pexpect.EOF) == 0
    assert console.before == b""


def test_zero_timeout_looks_at_what_is_there(guest: Guest) -> None:
    """A time-out of zero seconds still searches all that has been printed."""
    guest.prints_one_by_one(b"x" * 500_000 + b"here")
    assert guest.console.expect_exact("here", timeout=0) == 0


def test_line_anchor_is_not_fooled(guest: Guest) -> None:
    """^ matches at the beginning of a line only, not where the searched window happens to begin."""
    text = b"y" * (module.TAIL // 2)
    expecting = Waiting(lambda: guest.console.expect("(?m)^y?# "))
    until_expecting(guest.console)
    guest.prints_one_by_one(b"yy", text, b"# not a prompt", text, b"\n# ")
    assert expecting.result() == 0
    assert guest.console.before.endswith(b"y\n")


def test_empty_match_at_the_end(guest: Guest) -> None:
    """A pattern that matches nothing at the end of the text has all of it before."""
    guest.prints_one_by_one(b"abc")
    guest.console.expect("$")
    assert guest.console.before == b"abc"


def test_bad_pattern(guest: Guest) -> None:
    """A pattern that is no regular expression is the user's mistake, told as such."""
    with pytest.raises(UsageError, match="no regular expression"):
        guest.console.expect("(")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_is_lost_however_it_is_cut(tmp_path: Path, data: st.DataObject) -> None:
    """Expecting each of a text's markers in order finds all of them, and what is between, for any chunks."""
    between = data.draw(st.lists(st.binary(max_size=40).filter(lambda b: b"#" not in b), min_size=1, max_size=20))
    text = b"".join(gap + b"#%d#" % number for number, gap in enumerate(between))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=30)))
    exact = data.draw(st.booleans())
    guest = Guest(tmp_path)
    try:
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        writer = Waiting(lambda: guest.prints(*pieces))
        for number, gap in enumerate(between):
            marker = f"#{number}#"
            assert (guest.console.expect_exact if exact else guest.console.expect)(marker) == 0
            assert guest.console.before == gap
        writer.result()
    finally:
        guest.close()


def test_slow_expects_of_a_fast_writer(guest: Guest) -> None:
    """While somebody attends the console no match is lost, however far the guest is ahead."""
    lines = [b"line %d " % number + b"." * 2000 + b"\n" for number in range(3000)]
    writer = Waiting(lambda: guest.prints(*lines))
    with guest.console.attended():
        for number in range(3000):
            guest.console.expect_exact(b"line %d " % number)
            assert len(guest.console._unread) < 2 * module.KEPT + module.READ
    assert writer.result() is None


def test_unread_guest_goes_on(guest: Guest) -> None:
    """A guest that was made to wait goes on when the one who attended leaves, and the newest text is there."""
    with guest.console.attended():
        writer = Waiting(lambda: guest.prints(b"x" * 20_000_000, b"end"))
        guest.wait_total(module.KEPT + 1)
    assert writer.result() is None
    guest.console.expect_exact("end")


def test_log_holds_every_byte(guest: Guest) -> None:
    """The log is what the guest printed, byte for byte, as soon as an expect returns."""
    text = os.urandom(3_000_000) + b"#end#"
    writer = Waiting(lambda: guest.prints(text))
    guest.console.expect_exact("#end#")
    assert guest.console.log_path.read_bytes() == text
    assert guest.console.tail == text[-len(guest.console.tail) :]
    assert module.TAIL <= len(guest.console.tail) <= module.TAIL + module.READ
    assert writer.result() is None


def test_log_of_a_flood_that_came_before(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same when it was printed before the call: what a flood's log still holds back is written first."""
    monkeypatch.setattr(module, "FLOOD", 1)
    go_on = threading.Event()
    guest.prints_one_by_one(b"flood#end#")
    loop.post(lambda running: go_on.wait(PATIENCE))  # the background thread cannot do it
    try:
        guest.console.expect_exact("#end#")
        assert guest.console.log_path.read_bytes() == b"flood#end#"
    finally:
        go_on.set()


def test_full_disk_ends_the_log_only(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the log cannot be written the console goes on, and the error of a later time-out tells it."""
    with Path("/dev/full").open("ab", buffering=0) as full:
        monkeypatch.setattr(guest.console._log, "_file", full)
        guest.prints(b"hello")
        guest.console.expect_exact("hello")
        with pytest.raises(ConsoleTimeout, match="No space left on device"):
            guest.console.expect_exact("never", timeout=0)


def test_log_in_a_place_that_is_not_there(tmp_path: Path) -> None:
    """A log that cannot be opened is an error of the host that names the file."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(HostError, match="nowhere"):
        Console(ours, log=tmp_path / "nowhere" / "console.log", verdict=Verdict())


def test_on_data_sees_all_and_breaks_nothing(tmp_path: Path) -> None:
    """Each byte is handed on once, and only after it can be expected."""
    got: list[bytes] = []
    guest = Guest(tmp_path, on_data=got.append)
    guest.prints(b"a" * 300_000, b"end")
    guest.console.expect_exact("end")
    guest.console.close()
    assert b"".join(got) == b"a" * 300_000 + b"end"
    guest.close()


# -- endings ---------------------------------------------------------------------------------------------------------


def test_timeout_shows_the_tail(guest: Guest) -> None:
    """A time-out says what was expected, where the log is and what was seen last."""
    guest.prints_one_by_one(b"Booting\r\nstill\x1b[0m waiting\r\n")
    with pytest.raises(ConsoleTimeout) as caught:
        guest.console.expect("login: ", timeout=0)
    assert "'login: '" in caught.value.message
    assert str(guest.console.log_path) in caught.value.hint
    assert caught.value.evidence["console tail"] == "Booting\nstill\\x1b[0m waiting"
    assert guest.console.before == b"Booting\r\nstill\x1b[0m waiting\r\n"
    assert guest.console.expect("Booting", timeout=0) == 0


def test_verdict_wakes_an_expect(guest: Guest) -> None:
    """An expect in one thread ends as soon as another thread has seen the guest crash."""
    expecting = Waiting(lambda: guest.console.expect("never"))
    until_expecting(guest.console)
    guest.verdict.set(lambda: GuestPanicked("panic", report=REPORT))
    assert isinstance(expecting.result(), GuestPanicked)


def test_verdict_ends_an_expect_in_a_flood(guest: Guest) -> None:
    """The same while the guest goes on printing without end."""
    stop = threading.Event()
    writer = Waiting(lambda: [guest.prints(b"x" * 4096) for _ in iter(stop.is_set, True)])
    expecting = Waiting(lambda: guest.console.expect("never"))
    until_expecting(guest.console)
    guest.verdict.set(lambda: GuestPanicked("panic", report=REPORT))
    assert isinstance(expecting.result(), GuestPanicked)
    with pytest.raises(GuestPanicked):  # noqa: PT012 - what was printed before the verdict comes first
        while True:
            guest.console.read(4096, Deadline(PATIENCE))
    with pytest.raises(GuestPanicked):
        guest.console.send("x")
    stop.set()
    writer.result()


def test_text_before_the_verdict_is_searched(guest: Guest) -> None:
    """What a guest printed before it crashed can still be expected afterwards."""
    guest.prints_one_by_one(b"Kernel panic - not syncing")
    guest.verdict.set(lambda: GuestPanicked("panic", report=REPORT))
    assert guest.console.expect("Kernel panic") == 0
    with pytest.raises(GuestPanicked):
        guest.console.expect("never")


def test_last_words_come_before_the_end(guest: Guest) -> None:
    """The end of QEMU may be known before its last output has been read: that is searched first."""
    expecting = Waiting(lambda: guest.console.expect("Power down"))
    until_expecting(guest.console)
    guest.verdict.set(lambda: GuestGone("powered off"))
    guest.prints(b"reboot: Power down")
    assert expecting.result() == 0
    guest.socket.close()
    with pytest.raises(GuestGone, match="powered off"):
        guest.console.expect("never")
    assert guest.console.expect(pexpect.EOF) == 0


def test_closed_console_waits_for_the_reason(guest: Guest) -> None:
    """When QEMU's end is seen by its socket first, the error is the verdict's that comes a moment later."""
    expecting = Waiting(lambda: guest.console.expect("never"))
    guest.socket.close()
    guest.verdict.set(lambda: QemuDied("SIGSEGV", exit_code=-11))
    assert isinstance(expecting.result(), QemuDied)


def test_closed_console_without_reason(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing else is known, the closed console itself is the error."""
    monkeypatch.setattr(module, "GRACE", 0.0)
    guest.socket.close()
    with pytest.raises(GuestGone, match="closed while 'never' was expected"):
        guest.console.expect("never")
    with pytest.raises(GuestGone, match="closed"):
        guest.console.send("x")
    with pytest.raises(EOFError):
        guest.console.read(1, Deadline(PATIENCE))


def test_close_wakes_an_expect(guest: Guest) -> None:
    """Closing the console ends an expect in another thread; closing it again does nothing."""
    expecting = Waiting(lambda: guest.console.expect("never"))
    until_expecting(guest.console)
    guest.console.close()
    assert isinstance(expecting.result(), GuestGone)
    guest.console.close()
    with pytest.raises(GuestGone):
        guest.console.send("x")


def test_close_while_the_guest_waits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Reading what is left of a closed console disturbs nothing in the background thread."""
    guest = Guest(tmp_path)
    with guest.console.attended():
        writer = Waiting(lambda: guest.prints(b"x" * 20_000_000))
        guest.wait_total(module.KEPT + 1)
        guest.console.close()
        while guest.console._unread:
            guest.console.read(1 << 20, Deadline(0))
    assert isinstance(writer.result(), OSError)
    Guest(tmp_path).close()  # the background thread has passed whatever was posted to it
    assert capfd.readouterr().err == ""
    guest.close()


def test_one_thread_expects(guest: Guest) -> None:
    """A second thread that expects gets an error at once instead of half of the matches."""
    expecting = Waiting(lambda: guest.console.expect("mine"))
    until_expecting(guest.console)
    with pytest.raises(UsageError, match="another thread"):
        guest.console.expect("yours")
    guest.prints(b"mine")
    assert expecting.result() == 0


def test_discard(guest: Guest) -> None:
    """What was discarded is never matched, not even as the beginning of a match."""
    guest.prints_one_by_one(b"old log")
    guest.console.discard()
    guest.prints(b"in: ready")
    assert guest.console.expect(["login", "in: ready"]) == 1
    expecting = Waiting(lambda: guest.console.expect(["login", "in: ready"]))
    until_expecting(guest.console)
    guest.prints_one_by_one(b"old log")
    guest.console.discard()
    guest.prints(b"in: ready")
    assert expecting.result() == 1


# -- typing ----------------------------------------------------------------------------------------------------------


def test_send(guest: Guest) -> None:
    """What is typed arrives in full, also when it is more than the socket holds."""
    typed = Waiting(lambda: [guest.console.send(b"x" * 3_000_000), guest.console.sendline("é")])
    want = b"x" * 3_000_000 + "é\n".encode()
    with guest.socket.makefile("rb") as file:
        assert file.read(len(want)) == want
    assert typed.result() == [None, None]


def test_send_to_a_guest_that_does_not_read(guest: Guest) -> None:
    """Typing into a guest that takes nothing ends in an error that says how much it took."""
    with pytest.raises(ConsoleTimeout, match=r"read \d+ of the 9000000 bytes"):
        guest.console.send(b"x" * 9_000_000, timeout=0.01)


def test_timeouts_are_scaled(tmp_path: Path) -> None:
    """Each time-out, also the default one, is multiplied by the scale, and the errors tell what was waited for."""
    guest = Guest(tmp_path, scale=0.0001)  # of a minute there are 6 ms left
    try:
        with pytest.raises(ConsoleTimeout, match=r"within 0\.006 s"):
            guest.console.expect("never")
        with pytest.raises(ConsoleTimeout, match=r"within 0\.01 s"):
            guest.console.expect_exact("never", timeout=100)
        with pytest.raises(ConsoleTimeout, match=r"within 0\.01 s"):
            guest.console.send(b"x" * 9_000_000, timeout=100)
        with pytest.raises(ConsoleTimeout, match=r"within 0\.02 s"):
            guest.console.sendline("x", timeout=200)
        with pytest.raises(ConsoleTimeout, match=r"within 0 s"):
            guest.console.send_until("x", Deadline(0))
    finally:
        guest.close()


def test_interact_needs_a_terminal(guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a terminal the user learns what to use instead."""
    with pytest.raises(UsageError, match="terminal only"):
        guest.console.interact()
    with (tmp_path / "console.log").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        monkeypatch.setattr(sys, "stdout", file)
        with pytest.raises(UsageError, match="terminal only"):
            guest.console.interact()


INTERACT = """
import pathlib, socket, sys, threading
from vmtest.qemu.console import Console
from vmtest.qemu.verdict import Verdict

ours, theirs = socket.socketpair()
console = Console(ours, log=pathlib.Path(sys.argv[1]), verdict=Verdict())

def guest():
    theirs.sendall(b"early text\\r\\nlogin: ")
    while data := theirs.recv(100):
        if b"bye" in data:
            theirs.sendall(b"halted")
            theirs.close()
            return
        theirs.sendall(b"<" + data + b">")

console_thread = threading.Thread(target=guest, daemon=True)
console_thread.start()
console.expect("early text")
console.interact()
print("left", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[pexpect.spawn]:
    """INTERACT on a pty of its own, up to the guest's prompt."""
    spawn = pexpect.spawn(
        sys.executable, ["-c", INTERACT, str(tmp_path / "log")], timeout=PATIENCE, cwd=Path(__file__).parents[2]
    )
    spawn.expect_exact("login: ")
    yield spawn
    spawn.close(force=True)


def test_interact(session: pexpect.spawn) -> None:
    """The terminal is raw and connected, with what was unread, until Ctrl-] is typed; then it is as before."""
    cooked = termios.ICANON | termios.ECHO | termios.ISIG
    assert termios.tcgetattr(session.child_fd)[3] & cooked == 0
    session.send("\x03root\r")
    session.expect_exact("<\x03root\r>")
    session.send("last\x1d")
    session.expect_exact("left")
    assert termios.tcgetattr(session.child_fd)[3] & cooked == cooked
    session.sendline("")
    session.expect(pexpect.EOF)


def test_interact_ends_with_the_guest(session: pexpect.spawn) -> None:
    """When the guest ends, so does the session, after its last words."""
    session.send("bye")
    session.expect_exact("halted")
    session.expect_exact("left")


# -- bounds ----------------------------------------------------------------------------------------------------------

FLOOD = """
import pathlib, resource, socket, sys, threading
import pexpect
from vmtest.qemu.console import Console
from vmtest.qemu.verdict import Verdict

piece, pieces, expecting = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "expecting"
ours, theirs = socket.socketpair()
console = Console(ours, log=pathlib.Path(sys.argv[1]), verdict=Verdict(), timeout=3600)

def flood():
    data = b"." * piece
    for _ in range(pieces):
        theirs.sendall(data)
    theirs.close()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
writer = threading.Thread(target=flood)
writer.start()
if expecting:
    console.expect(["never", pexpect.EOF])
writer.join()
console.close()
print(console.total, peak() - before)
"""


@pytest.mark.parametrize(("piece", "pieces"), [(1 << 16, 1500), (1, 300_000)])
@pytest.mark.parametrize("mode", ["expecting", "idle"])
def test_memory_is_bounded(tmp_path: Path, piece: int, pieces: int, mode: str) -> None:
    """A guest that prints without end costs a few MiB, in pieces of any size, expected of or not."""
    command = [sys.executable, "-c", FLOOD, str(tmp_path / "log"), str(piece), str(pieces), mode]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    total, kibibytes = map(int, run.stdout.split())
    assert total == piece * pieces or mode == "idle"
    assert kibibytes < 16 * 1024


def test_log_is_bounded(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log stops at its limit and says so, and the console goes on."""
    monkeypatch.setattr("vmtest.qemu.consolelog.LIMIT", 100_000)
    guest.prints_one_by_one(*[b"x" * 10_000] * 30, b"end")
    guest.console.expect_exact("end")
    assert guest.console.log_path.read_bytes().endswith(
        b"x\n[vmtest: the log ends here; the guest printed more than 1 GiB]\n"
    )
    assert guest.console.log_path.stat().st_size < 200_000
