"""The cache directory: where it is, how files get into it whole, and how two processes share it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmtest.errors import HostError

__all__ = ["building", "digest", "lock", "root", "write"]


def root() -> Path:
    """``$XDG_CACHE_HOME/vmtest``, by default ``~/.cache/vmtest``; created if missing.

    Raises HostError where it cannot be created.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is invalid and ignored.
    try:
        path = (Path(base) if base.startswith("/") else Path.home() / ".cache") / "vmtest"
    except RuntimeError as error:  # a user without a home, as containers have them
        raise HostError(f"no cache directory: {error}", hint="set XDG_CACHE_HOME, or HOME") from error
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"the cache directory {path} cannot be created: {error.strerror}",
            hint="set XDG_CACHE_HOME to a directory that you can write",
        ) from error
    return path


@contextmanager
def lock(name: str, *, waiting: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold the cache's lock of that name; the kernel drops it when the holder dies, even by SIGKILL.

    ``waiting`` is called once if another process holds it.
    """
    from filelock import FileLock, Timeout  # 10 ms that who only looks something up need not pay

    path = root() / "locks" / f"{name}.lock"
    path.parent.mkdir(exist_ok=True)
    holder = FileLock(path)
    try:
        holder.acquire(timeout=0)
    except Timeout:
        if waiting:
            waiting()
        holder.acquire()
    try:
        yield
    finally:
        holder.release()


@contextmanager
def building(final: Path, name: str) -> Iterator[Path]:
    """A directory to build in, which becomes ``final`` when the block ends well, and is gone when it does not.

    The caller holds the lock for ``name``: what lies there under it belongs to a builder that was killed.
    """
    for stale in final.parent.glob(f".{name}@*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = final.with_name(f".{name}@{final.name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        yield work
        retired = final.with_name(f".{name}@{final.name}.old")
        if final.exists():
            # A directory cannot be replaced in one step. Who looks in between waits for the lock.
            final.rename(retired)
        work.rename(final)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write(path: Path, data: bytes, *, parents: bool = True) -> None:
    """Write a file of the cache whole or not at all; ``parents`` makes its directory. Raises HostError with the reason
    (a full disk, …).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # on a file system that is read-only even this fails
            temporary.unlink(missing_ok=True)
        raise HostError(
            f"{path} cannot be written: {error.strerror}",
            hint="free some space, or set XDG_CACHE_HOME to a directory with room",
        ) from error


def digest(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
