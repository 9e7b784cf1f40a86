"""A reproducible writer of the "newc" cpio archives that Linux takes as its initramfs.

Format: Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's source.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["Node", "Tree"]


@dataclass(frozen=True)
class Node:
    """One entry: ``mode`` with its type bits, the file's bytes or the link's target, a device's numbers."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class Tree:
    """A file system being put together. All belongs to root, and nothing bears a date: same content, same bytes.

    ``merged`` maps directories to those they are symbolic links to ("bin" to "usr/bin"): whatever is put into
    the one lands in the other, as in distributions with a merged /usr.
    """

    def __init__(self, merged: Mapping[str, str] | None = None) -> None:
        self._nodes: dict[str, Node] = {}
        self._merged = dict(merged or {})
        for link, target in self._merged.items():
            up = "../" * link.count("/")
            self._add(link, Node(stat.S_IFLNK | 0o777, (up + target).encode()))

    def file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Put a regular file, in place of what was there."""
        self._add(self.canonical(path), Node(stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        """Put a symbolic link."""
        self._add(self.canonical(path), Node(stat.S_IFLNK | 0o777, target.encode()))

    def directory(self, path: str, *, mode: int = 0o755) -> None:
        """Put a directory; those that only lead to a file come by themselves."""
        name = self.canonical(path)
        if name not in self._merged:
            self._add(name, Node(stat.S_IFDIR | mode))

    def character_device(self, path: str, major: int, minor: int, *, mode: int = 0o600) -> None:
        """Put a character device node."""
        self._add(self.canonical(path), Node(stat.S_IFCHR | mode, device=(major, minor)))

    def canonical(self, path: str) -> str:
        """The path as it is in the archive: without a leading slash, and behind merged directories."""
        name = str(PurePosixPath("/", path))[1:]
        for link, target in self._merged.items():
            if name.startswith(link + "/"):
                return target + name[len(link) :]
        return name

    def get(self, path: str) -> Node | None:
        """What is at that path, if anything."""
        return self._nodes.get(self.canonical(path))

    def __contains__(self, path: str) -> bool:
        return self.canonical(path) in self._nodes

    def _add(self, name: str, node: Node) -> None:
        if not name or ".." in name.split("/"):
            raise ValueError(f"{name!r} is no path for a file in an initramfs")
        for parent in PurePosixPath(name).parents:
            if str(parent) != ".":
                self._nodes.setdefault(str(parent), Node(stat.S_IFDIR | 0o755))
        self._nodes[name] = node

    def cpio(self) -> bytes:
        """The archive. Sorted, so that each directory comes before what is in it."""
        out = bytearray()
        for number, (name, node) in enumerate(sorted(self._nodes.items()), start=1):
            _entry(out, number, name, node)
        _entry(out, 0, "TRAILER!!!", Node(0))
        # The kernel accepts any length; whole sectors keep loaders that read in sectors happy.
        out += bytes(-len(out) % 512)
        return bytes(out)


def _entry(out: bytearray, inode: int, name: str, node: Node) -> None:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = (inode, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.device, len(encoded), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    out += bytes(-len(out) % 4)
    out += node.data
    out += bytes(-len(out) % 4)
