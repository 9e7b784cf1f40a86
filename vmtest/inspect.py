"""A look at the files a user hands us, before a guest that cannot boot from them is waited for."""

from __future__ import annotations

import gzip
import lzma
import zlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, cast

from vmtest.errors import UsageError
from vmtest.model.arch import ARCHES, Arch

__all__ = ["check_initrd", "check_kernel", "disk_format"]


def check_kernel(path: Path, row: Arch) -> None:
    """Raise UsageError unless ``path`` is a file that looks like a kernel for that architecture."""
    head = _head(path, "kernel", 0x300)
    if _matches(head, row):
        return
    others = [other.name for other in ARCHES.values() if other is not row and _matches(head, other, packed=False)]
    if others:
        raise UsageError(
            f"{path} is a kernel for {others[0]}, and the guest is {row.name}",
            hint=f"choose another guest: vmtest run linux-{others[0]}, pytest --vm-guest=linux-{others[0]}",
        )
    raise UsageError(
        f"{path} is no kernel that QEMU boots on {row.name}",
        hint=f"what `make` leaves in a kernel tree as {row.kernel_file} is one",
    )


def _matches(head: bytes, row: Arch, *, packed: bool = True) -> bool:
    """Whether a file that begins like this may be a kernel; with ``packed`` a gzip may hold one."""
    if head.startswith(b"\x1f\x8b") and not packed:
        return False
    if head.startswith(b"\x7fELF"):  # e_machine, at 18: System V ABI
        return int.from_bytes(head[18:20], "little") == row.elf_machine
    return any(head[offset : offset + len(magic)] == magic for offset, magic in row.kernel_magics)


def check_initrd(path: Path, append: str) -> None:
    """Raise UsageError unless ``path`` is a file, and holds an init where its format lets us see that.

    A compression that Python does not know (zstd, lz4, lzo) is let pass: the kernel's own panic says it then.
    """
    head = _head(path, "initrd", 6)
    if "root=" in append or "rdinit=" in append or "init=" in append:
        return
    try:
        with _decompressed(path, head) as stream:
            if stream is not None and not _has_init(stream):
                raise UsageError(
                    f"{path} holds no /init: the kernel would panic",
                    hint="put an init into it, or name another program with --append rdinit=/PATH",
                )
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read as an initramfs: {error}") from None


def _decompressed(path: Path, head: bytes) -> AbstractContextManager[IO[bytes] | None]:
    if head.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if head.startswith(b"\xfd7zXZ"):
        return cast("IO[bytes]", lzma.open(path, "rb"))
    if head.startswith((b"070701", b"070702")):
        return path.open("rb")
    return nullcontext()


def _has_init(stream: IO[bytes]) -> bool:
    """Whether a cpio archive, or one of several in a row, has the entry ``init``.

    Format: Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    while header := stream.read(110):
        while header.startswith(b"\0") or (header and len(header) < 110):  # padding between archives
            header = header.lstrip(b"\0")
            more = stream.read(110 - len(header))
            if not more:
                return False
            header += more
        if not header.startswith((b"070701", b"070702")):
            return True  # another compression follows (early microcode first): we cannot see further
        size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        name = stream.read(name_size + (-(110 + name_size) % 4)).split(b"\0")[0]
        if name.lstrip(b"./") == b"init":
            return True
        left = size + (-size % 4)
        while left:
            left -= len(stream.read(min(left, 1 << 20))) or left
    return False


def disk_format(path: Path) -> str:
    """ "qcow2" or "raw", by the file's first bytes. Raises UsageError if it cannot be read."""
    return "qcow2" if _head(path, "disk", 4) == b"QFI\xfb" else "raw"


def _head(path: Path, what: str, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(size)
    except OSError as error:
        raise UsageError(f"the {what} {path} cannot be read: {error.strerror}") from None
    if not head:
        raise UsageError(f"the {what} {path} is empty")
    return head
