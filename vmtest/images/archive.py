"""Taking files out of .deb and tar archives without installing anything.

A .deb is read here rather than by ``dpkg-deb``: it is an ``ar`` archive with a tar in it, and a host without dpkg
can then use .deb files from ``file`` and ``url`` sources too.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from vmtest.errors import ImageError

__all__ = ["Archive", "is_archive", "opened"]

_SUFFIXES = (".deb", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
_AR_MAGIC = b"!<arch>\n"


def is_archive(path: str | Path) -> bool:
    """Whether the file's name says that it is one of the archives that ``opened`` takes."""
    return str(path).endswith(_SUFFIXES)


class Archive:
    """The files of an archive by path (without a leading ``/`` or ``./``)."""

    def __init__(self, tar: tarfile.TarFile, name: str) -> None:
        self._tar = tar
        self.name = name
        self.members = {member.name.removeprefix("./").strip("/"): member for member in tar}
        self.members.pop(".", None)
        self.members.pop("", None)

    def matching(self, pattern: str) -> list[str]:
        """The paths, sorted, of what is no directory and matches the glob. Raises ImageError where nothing does."""
        wanted = pattern.lstrip("/")
        found = sorted(
            path for path, member in self.members.items() if not member.isdir() and fnmatchcase(path, wanted)
        )
        if not found:
            raise ImageError(
                f"{self.name} has no file that matches {pattern!r}",
                hint="correct `paths` in image.toml; `dpkg-deb -c` or `tar -t` lists what is there",
            )
        return found

    def read(self, path: str) -> bytes:
        """The bytes of the file at that path, behind hard links (a symbolic link has none)."""
        stream = self._tar.extractfile(self.members[path])
        return stream.read() if stream else b""


@contextmanager
def opened(path: Path, *, scratch: Path) -> Iterator[Archive]:
    """The archive in that file. What it unpacks to goes to a nameless file in the directory ``scratch``.

    Reading out of the compressed archive would cost unpacking all of it again for each of some 20 files.
    Raises ImageError for a file that is broken or no archive.
    """
    try:
        with TemporaryFile(dir=scratch) as plain:
            _unpack(path, plain)
            plain.seek(0)
            with tarfile.open(fileobj=plain, mode="r:*") as tar:
                yield Archive(tar, path.name)
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError, subprocess.CalledProcessError) as error:
        raise ImageError(f"{path} cannot be unpacked: {error}", hint="it is damaged, or no such archive") from None


def _unpack(path: Path, out: IO[bytes]) -> None:
    with path.open("rb") as source:
        if source.read(len(_AR_MAGIC)) != _AR_MAGIC:
            source.seek(0)
            shutil.copyfileobj(source, out)
            return
        name, size = _seek_data(source)
        if name in ("data.tar", "data.tar.gz"):
            out.write(source.read(size))
        elif name == "data.tar.xz":
            _unpack_xz(source, out)
        elif shutil.which("dpkg-deb"):
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=out, check=True)
        else:
            raise ImageError(
                f"{path} holds {name or 'no data.tar'}, which can only be unpacked by dpkg-deb",
                hint="install dpkg, or use a package that is compressed with xz",
            )


def _seek_data(source: IO[bytes]) -> tuple[str, int]:
    """Move to the contents of the member ``data.tar*`` of an ar archive; its name and size, "" where there is none."""
    while len(header := source.read(60)) == 60:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = int(header[48:58])
        if name.startswith("data.tar"):
            return name, size
        source.seek(size + size % 2, io.SEEK_CUR)
    return "", 0


def _unpack_xz(source: IO[bytes], out: IO[bytes]) -> None:
    decompressor = lzma.LZMADecompressor()  # stops by itself at the stream's end, before ar's padding
    while not decompressor.eof:
        chunk = source.read(1 << 20)
        if not chunk:
            raise EOFError("it ends in the middle")
        out.write(decompressor.decompress(chunk))
