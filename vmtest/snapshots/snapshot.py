"""A snapshot: a directory with a guest's memory, its devices' state, its disks, and a manifest to check them by."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from vmtest import cache
from vmtest.errors import HostError, SnapshotError, UsageError
from vmtest.host.system import boot_id
from vmtest.model.machine import Channel, Drive, Machine, Nic
from vmtest.model.manner import Manner
from vmtest.snapshots.digest import digest
from vmtest.snapshots.key import FORMAT

__all__ = ["CONSOLE", "RAM", "STATE", "Disk", "Snapshot"]

RAM, STATE, CONSOLE = "ram", "state", "console.log"
IN_MEMORY = (STATE, CONSOLE)
"""Small ones, read whole and hashed each time."""
MANIFEST, STAMP, USED = "manifest.json", "checked.json", "used"


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Drive ``number``'s overlays, the lowest first: files of the snapshot's directory."""

    number: int
    files: tuple[str, ...]


class OtherFormat(SnapshotError):
    """It was made by another version of vmtest."""


class Snapshot:
    """A guest's whole state, checked and held open: clones can be made of it even if its directory is removed.

    ``machine`` is what it is a state of, ``manner`` how such a guest is treated, ``origin`` a word on how it was made,
    ``facts`` what must match (see snapshots.key), ``ram_block`` QEMU's name for the memory where it is not vmtest's.
    ``close`` gives it up.
    """

    _ram = _manifest = -1

    def __init__(self, path: Path) -> None:
        """Open and check it. The device state is hashed each time. The memory and the disks are hashed when first used
        after each boot of the host, and whenever a size, an inode or a time (ctime too, which no program can set back)
        has changed: hashing a few hundred MiB takes longer than a clone. What stays unnoticed is a disk that goes bad
        under an untouched file, as it would for any file.

        Raises FileNotFoundError where there is none, SnapshotError where it is damaged.
        """
        self.path = path
        try:
            self._manifest = os.open(path / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._manifest, fcntl.LOCK_SH)  # who prunes leaves it alone
            self._read(os.pread(self._manifest, 1 << 24, 0))
            self._ram = os.open(path / RAM, os.O_RDONLY | os.O_CLOEXEC)
            self.state = (path / STATE).read_bytes()
            self.transcript = (path / CONSOLE).read_bytes()
            self._check()
        except OSError as error:
            self.close()
            if isinstance(error, FileNotFoundError) and not path.exists():  # also where it has just been removed
                raise
            raise SnapshotError(f"the snapshot {path} is damaged: {error.strerror}: {error.filename}") from error
        except BaseException:
            self.close()
            raise

    @classmethod
    def peek(cls, path: Path) -> Self:
        """What its manifest says, for who only looks: nothing else is opened or checked. Raises SnapshotError."""
        self = cls.__new__(cls)
        self.path = path
        try:
            self._read((path / MANIFEST).read_bytes())
        except OSError as error:
            raise SnapshotError(f"the snapshot {path} is damaged: {error.strerror}: {error.filename}") from error
        return self

    def _read(self, manifest: bytes) -> None:
        try:
            data = json.loads(manifest)
            if data["format"] != FORMAT:
                raise OtherFormat(
                    f"the snapshot {self.path} was made by another version of vmtest, and this one cannot use it "
                    f"(format {data['format']}, not {FORMAT})"
                )
            _verify(data)
            self.name: str = data["name"]
            self.origin: str = data["origin"]
            self.facts: dict[str, Any] = data["facts"]
            self.key: str = data["key"]
            self.ram_block: str = data["ram_block"]
            self.qemu_version: tuple[int, int, int] = tuple(data["qemu_version"])
            self.machine = machine_from(data["machine"])
            self.manner = Manner(**data["manner"])
            self.disks = tuple(Disk(number=disk["number"], files=tuple(disk["files"])) for disk in data["disks"])
            self._digests: dict[str, list[Any]] = data["digests"]
        except (ValueError, TypeError, KeyError, UsageError) as error:
            raise SnapshotError(
                f"the snapshot {self.path} is damaged: its manifest cannot be read: {error!r}"
            ) from None

    def _check(self) -> None:
        for name, data in ((STATE, self.state), (CONSOLE, self.transcript)):
            if self._digests[name] != [len(data), hashlib.sha256(data).hexdigest()]:
                raise SnapshotError(f"the snapshot {self.path} is damaged: {name} has changed since it was saved")
        known = self._known()
        files: dict[str, Path] = {name: self.path / name for name in self._digests if name not in IN_MEMORY}
        files[RAM] = Path(f"/proc/self/fd/{self._ram}")  # what is checked is what clones will get
        seen = {name: _identity(file) for name, file in files.items()}
        for name, identity in seen.items():
            size, wanted = self._digests[name]
            if identity[0] != size:
                raise SnapshotError(f"the snapshot {self.path} is damaged: {name} has {identity[0]} bytes, not {size}")
            if known.get(name) != identity and digest(files[name]) != wanted:
                raise SnapshotError(f"the snapshot {self.path} is damaged: {name} has changed since it was saved")
        if seen != known:
            _stamp(self.path, seen)
        self._seen = seen
        with suppress(OSError):  # a cache that we may only read
            (self.path / USED).touch()

    def _known(self) -> dict[str, Any]:
        try:
            stamp = json.loads((self.path / STAMP).read_text())
            return dict(stamp["files"]) if stamp["boot"] == boot_id() else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    @property
    def untouched(self) -> bool:
        """Whether what was checked is still what is there: cheap enough to be asked before each clone.

        The memory is held open: it may be gone from the directory.
        """
        try:
            for name, identity in self._seen.items():
                now = _identity(self._ram if name == RAM else self.path / name)
                # The ctime of a disk changes when a snapshot of a clone links to it, and of anything that is removed.
                same = now[:3] == identity[:3] if name != RAM or not os.fstat(self._ram).st_nlink else now == identity
                if not same:
                    return False
        except OSError:
            return False
        return True

    @property
    def is_there(self) -> bool:
        """Whether it is what lies under its path, and not another that has taken its place."""
        try:
            return os.path.samestat(os.fstat(self._manifest), (self.path / MANIFEST).stat())
        except OSError:
            return False

    @property
    def ram(self) -> int:
        """The open file of the memory."""
        return self._ram

    @property
    def label(self) -> str:
        """What people know it by."""
        return self.name or f"{self.manner.name}-{self.path.name}"

    def drives(self) -> tuple[Drive, ...]:
        """What the overlays of a clone lie over."""
        frozen = {disk.number: self.path / disk.files[-1] for disk in self.disks}
        return tuple(
            Drive(path=frozen[number], format="qcow2") if number in frozen else drive
            for number, drive in enumerate(self.machine.drives)
        )

    def close(self) -> None:
        """Let go of its files; a second time does nothing."""
        for descriptor in (self._ram, self._manifest):
            if descriptor >= 0:
                os.close(descriptor)
        self._ram = self._manifest = -1

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Snapshot {self.label} of {self.manner.name} ({self.machine.arch}, {self.machine.accel})>"

    @classmethod
    def write(
        cls,
        path: Path,
        *,
        name: str,
        origin: str,
        machine: Machine,
        manner: Manner,
        known: dict[str, Any],
        key: str,
        disks: Sequence[Disk],
        ram_block: str,
        qemu_version: tuple[int, int, int],
    ) -> None:
        """Write the manifest of the files that lie in ``path``: the last of a snapshot's files."""
        names = [RAM, STATE, CONSOLE, *(file for disk in disks for file in disk.files)]
        digests: dict[str, list[Any]] = {}
        for file in names:
            size = (path / file).stat().st_size
            digests[file] = [size, cache.digest(path / file) if file in IN_MEMORY else digest(path / file)]
        data = {
            "format": FORMAT,
            "name": name,
            "origin": origin,
            "created": time.time(),
            "machine": asdict(machine),
            "manner": asdict(manner),
            "facts": known,
            "key": key,
            "ram_block": ram_block,
            "qemu_version": qemu_version,
            "disks": [asdict(disk) for disk in disks],
            "digests": digests,
        }
        data = json.loads(json.dumps(data, default=str))
        (path / MANIFEST).write_text(json.dumps({**data, "sha256": _hash(data)}, indent=1) + "\n")
        # What was just hashed need not be hashed again at the first use.
        _stamp(path, {file: _identity(path / file) for file in digests if file not in IN_MEMORY})
        (path / USED).touch()


def machine_from(data: dict[str, Any]) -> Machine:
    """The Machine whose ``asdict`` went through JSON."""
    values = dict(data)
    for field in ("kernel", "initrd", "firmware"):
        values[field] = Path(values[field]) if values[field] else None
    drives = (Drive(**{**drive, "path": Path(drive["path"])}) for drive in values["drives"])
    return replace(
        Machine(),
        **{
            **values,
            "drives": tuple(drives),
            "nics": tuple(Nic(**nic) for nic in values["nics"]),
            "channel": Channel(values["channel"]),
            "extra": tuple(values["extra"]),
        },
    )


def _verify(manifest: dict[str, Any]) -> None:
    if manifest.pop("sha256") != _hash(manifest):
        raise ValueError("it has changed since it was written")


def _hash(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _identity(file: Path | int) -> list[int]:
    stat = os.stat(file)  # noqa: PTH116 - an open file too
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]


def _stamp(path: Path, seen: dict[str, list[int]]) -> None:
    try:
        # Where it has been removed meanwhile its directory must not come back.
        cache.write(path / STAMP, json.dumps({"boot": boot_id(), "files": seen}).encode(), parents=False)
    except HostError:  # a cache that cannot be written or is full: they are hashed each time instead
        return
