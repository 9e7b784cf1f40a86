"""Where snapshots are kept: templates by key, and those that people have named; found, listed, limited."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmtest import cache
from vmtest.errors import HostError, SnapshotError, UsageError
from vmtest.snapshots.snapshot import MANIFEST, USED, Snapshot

__all__ = [
    "all_snapshots",
    "last_use",
    "limit",
    "locked",
    "named",
    "named_path",
    "prune",
    "remove",
    "room",
    "size",
    "size_of",
    "template_path",
]

DEFAULT_LIMIT = 4 << 30
"""Bytes that templates may take of the cache: some 30 Linux guests."""


def template_path(key: str) -> Path:
    """Where the template with that key is, or will be."""
    return cache.root() / "templates" / key


def named_path(name: str) -> Path:
    """Where the snapshot of that name is, or will be. Raises UsageError for what is no name."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name):
        raise UsageError(
            f"{name!r} cannot be the name of a snapshot", hint="letters, digits, '.', '-' and '_', such as booted-6.12"
        )
    return cache.root() / "snapshots" / name


def named(name: str) -> Snapshot:
    """The snapshot of that name. Raises UsageError where there is none, SnapshotError where it is damaged."""
    try:
        return Snapshot(named_path(name))
    except FileNotFoundError:
        known = ", ".join(snapshot.name for snapshot in _entries("snapshots")) or "none yet"
        raise UsageError(
            f"there is no snapshot named {name!r}",
            hint=f"snapshots: {known}; make one with: vmtest snapshot create {name} GUEST",
        ) from None


def locked(path: Path) -> str:
    """The name of the lock that who makes or removes the snapshot of that path must hold."""
    return f"snapshot-{path.name}"


def all_snapshots() -> list[Path]:
    """The directories of all snapshots, the named ones first."""
    return [*_entries("snapshots"), *_entries("templates")]


def _entries(kind: str) -> list[Path]:
    return sorted(path for path in (cache.root() / kind).glob("[!.]*") if (path / MANIFEST).exists())


def remove(path: Path) -> int:
    """Remove a snapshot; how many bytes that freed. Guests that run as its clones go on."""
    with cache.lock(locked(path)):
        freed = size(path)
        _remove(path)
    return freed


def limit() -> int:
    """Bytes that templates may take: VMTEST_SNAPSHOT_LIMIT (such as 500M or 8G), by default 4 GiB.

    Raises UsageError for a value that is no size.
    """
    return size_of(os.environ.get("VMTEST_SNAPSHOT_LIMIT", str(DEFAULT_LIMIT)), where="VMTEST_SNAPSHOT_LIMIT")


def size_of(text: str, *, where: str) -> int:
    """Bytes: "500M", "8G", "0". Raises UsageError."""
    found = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise UsageError(f"{where}: {text!r} is not a size", hint="such as 500M or 8G")
    return int(found[1]) << (10 * " KMGT".index(found[2].upper() or " "))


def prune(most: int, *, named_too: bool = False) -> list[tuple[str, int]]:
    """Remove the least recently used templates until all take at most ``most`` bytes; what was removed, and its bytes.

    One in use is left. What killed builders have left goes first. Snapshots that people have named stay, and do not
    count, unless ``named_too``.
    """
    for kind in ("templates", "snapshots"):
        for leftover in (cache.root() / kind).glob(".*"):
            _remove_leftover(leftover)
    paths = all_snapshots() if named_too else _entries("templates")
    sizes = {path: size(path) for path in paths}
    removed = []
    for path in sorted(paths, key=last_use):
        if sum(sizes.values()) <= most:
            break
        with suppress(OSError), _unused(path):
            _remove(path)
            removed.append((path.name, sizes.pop(path)))
    return removed


def room(where: Path, needed: int) -> None:
    """Make room for a snapshot of ``needed`` bytes. Raises SnapshotError where there is none."""
    prune(max(0, limit() - needed))
    free = shutil.disk_usage(where).free
    if free < needed:
        raise SnapshotError(
            f"a snapshot may take {needed >> 20} MiB, and {where} has {free >> 20} MiB left",
            hint="free some space (vmtest snapshot prune), or set XDG_CACHE_HOME to a directory with room",
        )


def _remove(path: Path) -> None:
    """Remove it for all others at once: under another name, by which a removal that is interrupted is gone on with."""
    gone = path.with_name(f".{path.name}@gone.{os.getpid()}")
    with suppress(FileNotFoundError):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _remove_leftover(path: Path) -> None:
    """Remove a directory of a builder, if that is dead."""

    def busy() -> None:
        raise HostError("a builder is at work")

    key = path.name.removeprefix(".").partition("@")[0]
    with suppress(HostError), cache.lock(f"snapshot-{key}", waiting=busy):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Hold the snapshot alone. Raises OSError where somebody has it open."""
    with (path / MANIFEST).open("rb") as manifest:
        fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def last_use(path: Path) -> float:
    """When a clone was last made of it, in seconds since 1970."""
    with suppress(OSError):
        return (path / USED).stat().st_mtime
    return 0.0


def size(path: Path) -> int:
    """Bytes that it takes on disk: holes do not count."""
    total = 0
    with suppress(FileNotFoundError):
        for file in path.iterdir():
            with suppress(FileNotFoundError):  # others write and remove files meanwhile
                total += file.stat().st_blocks * 512
    return total
