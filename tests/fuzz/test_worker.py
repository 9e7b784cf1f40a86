"""Workers: what their deaths cost, that they leave nothing, and that neither end ever waits for the other for good."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from oncase import having

from vmtest.executors import EXECUTORS, executor, fleet, programs
from vmtest.executors.unicorn import Engine
from vmtest.executors.worker import Executor
from vmtest.model.case import Case
from vmtest.model.isa import DATA, DATA_SIZE, isa

X86 = isa("x86_64")
INC = Case.parse("x86_64 ffc0 rax=1")
ABORTS = Case.parse("x86_64 f00fb3cc")  # Unicorn 2.1.4


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def test_python_does_not_start_again() -> None:
    """A worker that a case has killed is another fork of the same process, and no dead one is left below that; of a
    thousand words that a library has for its deaths none is in the way.
    """
    others = _children()  # of other tests, in the same process
    with executor("unicorn", X86) as found:
        found.run([INC])
        (forks,) = _children() - others
        seen = set()
        for _ in range(60):
            before, dead, after = found.run([INC, ABORTS, INC])
            assert (before, dead.status) == (after, "died")
            (worker,) = forks.children()
            assert worker.status() != psutil.STATUS_ZOMBIE
            seen.add(worker.pid)
        assert len(seen) == 60
        assert _children() - others == {forks}
        assert found.deaths == 60


def test_no_dead_qemu_is_left() -> None:
    """A QEMU is waited for as soon as its worker has ended, and not when init gets to it."""
    others, ended = set(psutil.Process().children(recursive=True)), set[psutil.Process]()
    with having("qemu") as found:
        for _ in range(3):
            found.run([INC])
            ended |= {one for one in psutil.Process().children(recursive=True) if one.name().startswith("qemu-system")}
            found.renew()
        assert len(ended - others) == 3
        _, left = psutil.wait_procs(ended - others, timeout=1)
    assert not left


LEAVES = """
import sys
from dataclasses import replace
from pathlib import Path
import psutil
from vmtest.errors import HostError
from vmtest.executors import executor, lives
from vmtest.model.case import Case

case = Case.parse("x86_64 ffc0 rax=1")
children = psutil.Process().children

def descriptors():
    return {str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.exists()}

def check(what, before):
    assert children() == [], what
    assert descriptors() == before, what

found = executor(sys.argv[1], case.isa)
first = found.run([case])
found.close()  # what is opened once and kept, such as a library, is there now
found.close()
before = descriptors()
assert found.run([case]) == first
assert children()
found.close()
check("after close()", before)

if sys.argv[1] == "unicorn":
    for where, what, told in (
        (sys, "executable", "cannot be started: .*No such file"),
        (lives, "_SERVER", "does not come up"),
    ):
        usual = getattr(where, what)
        setattr(where, what, "/nowhere")
        try:
            found.run([case])
        except HostError as error:
            print(error.message, error.evidence)
        setattr(where, what, usual)
        check(what, before)
    assert found.run([case]) == first
    found.close()
"""


@pytest.mark.parametrize("name", [name for name, row in EXECUTORS.items() if "x86_64" in row.isas and row.bulk])
def test_nothing_is_left(name: str) -> None:
    """After close() there are no processes and no descriptors that were not there before, and it can be used again; a
    worker that does not come up leaves none either, and says why.
    """
    having(name)
    done = subprocess.run([sys.executable, "-c", LEAVES, name], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if name == "unicorn":
        cannot, does_not = done.stdout.splitlines()
        assert cannot.startswith("the worker of the executor unicorn cannot be started: ")
        assert "No such file" in cannot
        assert does_not.startswith("the worker of the executor unicorn does not come up")
        assert "No module named" in does_not


@pytest.mark.parametrize("name", ["native", "unicorn"])
def test_more_than_a_pipe_holds(name: str) -> None:
    """Cases that fill the window, and write all of it anew, go through: megabytes in each direction at a time."""
    fill = DATA_SIZE // 8
    cases = [
        Case(
            isa=X86,
            code=bytes.fromhex("f348ab"),  # rep stosq
            state=X86.state({"rcx": fill, "rdi": DATA, "rax": number * 0x0101010101010101}),
            memory=((0, b"\xee" * DATA_SIZE),),
        )
        for number in range(1, 200)
    ] * 6
    with having(name) as found:
        outcomes = found.run(cases)
        assert found.deaths == 0
    assert [outcome.writes for outcome in outcomes] == [((0, case.state[:1] * DATA_SIZE),) for case in cases]


def test_a_batch_of_one_case_that_is_too_large() -> None:
    """A case with more patches than a pipe has room for runs like any other; the last patch of a place counts."""
    memory = tuple((at % 64, bytes([at % 251])) for at in range(65535))
    case = Case(isa=X86, code=b"\x48\x8b\x07", state=X86.state({"rdi": DATA}), memory=memory)  # mov rax, [rdi]
    expected = int.from_bytes(case.window[:8], "little")
    for name in ("native", "unicorn"):
        with having(name) as found:
            outcomes = found.run([INC, case, INC])
        assert [outcome.status for outcome in outcomes] == ["ok"] * 3
        assert X86.said(outcomes[1].state)["rax"] == expected


def test_stopped_too_late() -> None:
    """A stop that comes when its case has ended by itself does not make a timeout of the next one."""
    engine = Engine(X86)
    expected = engine.run(INC)
    for _ in range(3):
        engine.stop()
        assert engine.run(INC) == expected


def test_no_core_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A death leaves no core file, whatever the user's limit is."""
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    try:
        others = _children()
        with executor("unicorn", X86) as found:
            assert found.run([ABORTS])[0].status == "died"
            (forks,) = _children() - others
            assert forks.rlimit(psutil.RLIMIT_CORE)[0] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
    assert list(tmp_path.iterdir()) == []


class Interrupted(Exception):
    """As pytest-timeout raises one, or Ctrl-C."""


@pytest.mark.parametrize("name", ["unicorn", "native"])
def test_an_interrupted_run_leaves_nothing_under_way(name: str) -> None:
    """Behind a run that an exception has ended in the middle the next one gets its own outcomes."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    endless = [Case.parse("x86_64 ebfe")] * 6
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with having(name) as found, fleet([name], X86) as several:
            for run in (found.run, several.run):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(Interrupted):
                    run(endless)
            (outcome,) = found.run([INC])
            assert outcome.status == "ok"
            assert several.run([INC]) == {name: [outcome]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["unicorn", "native"])
def test_both_ends_write_at_a_time(name: str) -> None:
    """Cases with more bytes than a pipe holds, behind ones whose outcomes have, stop neither end."""
    stores = [Case.parse(f"x86_64 f348ab rcx=0x400 rdi={DATA:#x} rax=-1")] * 512
    large = Case(isa=X86, code=b"\x90", state=X86.default, memory=((0, b"\xee" * DATA_SIZE),) * 200)
    with having(name) as found:
        outcomes = found.run([*stores, large])
    assert len(outcomes) == 513
    assert {outcome.status for outcome in outcomes} == {"ok"}


def test_stopped_with_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not answer, nor the process that forks it, is ended, and another one runs the cases."""
    monkeypatch.setattr("vmtest.executors.worker.DEAF", 0.5)
    monkeypatch.setattr("vmtest.executors.lives._PATIENCE", 0.5)
    others = _children()
    with having("unicorn") as found:
        (before,) = found.run([INC])
        (forks,) = _children() - others
        for process in (*forks.children(recursive=True), forks):
            process.suspend()
        assert found.run([INC]) == [before]


RAISES = """
from vmtest.executors import base, unicorn

def lacks(isa):
    return ""

class Engine(unicorn.Engine):
    def run_packed(self, data, number, progress):
        progress[:8] = base.RUNS.pack(0, 1)
        raise OSError("a defect of its own")
"""


def test_an_error_of_its_own_is_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an engine raises an exception its worker has died of that, and not of the signal that ends workers."""
    (tmp_path / "raises.py").write_text(RAISES)
    monkeypatch.syspath_prepend(tmp_path)
    row = replace(EXECUTORS["unicorn"], module="raises", environment=(("PYTHONPATH", str(tmp_path)),))
    with Executor(row, X86) as found:
        for _ in range(20):
            (outcome,) = found.run([INC])
            assert (outcome.status, outcome.signal) == ("died", 0)


def test_stale_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that was compiled from other sources is not run, and says so; nor is one that is not there."""
    folder = tmp_path / "_executors"
    shutil.copytree(programs.program("native", "x86_64").parent, folder)
    monkeypatch.setattr("vmtest.executors.programs.folder", lambda: tmp_path)
    assert programs.lacks_program("native", "x86_64") == ""
    with (folder / "packed.h").open("a") as source:
        source.write("/* changed */")
    assert "compiled from other sources" in programs.lacks_program("native", "x86_64")
    assert "is not there" in programs.lacks_program("native", "sparc64")
