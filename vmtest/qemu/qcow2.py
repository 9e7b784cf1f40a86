"""Empty qcow2 overlays, written without starting qemu-img (30 ms each).

Source of the format: docs/interop/qcow2.txt of QEMU.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from vmtest.errors import HostError, UsageError

__all__ = ["chain", "create_empty", "create_overlay", "set_backing", "virtual_size"]

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")  # version 3, 104 bytes
CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
EXTENSION_FORMAT, EXTENSION_DATA_FILE = 0xE2792ACA, 0x44415441
NAME_AT = 1024
"""Where the backing file's name lies in what we write: room before it for the header extension."""
NAME_MOST = 1023  # the format's own limit


def virtual_size(path: Path, kind: str) -> int:
    """Bytes of the disk that the guest sees. Raises UsageError for a qcow2 file that is none."""
    if kind != "qcow2":
        with path.open("rb") as file:
            return -(-file.seek(0, os.SEEK_END) // 512) * 512  # as QEMU rounds; a block device has no st_size
    with path.open("rb") as file:
        start = file.read(32)
    if len(start) < 32 or not start.startswith(MAGIC):
        raise UsageError(f"{path} is not a qcow2 image")
    return int(struct.unpack_from(">Q", start, 24)[0])


def chain(path: Path, kind: str) -> list[Path]:
    """The image and all files below it: what each lies over, and where it keeps its data if not in itself.

    What is not a plain file (nbd://, json:) is left out. Raises OSError for one that is not there.
    """
    files, kinds = [path], [kind]
    for file, its_kind in zip(files, kinds, strict=True):  # which grow meanwhile
        for below in _below(file) if its_kind in ("qcow2", "") else ():
            if below not in files:
                files.append(below)
                kinds.append("")  # QEMU may be told, or look itself
    return files


def _below(path: Path) -> list[Path]:
    with path.open("rb") as file:
        start = file.read(CLUSTER)
    if not start.startswith(MAGIC) or len(start) < HEADER.size:
        return []
    version, at, size = struct.unpack_from(">IQI", start, 4)
    names = [start[at : at + size]] if at else []
    place = struct.unpack_from(">I", start, 100)[0] if version >= 3 else 72
    while place + 8 <= len(start):
        extension, length = struct.unpack_from(">II", start, place)
        if extension == 0:
            break
        if extension == EXTENSION_DATA_FILE:
            names.append(start[place + 8 : place + 8 + length])
        place += 8 + -(-length // 8) * 8
    plain = (os.fsdecode(name).removeprefix("file:") for name in names)
    return [path.parent / name for name in plain if ":" not in name]


def create_overlay(path: Path, backing: str, backing_format: str, size: int) -> None:
    """Make an empty image of ``size`` bytes over ``backing``, a path that counts from the overlay's own directory.

    Raises HostError for a path that is too long for the format.
    """
    kind = backing_format.encode()
    extension = struct.pack(">II", EXTENSION_FORMAT, len(kind)) + kind.ljust(-(-len(kind) // 8) * 8, b"\0")
    _create(path, size, extension, _name(backing))


def create_empty(path: Path, size: int) -> None:
    """Make an image of ``size`` bytes that lies over nothing."""
    _create(path, size, b"", b"")


def _create(path: Path, size: int, extensions: bytes, backing: bytes) -> None:
    # Per L1 entry one L2 table of a cluster: CLUSTER / 8 entries of a cluster each.
    l1_entries = max(1, -(-size // (CLUSTER * (CLUSTER // 8))))
    l1_clusters = -(-l1_entries * 8 // CLUSTER)
    used = 3 + l1_clusters  # header, refcount table, refcount block, L1 table
    # fmt: off
    header = HEADER.pack(
        MAGIC, 3, NAME_AT if backing else 0, len(backing), CLUSTER_BITS, size, 0, l1_entries, 3 * CLUSTER, CLUSTER, 1,
        0, 0, 0, 0, 0, 4, HEADER.size,
    )
    # fmt: on
    with path.open("wb") as file:
        file.write((header + extensions + bytes(8)).ljust(NAME_AT, b"\0") + backing)
        file.seek(CLUSTER)
        file.write(struct.pack(">Q", 2 * CLUSTER))
        file.seek(2 * CLUSTER)
        file.write(struct.pack(">H", 1) * used)
        file.truncate(used * CLUSTER)


def set_backing(path: Path, backing: str) -> None:
    """Give an overlay that ``create_overlay`` made another name of its backing file, which has moved."""
    name = _name(backing)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), name, NAME_AT)
        os.pwrite(file.fileno(), struct.pack(">QI", NAME_AT, len(name)), 8)


def _name(backing: str) -> bytes:
    name = os.fsencode(backing)
    if len(name) > NAME_MOST:
        raise HostError(
            f"the path of the disk is too long for an overlay ({len(name)} bytes of {NAME_MOST}): {backing}"
        )
    return name
