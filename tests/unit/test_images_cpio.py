"""The initramfs writer: reproducible, and readable by others."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest

from vmtest.errors import ImageError
from vmtest.images import initramfs
from vmtest.images.cpio import Tree
from vmtest.images.modules import Module


def parse(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """A reader of the format, written from its description and not from the writer."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return found
        assert fields[2:4] == [0, 0], "belongs to root"
        assert fields[5] == 0, "bears no date"
        found[name] = (mode, archive[start : start + size])
        at = (start + size + 3) & ~3


def _small_tree(order: int = 1) -> Tree:
    tree = initramfs.empty()
    for name, data in [("usr/bin/tool", b"x"), ("etc/conf", b"abcd"), ("opt/a/b", b"")][::order]:
        tree.file(name, data, mode=0o755)
    return tree


def test_same_content_gives_the_same_bytes() -> None:
    """The order in which files are put, and the time, leave no trace in the archive."""
    assert _small_tree(1).cpio() == _small_tree(-1).cpio()


def test_what_is_put_in_can_be_read_out() -> None:
    """Files, modes, links, devices and the directories above them are in the archive."""
    tree = _small_tree()
    tree.symlink("etc/link", "conf")
    found = parse(tree.cpio())
    assert found["usr/bin/tool"] == (stat.S_IFREG | 0o755, b"x")
    assert found["etc/link"] == (stat.S_IFLNK | 0o777, b"conf")
    assert stat.S_ISDIR(found["opt/a"][0])
    assert stat.S_ISCHR(found["dev/console"][0])
    assert found["tmp"][0] == stat.S_IFDIR | 0o1777


def test_directories_come_before_what_is_in_them() -> None:
    """The kernel unpacks in one pass: no entry's directory may follow it."""
    seen: set[str] = set()
    for name in parse(_small_tree().cpio()):
        assert "/" not in name or name.rpartition("/")[0] in seen
        seen.add(name)


def test_merged_directories_hold_what_is_put_through_their_links() -> None:
    """A file put into /bin, /sbin or /usr/sbin lands in /usr/bin, and the links lead there."""
    tree = initramfs.empty()
    for name in ("bin/a", "/sbin/b", "usr/sbin/c"):
        tree.file(name, b"")
    found = parse(tree.cpio())
    assert {"usr/bin/a", "usr/bin/b", "usr/bin/c"} <= set(found)
    assert found["bin"] == (stat.S_IFLNK | 0o777, b"usr/bin")
    assert found["usr/sbin"][1] == b"../usr/bin"


def test_paths_that_leave_the_root_are_refused() -> None:
    """No path of an archive can be made to lie outside the file system."""
    with pytest.raises(ValueError, match="no path"):
        Tree().file("../x", b"")


@pytest.mark.skipif(not shutil.which("cpio"), reason="cpio is not installed: the parser above stands for it")
def test_cpio_reads_the_archive() -> None:
    """The real cpio lists all that is there."""
    tree = _small_tree()
    run = subprocess.run(["cpio", "-t", "--quiet"], input=tree.cpio(), capture_output=True, check=True)
    assert set(run.stdout.decode().split()) == set(parse(tree.cpio()))


def _busybox(*names: str) -> bytes:
    return b"\x7fELF..text\0" + b"".join(name.encode() + b"\0" for name in names) + b"\x01\x02data"


def test_applets_are_read_from_the_binary() -> None:
    """The table is taken whole, and what follows it is not."""
    assert initramfs.applets(_busybox("[", "[[", "ash", "ls", "sh")) == ["[", "[[", "ash", "ls", "sh"]


def test_a_busybox_without_applets_is_an_error() -> None:
    """A binary that is no busybox does not give a guest without commands."""
    with pytest.raises(ImageError, match="no applets"):
        initramfs.applets(b"\x7fELF nothing here")


def test_assembled_initramfs_has_what_init_reads() -> None:
    """The lists name the modules that are there, in order; init and the agent can be executed."""
    tree = initramfs.empty()
    tree.file("bin/busybox", _busybox("[", "[[", "sh"), mode=0o755)
    tree.file("bin/sh", b"own", mode=0o755)
    first, later = Module("lib/modules/1/b.ko", b"B"), Module("lib/modules/1/a.ko", b"A")
    parts = initramfs.Parts(name="tiny", init=b"#!", agent=b"ag", modules=[first], later_modules=[later])
    found = parse(initramfs.assemble(tree, parts))
    assert found["modules.list"][1] == b"/lib/modules/1/b.ko\n"
    assert found["modules.later.list"][1] == b"/lib/modules/1/a.ko\n"
    assert found["usr/lib/modules/1/b.ko"][1] == b"B"
    assert found["etc/vmtest-image"][1] == b"tiny\n"
    assert found["init"] == (stat.S_IFREG | 0o755, b"#!")
    assert found["vmtest-agent"] == (stat.S_IFREG | 0o755, b"ag")
    assert found["usr/bin/[["][1] == b"busybox"
    assert found["usr/bin/sh"][1] == b"own", "a program of its own goes before the applet"
