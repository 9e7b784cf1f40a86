"""Files and trees to and from a guest, as tar streams through its command channel: no network, mode bits kept."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vmtest.errors import TransferFailed, UsageError

if TYPE_CHECKING:
    from vmtest.guest import Guest

__all__ = ["pull", "push"]


PULL = """
if [ -d "$1" ]; then tar -cf - -C "$2" "$3"; else stat -L -c 'mode %a' "$1" >&2 && cat "$1"; fi
"""
"""A file is read and not archived: those of /proc and /sys say that they have no size."""


def push(guest: Guest, src: Path, dst: str, *, timeout: float | None = None) -> None:
    """Copy ``src`` to ``dst`` in the guest; see Guest.push."""
    if not src.exists():
        raise UsageError(f"{src} cannot be pushed: it does not exist")
    # As cp: into a directory that is there, else under the name given. The tar has one entry, `it`.
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(src.resolve(), arcname="it", filter=_as_root)
    script = f"""
        dst={shlex.quote(dst)}
        case $dst in */) mkdir -p "$dst" ;; esac
        [ -d "$dst" ] && dst=${{dst%/}}/{shlex.quote(src.absolute().name or src.resolve().name)}
        case $dst in */*) mkdir -p "${{dst%/*}}/" && tmp=$(mktemp -d "${{dst%/*}}/.push-XXXXXX") ;;
                     *) tmp=$(mktemp -d ./.push-XXXXXX) ;; esac || exit 1
        tar -xf - -C "$tmp" || {{ rm -rf "$tmp"; exit 1; }}
        if [ -d "$dst" ] && [ -d "$tmp/it" ]; then cp -a "$tmp/it/." "$dst/"; else mv -f "$tmp/it" "$dst"; fi
        status=$?
        rm -rf "$tmp"
        exit $status
    """
    result = guest.run(script, input=buffer.getvalue(), timeout=timeout)
    if not result.ok:
        raise TransferFailed(
            f"{src} could not be pushed to {dst}: {_words(result.stderr, result.exit_code)}", evidence=guest.evidence
        )


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def pull(guest: Guest, src: str, dst: Path, *, timeout: float | None = None) -> None:
    """Copy ``src`` of the guest to ``dst``; see Guest.pull."""
    path = PurePosixPath(src)
    if not path.name:
        raise UsageError(f"{src!r} cannot be pulled: name a file or a directory in it")
    result = guest.run(["/bin/sh", "-c", PULL, "sh", src, str(path.parent), path.name], timeout=timeout)
    if not result.ok:
        raise TransferFailed(
            f"{src} could not be pulled: {_words(result.stderr, result.exit_code)}", evidence=guest.evidence
        )
    target = dst / path.name if dst.is_dir() else dst
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode := re.match(r"mode ([0-7]+)\n", result.stderr):
            target.write_bytes(result.stdout_bytes)
            target.chmod(int(mode[1], 8))
        else:
            _unpack(result.stdout_bytes, path.name, target)
    except (OSError, tarfile.TarError) as error:
        raise TransferFailed(f"{src} could not be pulled to {dst}: {error}") from error


def _unpack(data: bytes, name: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=target.parent) as scratch:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            _extract(tar, Path(scratch))
        if target.is_dir():
            shutil.copytree(Path(scratch) / name, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.move(Path(scratch) / name, target)


def _extract(tar: tarfile.TarFile, into: Path) -> None:
    """Unpack what a guest sent, which may be hostile: links are made last, so that nothing is written through one."""
    links = []
    directories = []
    for member in tar:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise TransferFailed(f"the guest sent a path that leads outside: {member.name!r}")
        where = into / name
        if member.issym() or member.islnk():
            links.append(member)
        elif member.isdir():
            where.mkdir(parents=True, exist_ok=True)
            directories.append((where, member.mode & 0o7777))
        elif member.isreg():
            where.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, where.open("wb") as file:
                shutil.copyfileobj(source, file)
            where.chmod(member.mode & 0o7777)
        else:
            raise TransferFailed(
                f"{member.name} is a device, FIFO or socket: only files, directories and links are pulled"
            )
    # Hard links first, while no symbolic link could lead one astray; then each link only where no link leads to.
    for member in sorted(links, key=lambda member: member.issym()):
        where, to = into / member.name, PurePosixPath(member.linkname)
        where.parent.mkdir(parents=True, exist_ok=True)
        hard_outside = member.islnk() and (to.is_absolute() or ".." in to.parts)
        if hard_outside or not where.parent.resolve().is_relative_to(into.resolve()):
            raise TransferFailed(f"the guest sent a link that leads outside: {member.name!r} to {member.linkname!r}")
        if member.islnk():
            where.hardlink_to(into / to)
        else:
            where.symlink_to(member.linkname)
    for where, mode in reversed(directories):  # last: a read-only directory takes no files
        where.chmod(mode)


def _words(stderr: str, exit_code: int) -> str:
    return stderr.strip() or f"exit code {exit_code}"
