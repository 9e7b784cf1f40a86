"""The initramfs of an image: busybox and the other files, the modules, vmtest's init and agent."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from vmtest.errors import ImageError
from vmtest.images.archive import Archive
from vmtest.images.cpio import Tree
from vmtest.images.modules import Module

__all__ = ["Parts", "applets", "assemble", "empty", "put_archive"]

# As in the distributions that the files come from: what one package ships in /bin another looks for in /usr/bin.
_MERGED = {"bin": "usr/bin", "sbin": "usr/bin", "usr/sbin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}
_DIRECTORIES = {"dev": 0o755, "etc": 0o755, "mnt": 0o755, "proc": 0o555, "root": 0o700, "run": 0o755}
_DIRECTORIES |= {"sys": 0o555, "tmp": 0o1777, "usr/bin": 0o755, "usr/lib": 0o755, "usr/lib64": 0o755, "var": 0o755}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an initramfs is made of, besides the files that are in the tree already."""

    name: str
    init: bytes
    agent: bytes | None
    modules: Sequence[Module]
    later_modules: Sequence[Module]


def empty() -> Tree:
    """A tree with the directories and the files that every guest has."""
    tree = Tree(_MERGED)
    for path, mode in _DIRECTORIES.items():
        tree.directory(path, mode=mode)
    # Before init has mounted devtmpfs, the kernel opens /dev/console for its standard streams.
    tree.character_device("dev/console", 5, 1)
    tree.character_device("dev/null", 1, 3, mode=0o666)
    tree.symlink("var/run", "../run")
    tree.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    tree.file("etc/group", b"root:x:0:\n")
    return tree


def put_archive(tree: Tree, archive: Archive, patterns: Sequence[str]) -> None:
    """Put the archive's files that match the globs into the tree, at the paths that they have there."""
    for pattern in patterns:
        for path in archive.matching(pattern):
            member = archive.members[path]
            if member.issym():
                tree.symlink(path, member.linkname)
            elif member.isfile() or member.islnk():
                tree.file(path, archive.read(path), mode=stat.S_IMODE(member.mode))


def assemble(tree: Tree, parts: Parts) -> bytes:
    """The finished initramfs. The same tree and parts give the same bytes, on any host.

    It is not compressed: a boot is as fast with gzip (2.6 MB against 1.2 MB makes no difference beyond the noise
    of 0.1 s under TCG), and the bytes would then depend on the host's zlib.
    """
    for module in (*parts.modules, *parts.later_modules):
        tree.file(module.path, module.data)
    _put_applets(tree)
    tree.file("modules.list", _lines(parts.modules))
    tree.file("modules.later.list", _lines(parts.later_modules))
    tree.file("etc/vmtest-image", f"{parts.name}\n".encode())
    tree.file("init", parts.init, mode=0o755)
    if parts.agent is not None:
        tree.file("vmtest-agent", parts.agent, mode=0o755)
    return tree.cpio()


def _lines(modules: Sequence[Module]) -> bytes:
    return "".join(f"/{module.path}\n" for module in modules).encode()


def _put_applets(tree: Tree) -> None:
    """Link busybox's applets, so that commands work by name without a shell and without time spent at boot."""
    busybox = tree.get("bin/busybox")
    if busybox is None:
        return
    for applet in applets(busybox.data):
        if f"bin/{applet}" not in tree:  # a program of its own goes before busybox's
            tree.symlink(f"bin/{applet}", "busybox")


def applets(busybox: bytes) -> list[str]:
    """The applets that a busybox binary has. It may be of another architecture, so that it is read, not run.

    They are a sorted table of strings, each ending in NUL, that starts with ``[`` and ``[[``.
    """
    start = busybox.find(b"[\0[[\0")
    names: list[str] = []
    for entry in busybox[start : start + 8192].split(b"\0") if start >= 0 else ():
        name = entry.decode("ascii", "replace")
        if not re.fullmatch(r"[a-z0-9\[_.-]+", name, re.IGNORECASE) or (names and name <= names[-1]):
            break
        names.append(name)
    if "sh" not in names:
        raise ImageError(
            "no applets were found in busybox",
            hint="vmtest reads their table from the binary; is it a complete, static busybox?",
        )
    return names
