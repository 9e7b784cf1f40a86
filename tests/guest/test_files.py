"""Files to and from real guests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

import vmtest
from vmtest import transfer
from vmtest.errors import TransferFailed, UsageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with an executable, a read-only file, binary content, an empty directory, odd names and links."""
    top = tmp_path / "tree"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "run me").write_text("#!/bin/sh\necho ran\n")
    (top / "run me").chmod(0o755)
    (top / "sub" / "secret").write_bytes(bytes(range(256)) * 300)
    (top / "sub" / "secret").chmod(0o400)
    (top / "link").symlink_to("sub/secret")
    (top / "dangling").symlink_to("/nowhere/at/all")
    (top / "ünïcode").write_text("x")
    (top / ("long" * 40)).write_text("longer than a tar header's field")
    return top


def _listing(top: Path) -> dict[str, tuple[int, object]]:
    return {
        str(path.relative_to(top)): (
            path.lstat().st_mode,
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None,
        )
        for path in top.rglob("*")
    }


def test_tree_round_trip(shared: vmtest.Guest, tree: Path, tmp_path: Path) -> None:
    """A tree that is pushed and pulled is the same: contents, mode bits, links, names."""
    shared.push(tree, "/tmp/there")
    assert shared.run(["/tmp/there/run me"]).stdout == "ran\n"
    shared.pull("/tmp/there", tmp_path / "back")
    assert _listing(tmp_path / "back") == _listing(tree)
    shared.run("rm -rf /tmp/there").check()


def test_destination_is_as_for_cp(shared: vmtest.Guest, tmp_path: Path) -> None:
    """Into a directory that exists, or one named with a slash; else under the name given, replacing a file."""
    source = tmp_path / "source"
    source.write_text("1")
    shared.run("mkdir -p /tmp/d").check()
    shared.push(source, "/tmp/d")
    shared.push(source, "/tmp/new/deep/")
    shared.push(source, "/tmp/d/other")
    source.write_text("22")
    shared.push(source, "/tmp/d/other")
    assert shared.run("cat /tmp/d/source /tmp/new/deep/source /tmp/d/other").stdout == "1122"
    (tmp_path / "into").mkdir()
    shared.pull("/tmp/d/other", tmp_path / "into")
    assert (tmp_path / "into" / "other").read_text() == "22"
    shared.run("rm -rf /tmp/d /tmp/new").check()


def test_kernel_files_are_pulled_whole(shared: vmtest.Guest, tmp_path: Path) -> None:
    """A file of /proc, whose size reads as 0, is pulled with its contents."""
    shared.pull("/proc/version", tmp_path / "version")
    assert "Linux version" in (tmp_path / "version").read_text()


def test_failures_say_why(shared: vmtest.Guest, tmp_path: Path) -> None:
    """What is not there, here or in the guest, is named, as is a destination that cannot be."""
    with pytest.raises(UsageError, match="does not exist"):
        shared.push(tmp_path / "missing", "/tmp")
    with pytest.raises(TransferFailed, match="No such file"):
        shared.pull("/nowhere", tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(TransferFailed, match="file"):
        shared.push(tmp_path / "file", "/proc/version/below")
    assert not list(tmp_path.glob(".pull-*"))


def _hostile(*members: tuple[str, bytes, str]) -> tarfile.TarFile:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    buffer.seek(0)
    return tarfile.open(fileobj=buffer)


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/x", tarfile.REGTYPE, "")],
        [("t/../../x", tarfile.REGTYPE, "")],
        [("t/l", tarfile.SYMTYPE, "../.."), ("t/l/x", tarfile.SYMTYPE, "y")],
        [("t/h", tarfile.LNKTYPE, "/etc/passwd")],
        [("t/h", tarfile.LNKTYPE, "../../etc/passwd")],
        [("t/dev", tarfile.CHRTYPE, "")],
    ],
)
def test_hostile_guest_writes_nothing_outside(tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    """A tar stream that leads outside the destination is refused, and nothing appears there."""
    inside = tmp_path / "outer" / "inside"
    inside.mkdir(parents=True)
    with pytest.raises(TransferFailed):
        transfer._extract(_hostile(*members), inside)
    assert list((tmp_path / "outer").iterdir()) == [inside]
