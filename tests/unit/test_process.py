"""Child processes: they cannot outlive us, and how they ended is known."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vmtest.deadline import Deadline
from vmtest.errors import HostError
from vmtest.host.system import unhurried
from vmtest.qemu import loop
from vmtest.qemu import process as module
from vmtest.qemu.process import Process, how_it_ended
from vmtest.workdir import Workdir, base, sweep

REPO = Path(__file__).parents[2]
PATIENCE = 60.0


def ends(pid: int) -> bool:
    """Wait until the process with that id has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE)[0])
    finally:
        os.close(descriptor)


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Start:
    """Starts processes and kills them at the end of the test."""

    def __init__(self, folder: Path) -> None:
        self.stderr = folder / "stderr"
        self.processes: list[Process] = []

    def __call__(self, *command: str, **options: Any) -> Process:
        process = Process(command, stderr=self.stderr, **options)
        self.processes.append(process)
        return process


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts processes that do not outlive the test."""
    start = Start(tmp_path)
    yield start
    for process in start.processes:
        process.kill()


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("exit 0", 0, "exited with status 0"),
        ("exit 7", 7, "exited with status 7"),
        ("kill -SEGV $$", -signal.SIGSEGV, "was killed by SIGSEGV"),
        ("kill -KILL $$", -signal.SIGKILL, "was killed by SIGKILL"),
    ],
)
def test_how_it_ended(start: Start, script: str, code: int, words: str) -> None:
    """The exit code is as in subprocess, can be put in words, and on_exit gets it exactly once."""
    codes: list[int] = []
    process = start("/bin/sh", "-c", script, on_exit=codes.append)
    assert process.wait(Deadline(PATIENCE)) == process.returncode == code
    assert how_it_ended(code) == words
    assert process.kill() == code
    assert codes == [code]


def test_unknown_signal() -> None:
    """A real-time signal has no name, and is told by its number."""
    assert how_it_ended(-40) == "was killed by signal 40"


def test_wait_gives_up(start: Start) -> None:
    """Waiting ends at the deadline, and says that the process still runs."""
    process = start("sleep", "1000")
    assert process.wait(Deadline(0)) is None
    assert process.kill() == -signal.SIGKILL
    assert process.kill() == -signal.SIGKILL


def test_group_of_its_own(start: Start) -> None:
    """The process leads its own group, so that Ctrl-C at the terminal does not reach it."""
    process = start("sleep", "1000")
    assert os.getpgid(process.pid) == process.pid != os.getpgrp()


def test_kill_takes_the_grandchildren(start: Start) -> None:
    """Killing it kills what it has started too."""
    reader, writer = os.pipe()
    process = start(
        "/bin/sh", "-c", f"sleep 1000 & sleep 1000 & echo $! >/proc/self/fd/{writer}; wait", pass_fds=[writer]
    )
    os.close(writer)
    with open(reader) as file:  # noqa: PTH123
        grandchild = int(file.readline())
    process.kill()
    assert ends(grandchild)


def test_stderr_tail(start: Start) -> None:
    """The end of what it wrote, on standard output too, is kept for reports; binary garbage does no harm."""
    process = start("/bin/sh", "-c", "seq 100000; printf '\\377'; echo the reason >&2; exit 1")
    process.wait(Deadline(PATIENCE))
    assert process.stderr.endswith("100000\n\ufffdthe reason\n")
    assert len(process.stderr) <= 4000
    start.stderr.unlink()
    assert process.stderr == ""


def test_environment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are added to ours."""
    monkeypatch.setenv("OURS", "1")
    process = start("/bin/sh", "-c", "echo $OURS $ADDED", environment={"ADDED": "2"})
    process.wait(Deadline(PATIENCE))
    assert process.stderr == "1 2\n"


def test_descriptors(start: Start) -> None:
    """It inherits the descriptors that it was given under the same numbers, and no others; nothing leaks here."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    before = descriptors()
    process = start(
        "/bin/sh", "-c", "for n in $(seq 0 99); do [ -e /proc/$$/fd/$n ] && echo $n; done", pass_fds=[writer]
    )
    process.wait(Deadline(PATIENCE))
    assert [int(name) for name in process.stderr.split()] == sorted([0, 1, 2, writer])
    assert descriptors() <= before
    os.close(reader)
    os.close(writer)


def test_command_that_is_not_there(start: Start) -> None:
    """A command that cannot be run ends with status 127, and its stderr names it."""
    process = start("/no/such/qemu")
    assert process.wait(Deadline(PATIENCE)) == 127
    assert "/no/such/qemu" in process.stderr


def test_setpriv_is_missing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without setpriv nothing is started, and the error says what to install."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match="util-linux"):
        start("/bin/true")


def test_setpriv_of_busybox(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """BusyBox's setpriv cannot do it: that counts as none, and is told as such."""
    (tmp_path / "busybox").touch(0o755)
    (tmp_path / "setpriv").symlink_to("busybox")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="util-linux") as caught:
        start("/bin/true")
    assert "util-linux" in caught.value.hint


def test_stderr_in_a_place_that_is_not_there(start: Start, tmp_path: Path) -> None:
    """A file for its words that cannot be made is an error of the host that names it."""
    start.stderr = tmp_path / "nowhere" / "stderr"
    with pytest.raises(HostError, match="nowhere/stderr cannot be written"):
        start("/bin/true")


def test_known_before_the_caller_knows_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C in the middle of the start leaves a process that is killed at our end all the same."""
    before, call = set(module._alive), loop.call

    def interrupted(function: Any) -> None:
        call(function)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start("sleep", "1000")
    (orphan,) = module._alive - before
    start.processes.append(orphan)
    assert orphan.returncode is None
    assert orphan.kill() == -signal.SIGKILL
    assert orphan not in module._alive


def test_broken_callback(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    """An on_exit that fails does not leave others waiting for ever."""
    process = start("/bin/true", on_exit=lambda code: [][code])
    assert process.wait(Deadline(PATIENCE)) == 0


def test_many_at_once(start: Start) -> None:
    """Processes may be started from several threads, and each one's end is its own."""
    results: dict[int, int | None] = {}

    def one(number: int) -> None:
        results[number] = start("/bin/sh", "-c", f"exit {number}").wait(Deadline(PATIENCE))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == {number: number for number in range(12)}


FORKING = """
import os, pathlib, sys
from vmtest.qemu.process import Process
from vmtest.workdir import Workdir
workdir = Workdir()
process = Process(["sleep", "1000"], stderr=workdir.path / "stderr")
child = os.fork()
if not child:
    process.kill()
    workdir.remove()
    sys.exit(0)
os.waitpid(child, 0)
print(process.returncode, workdir.path.exists(), process.kill())
workdir.remove()
"""


def test_a_forked_child_owns_nothing(tmp_path: Path) -> None:
    """A child forked from the owner (multiprocessing) kills the process neither when it ends nor when asked to."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert run.stdout.split() == ["None", "True", "-9"]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directories of this test only."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return base()


def test_an_interrupted_removal_is_finished(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that is killed while it removes its directory, the lock first, leaves what the next sweep removes."""

    def killed(path: Path, **options: Any) -> None:
        (path / "lock").unlink(missing_ok=True)
        raise KeyboardInterrupt

    workdir, abandoned, living = Workdir(), Workdir(), Workdir()
    os.close(abandoned._lock)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep()
        with pytest.raises(KeyboardInterrupt):
            workdir.remove()
    sweep()
    assert list(scratch.iterdir()) == [living.path]
    living.remove()
    assert list(scratch.iterdir()) == []
    os.close(workdir._lock)


OWNER = """
import os, pathlib, signal, sys
from vmtest.qemu.process import Process
process = Process(["sleep", "1000"], stderr=pathlib.Path(sys.argv[1]))
print(process.pid, flush=True)
{}
"""


@pytest.mark.parametrize(
    "end",
    ["signal.pause()", "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "raise RuntimeError", "sys.exit(0)"],
    ids=["killed", "kills-itself", "_exit", "exception", "exit"],
)
def test_dies_with_its_parent(tmp_path: Path, end: str) -> None:
    """However the process that started it ends, SIGKILL included, the child is gone."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(end), str(tmp_path / "stderr")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPO,
    )
    assert owner.stdout is not None
    with owner, owner.stdout as out:
        child = int(out.readline())
        if "pause" in end:
            with suppress(ProcessLookupError):
                owner.kill()
        owner.wait(PATIENCE)
    assert ends(child)


@pytest.mark.parametrize("lean", [False, True])
def test_lean_has_no_huge_pages(tmp_path: Path, lean: bool) -> None:
    """A process that is to be lean gets no transparent huge pages; we, and others that we start, do as before."""

    def has_them(pid: int | str) -> bool:
        return "THP_enabled:\t1" in Path(f"/proc/{pid}/status").read_text()

    before = has_them("self")
    process = Process(["sleep", "1000"], stderr=tmp_path / "stderr", lean=lean)
    try:
        assert has_them(process.pid) == (before and not lean)
        assert has_them("self") == before
    finally:
        process.kill()


def test_unhurried() -> None:
    """A thread does not take the CPU from others for so long, and one of a policy of its own is left alone."""
    seen = list[int]()

    def look(own: int) -> None:
        os.sched_setscheduler(0, own, os.sched_param(0))
        with unhurried():
            seen.append(os.sched_getscheduler(0))
        seen.append(os.sched_getscheduler(0))

    for own in (os.SCHED_OTHER, os.SCHED_IDLE):
        thread = threading.Thread(target=look, args=(own,))
        thread.start()
        thread.join()
    assert seen == [os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_IDLE, os.SCHED_IDLE]
