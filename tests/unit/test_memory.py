"""How much memory is left: the host's own word, and that of the control groups, v1 and v2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vmtest.host import memory

GROUPS = Path("/sys/fs/cgroup")
ENTER = 'echo $$ > $1/cgroup.procs && shift && exec "$@"'


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own below the one that we are in, of either version."""
    v1 = (GROUPS / "memory" / "memory.limit_in_bytes").exists()
    path = (GROUPS / "memory" if v1 else GROUPS) / f"vmtest-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    if not (path / ("memory.limit_in_bytes" if v1 else "memory.max")).exists():
        path.rmdir()
        pytest.skip("the memory controller is not given to control groups here")
    yield path
    path.rmdir()


def _limit(group: Path, mebibytes: int) -> None:
    v1 = group / "memory.limit_in_bytes"
    (v1 if v1.exists() else group / "memory.max").write_text(str(mebibytes << 20))


def _in(group: Path, code: str) -> str:
    """What a Python program prints that runs in that group."""
    command = ["sh", "-c", ENTER, "sh", str(group), sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_hosts_own_word() -> None:
    """Without a limit, what is available is what the kernel says of the host, or less."""
    free = psutil.virtual_memory().available >> 20
    assert 0 < memory.available() <= free * 1.1 + 64


def test_limit_of_the_group_counts(group: Path) -> None:
    """In a group with a limit, what is left below the limit is available, and what is used no more."""
    _limit(group, 200)
    code = """
from vmtest.host import memory
before = memory.available()
kept = b"x" * (64 << 20)
print(before, memory.available())
"""
    before, after = map(int, _in(group, code).split())
    assert 120 < before < 200
    assert 60 <= before - after <= 68


def test_limit_of_an_outer_group_counts(group: Path) -> None:
    """The limit may be that of a group around ours."""
    inner = group / "inner"
    if (group / "cgroup.subtree_control").exists():
        (group / "cgroup.subtree_control").write_text("+memory")
    inner.mkdir()
    try:
        _limit(group, 150)
        left = int(_in(inner, "from vmtest.host import memory; print(memory.available())"))
        assert 80 < left < 150
    finally:
        inner.rmdir()


@pytest.mark.parametrize("nested", [False, True])
def test_file_cache_counts_as_free(group: Path, tmp_path: Path, nested: bool) -> None:
    """What the kernel only caches of files takes nothing away, also where it is cached for a group below."""
    inner = group / "inner" if nested else group
    if nested:
        if (group / "cgroup.subtree_control").exists():
            (group / "cgroup.subtree_control").write_text("+memory")
        inner.mkdir()
    try:
        _limit(group, 300)
        code = f"""
import os
from vmtest.host import memory
before = memory.available()
with open({str(tmp_path / "file")!r}, "wb") as file:
    for _ in range(128):
        file.write(os.urandom(1 << 20))
    file.flush()
    os.fsync(file.fileno())
print(before, memory.available())
"""
        before, after = map(int, _in(inner, code).split())
        assert before - after < 40
    finally:
        if nested:
            inner.rmdir()


def test_no_room_is_told_before_anything_starts(group: Path) -> None:
    """Where not even a clone's first memory is left, HostError says how much there is, and what to do."""
    _limit(group, 120)
    code = """
from vmtest.errors import HostError
from vmtest.host import memory
kept = []
while memory.available() >= memory.CLONE:
    kept.append(b"x" * (1 << 20))
memory.require(16, memory.CLONE)  # a guest this small fits still
try:
    memory.require(256, memory.CLONE)
except HostError as error:
    print(error)
"""
    said = _in(group, code)
    assert "there is no memory for another guest: 4" in said
    assert "it takes at least 48 MiB" in said
    assert "hint: run fewer at a time" in said


def test_require_lets_go_where_there_is_room() -> None:
    """A guest with more memory than there is is let go: it may never touch it."""
    memory.require(1 << 30, memory.BOOT)
