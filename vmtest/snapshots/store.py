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
    "NoRoom",
    "all_snapshots",
    "last_use",
    "limit",
    "locked",
    "named",
    "named_path",
    "peek",
    "prune",
    "remove",
    "remove_template",
    "room",
    "size",
    "size_of",
    "sweep",
    "template_path",
    "unknown",
]


class NoRoom(SnapshotError):
    """It could not be written: later it may be."""


DEFAULT_LIMIT = 4 << 30
"""Bytes that templates may take of the cache: some 30 Linux guests."""


def template_path(key: str) -> Path:
    """Where the template with that key is, or will be."""
    return cache.root() / "templates" / key


def named_path(name: str) -> Path:
    """Where the snapshot of that name is, or will be. Raises UsageError for what is no name."""
    if not re.fullmatch(r"(?![0-9a-f]{16}$)[A-Za-z0-9][\w.-]{0,99}", name, re.ASCII):
        raise UsageError(
            f"{name!r} cannot be the name of a snapshot",
            hint="letters, digits, '.', '-' and '_', at most 100, such as booted-6.12, and no template's key",
        )
    return cache.root() / "snapshots" / name


def named(name: str) -> Snapshot:
    """The snapshot of that name. Raises UsageError where there is none, SnapshotError where it is damaged."""
    try:
        return Snapshot(named_path(name))
    except FileNotFoundError:
        raise unknown(name) from None


def peek(name: str) -> Snapshot:
    """The manifest of the snapshot of that name, unchecked. Raises as ``named``."""
    path = named_path(name)
    if not path.exists():
        raise unknown(name)
    return Snapshot.peek(path)


def unknown(name: str) -> UsageError:
    """The error for a snapshot that there is not."""
    known = ", ".join(path.name for path in _entries("snapshots"))
    return UsageError(
        f"there is no snapshot named {name!r}",
        hint=f"snapshots: {known}" if known else "there are none yet; make one: vmtest snapshot create NAME GUEST",
    )


def locked(path: Path) -> str:
    """The name of the lock that who makes or removes the snapshot of that path must hold."""
    return f"snapshot-{path.name}"


def all_snapshots() -> list[Path]:
    """The directories of all snapshots, the named ones first."""
    return [*_entries("snapshots"), *_entries("templates")]


def _entries(kind: str) -> list[Path]:
    return sorted(path for path in (cache.root() / kind).glob("[!.]*") if path.is_dir())


def remove(path: Path) -> int:
    """Remove a snapshot; how many bytes that freed. Guests that run as its clones go on."""
    with cache.lock(locked(path)):
        freed = size(path)
        _remove(path)
    return freed


def remove_template(template: Snapshot) -> None:
    """Remove a template that QEMU does not take, unless another lies in its place already."""
    with cache.lock(locked(template.path)):
        if template.is_there:
            _remove(template.path)


def limit() -> int:
    """Bytes that templates may take: VMTEST_SNAPSHOT_LIMIT (such as 500M or 8G), by default 4 GiB.

    Raises UsageError for a value that is no size.
    """
    return size_of(os.environ.get("VMTEST_SNAPSHOT_LIMIT") or str(DEFAULT_LIMIT), where="VMTEST_SNAPSHOT_LIMIT")


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
    sweep()
    paths = all_snapshots() if named_too else _entries("templates")
    sizes = {path: size(path) for path in paths}
    removed = []
    for path in sorted(paths, key=last_use):
        if sum(sizes.values()) <= most:
            break
        with suppress(OSError, HostError), cache.lock(locked(path), waiting=_busy), _unused(path):
            _remove(path)
            removed.append((path.name, sizes.pop(path)))
    return removed


def sweep() -> None:
    """Remove what killed builders have left."""
    for kind in ("templates", "snapshots"):
        for leftover in (cache.root() / kind).glob(".*"):
            _remove_leftover(leftover)


def room(where: Path, needed: int) -> None:
    """Raises NoRoom where ``needed`` bytes have no room."""
    free = shutil.disk_usage(where).free
    if free < needed:
        raise NoRoom(
            f"a snapshot takes some {needed >> 20} MiB, and {where.parent} has {free >> 20} MiB left",
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
    key = path.name.removeprefix(".").partition("@")[0]
    with suppress(HostError), cache.lock(f"snapshot-{key}", waiting=_busy):
        shutil.rmtree(path, ignore_errors=True)


def _busy() -> None:
    raise HostError("a builder is at work")


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Hold the snapshot alone. Raises OSError where somebody has it open."""
    if not (path / MANIFEST).exists():  # nobody can open that
        yield
        return
    with (path / MANIFEST).open("rb") as manifest:
        fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def last_use(path: Path) -> float:
    """When it was last opened, in seconds since 1970."""
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
