"""Nothing that vmtest starts outlives it, whenever and however it dies."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

TESTS = """
import pytest

@pytest.mark.parametrize("number", range(100))
def test_busy(boot, tmp_path, number):
    first, second = boot(), boot()
    first.push(__file__, "/tmp/there")
    second.pull("/proc/version", tmp_path / "version")
    first.run("echo c > /proc/sysrq-trigger", timeout=1) if number % 2 else first.reboot()
"""


def _ours(directory: Path) -> list[psutil.Process]:
    """The processes whose working directories would be below ``directory``: they inherit TMPDIR."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(directory) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _wait_ended(pids: list[int], timeout: float = 30) -> None:
    """Wait until the processes have ended; that nobody may reap them (they are not ours) does not matter."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        readable, _, _ = select.select([descriptor], [], [], timeout)
        os.close(descriptor)
        assert readable, f"process {pid} has not ended"


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """pytest is killed with SIGKILL at 20 random moments: no QEMU is left, and after the next start no directory."""
    (tmp_path / "test_busy.py").write_text(TESTS)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown when the test fails
    moments = random.Random(seed)
    qemus = 0
    for _ in range(20):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_busy.py"]
        child = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(moments.uniform(0.2, 5))
        children = psutil.Process(child.pid).children(recursive=True)
        qemus += len([process for process in children if "qemu" in process.name()])
        child.kill()
        child.wait()
        _wait_ended([process.pid for process in children])
        assert _ours(scratch) == []
    assert qemus > 5, "the moments were such that hardly any guest ran"

    vmtest = str(Path(sys.executable).with_name("vmtest"))
    subprocess.run([vmtest, "run", "--", "true"], env=environment, check=True, capture_output=True, timeout=300)
    assert list(scratch.glob("vmtest-*/*")) == []
    assert [path for path in scratch.rglob("*") if path.is_socket() or path.is_fifo()] == []
    assert _ours(scratch) == []


def test_orphan_of_a_dead_owner_is_swept(tmp_path: Path) -> None:
    """Should a QEMU survive its owner after all, the next start finds it by its mark and kills it."""
    code = """
import os, subprocess, sys
from vmtest.workdir import Workdir
workdir = Workdir()
child = subprocess.Popen(["sleep", "1000"], env={**os.environ, **workdir.environment}, start_new_session=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(child.pid, workdir.path, flush=True)
os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    pid, path = done.stdout.split()
    orphan = psutil.Process(int(pid))
    assert Path(path).exists()
    subprocess.run(
        [sys.executable, "-c", "from vmtest.workdir import sweep; sweep()"], env=environment, check=True, timeout=60
    )
    _wait_ended([orphan.pid])
    assert not Path(path).exists()


def test_a_living_owner_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep by another process does not touch a guest that is in use."""
    import tempfile

    from vmtest.workdir import Workdir

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    workdir = Workdir()
    subprocess.run([sys.executable, "-c", "from vmtest.workdir import sweep; sweep()"], check=True, timeout=60)
    assert workdir.path.exists()
    workdir.remove()
    assert not workdir.path.exists()
