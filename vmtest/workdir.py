"""Working directories of guests: each locked by its owner, so that what a killed owner left is found and removed."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

from vmtest.errors import HostError

__all__ = ["MARK", "Workdir", "sweep"]

MARK = "VMTEST_WORKDIR"
"""The environment variable by which a QEMU can be recognised as the one of a working directory."""


def base() -> Path:
    """The user's directory of working directories: in $TMPDIR, readable by its owner only.

    Raises HostError where it cannot be made, or is somebody else's (a trap laid in a shared /tmp).
    """
    path = Path(tempfile.gettempdir()) / f"vmtest-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            raise HostError(f"{path} belongs to somebody else", hint="set TMPDIR to a directory of your own")
    except OSError as error:
        raise HostError(
            f"{path} cannot be made: {error.strerror}", hint="set TMPDIR to a directory that you can write"
        ) from error
    return path


class Workdir:
    """A directory that lives as long as its owner: ``remove`` ends it, else the next ``sweep`` of anybody does."""

    def __init__(self) -> None:
        """Make and lock it. Raises HostError if that fails (a full disk)."""
        try:
            # Made under a name that sweep passes over, and renamed when it is locked.
            made = Path(tempfile.mkdtemp(prefix=".new-", dir=base()))
            self._owner = os.getpid()
            self._lock = os.open(made / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.path = made.rename(made.with_name(f"guest-{os.getpid()}-{made.name[5:]}"))
        except OSError as error:
            raise HostError(
                f"no working directory can be made in {base()}: {error.strerror}",
                hint="free some space, or set TMPDIR to a directory with room",
            ) from error

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment to be recognised as ours."""
        return {MARK: str(self.path)}

    def remove(self) -> None:
        """Remove it and all in it; does nothing a second time, or in a process forked from the owner."""
        if self._lock >= 0 and os.getpid() == self._owner:
            _remove(self.path)
            os.close(self._lock)
            self._lock = -1


def _remove(path: Path) -> None:
    """Remove it, under a name that any sweep removes: its lock goes with the rest and then tells nothing."""
    with contextlib.suppress(OSError):
        path = path.rename(path.with_name(f".old-{path.name}"))
    shutil.rmtree(path, ignore_errors=True)


def sweep() -> None:
    """Remove what dead owners left: their directories, and any QEMU that still runs for one.

    The kernel has dropped a dead owner's lock. Its QEMU was killed by the parent-death signal, unless the owner died
    in the millisecond between the fork and setpriv's call.
    """
    for path in base().iterdir():
        if path.name.startswith(".new-"):  # being made: its lock may not be taken yet
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > 60:
                    shutil.rmtree(path, ignore_errors=True)
            continue
        if path.name.startswith(".old-"):  # its removal was interrupted
            shutil.rmtree(path, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), (path / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _kill_marked(path)
            _remove(path)


@functools.cache
def sweep_once() -> None:
    """The same, but once in a process: for what is started many times a second."""
    sweep()


def _kill_marked(path: Path) -> None:
    mark = f"{MARK}={path}".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
