"""The cache's entries: one directory a built image, with a manifest against which it is checked when used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmtest import cache

__all__ = [
    "Entry",
    "FileRecord",
    "check",
    "entries",
    "entry_path",
    "lock_name",
    "names_in_cache",
    "record",
    "remove",
    "write_manifest",
]

log = logging.getLogger("vmtest")

_MANIFEST = "manifest.json"
_STAMP = "checked.json"


@dataclass(frozen=True)
class FileRecord:
    """What a file must be. ``path`` is relative to the entry, or absolute for a disk that is used in its place."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A built image in the cache: its files by role (kernel, initrd, disk) and where what is in them came from."""

    path: Path
    name: str
    files: dict[str, FileRecord]
    origins: list[dict[str, str]]

    def file(self, role: str) -> Path | None:
        """The path of the file with that role, if the image has one."""
        record = self.files.get(role)
        return self.path / record.path if record else None

    @property
    def content_key(self) -> str:
        """A hash of the files' contents: equal keys boot the same bytes."""
        text = json.dumps({role: record.sha256 for role, record in self.files.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(record.size for record in self.files.values() if not record.path.startswith("/"))


def lock_name(name: str) -> str:
    """The lock that who builds or removes an image of that name must hold."""
    return f"image-{name}"


def entry_path(name: str, key: str) -> Path:
    """Where the entry of that name and key is, or will be."""
    return cache.root() / "images" / f"{name}-{key}"


def entries(name: str) -> list[Path]:
    """All entries of the image, the newest first: earlier versions of its image.toml have left their own."""
    found = (path for path in (cache.root() / "images").glob(f"{name}-*") if path.name[:-17] == name)
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def names_in_cache() -> list[str]:
    """The names of all images that have entries, those of users' own folders too."""
    found = {path.name[:-17] for path in (cache.root() / "images").glob("[!.]*")}
    leftover = {path.name[1:].split("@")[0] for path in (cache.root() / "images").glob(".*@*")}
    return sorted(found | leftover)


def remove(name: str) -> int:
    """Remove all entries of the image, and what killed builders left of it; how many bytes that freed."""
    freed = 0
    with cache.lock(lock_name(name)):
        for path in [*entries(name), *(cache.root() / "images").glob(f".{name}@*")]:
            freed += sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
            shutil.rmtree(path, ignore_errors=True)
    return freed


def write_manifest(work: Path, name: str, files: dict[str, FileRecord], origins: list[dict[str, str]]) -> None:
    """Write the manifest of a finished entry, the last of its files."""
    data = {"name": name, "files": {role: asdict(record) for role, record in files.items()}, "origins": origins}
    (work / _MANIFEST).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def record(path: Path, work: Path) -> FileRecord:
    """The record of a file as it is now."""
    inside = path.is_relative_to(work)
    return FileRecord(str(path.relative_to(work)) if inside else str(path), path.stat().st_size, cache.digest(path))


def check(path: Path, *, warn: bool = True) -> Entry | None:
    """The entry at that path if it is there and whole; None, with a warning in the log, where it is damaged.

    Hashing 20 MB costs about 15 ms, which every boot would pay. So a file is hashed when it is first used and
    whenever its size, its inode or one of its times has changed; ctime is among them, which no program can set
    back. What stays unnoticed is the disk itself going bad under an untouched file.
    """

    def complain(why: str) -> None:
        if warn:
            log.warning("the cached image %s is damaged and will be built again: %s", path.name, why)

    try:
        data = json.loads((path / _MANIFEST).read_text())
        files = {role: FileRecord(**record) for role, record in data["files"].items()}
        entry = Entry(path, data["name"], files, data["origins"])
    except FileNotFoundError:
        if path.exists():
            complain("its manifest is missing")
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        complain(f"its manifest cannot be read ({error})")
        return None
    try:
        known = _read_stamp(path)
        seen = {}
        for role, record in files.items():
            file = path / record.path
            stat = file.stat()
            if stat.st_size != record.size:
                complain(f"{record.path} has {stat.st_size} bytes instead of {record.size}")
                return None
            seen[role] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            if known.get(role) != seen[role] and cache.digest(file) != record.sha256:
                complain(f"{record.path} has changed since it was built")
                return None
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}")
        return None
    if seen != known:
        _write_stamp(path, seen)
    return entry


def _read_stamp(path: Path) -> dict[str, Any]:
    try:
        stamp = json.loads((path / _STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(path: Path, seen: dict[str, list[int]]) -> None:
    temporary = path / f".{_STAMP}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(seen))
        temporary.replace(path / _STAMP)
    except OSError:
        # A cache that cannot be written (shared, read-only) or is full: the files are hashed each time instead.
        temporary.unlink(missing_ok=True)
