"""From a Source to a file on this host, whole and verified."""

from __future__ import annotations

import http.client
import os
import platform
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vmtest import cache
from vmtest.errors import ImageError, UsageError
from vmtest.images.apt import Apt, WrongHash
from vmtest.model.arch import arch as arch_row
from vmtest.model.image import Source
from vmtest.progress import Progress

__all__ = ["Fetched", "WrongHash", "fetch"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """A source's file, and where it came from: what goes into the manifest."""

    path: Path
    origin: dict[str, str]


def fetch(source: Source, *, arch: str, progress: Progress, update: bool = False) -> Fetched:
    """Get the file of a source for an image of that architecture. ``update`` asks the network for newer packages.

    Raises ImageError where it cannot be had, or is not what its hash says.
    """
    if source.apt:
        return _fetch_apt(source, arch, progress, update)
    if source.url:
        return Fetched(_fetch_url(source.url, source.sha256.lower(), progress), {"url": source.url})
    path = Path(source.file)
    if not path.is_file():
        raise UsageError(f"the file {path} is not there", hint="image.toml names it; paths are relative to its folder")
    if source.sha256 and (found := cache.digest(path)) != source.sha256.lower():
        raise _wrong_hash(str(path), expected=source.sha256, found=found, hint="correct sha256, or the file")
    return Fetched(path, {"file": str(path)})


def _fetch_apt(source: Source, arch: str, progress: Progress, update: bool) -> Fetched:
    suite = source.suite or platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
    apt = Apt(suite, source.debian_arch or arch_row(arch).debian)
    with cache.lock(apt.lock_name, waiting=lambda: progress.step("waiting for another process that uses apt")):
        apt.update(progress=progress, force=update)
        try:
            package = apt.package(source.apt, follow=source.follow)
            path = apt.download(package, progress=progress)
        except ImageError:
            if update:
                raise
            # The lists may name a version that the archive has replaced since: once more, with new ones.
            apt.update(progress=progress, force=True)
            package = apt.package(source.apt, follow=source.follow)
            path = apt.download(package, progress=progress)
    origin = {"package": package.name, "version": package.version, "arch": package.arch, "suite": suite}
    return Fetched(path, origin | {"sha256": package.sha256})


def _fetch_url(url: str, sha256: str, progress: Progress) -> Path:
    name = Path(urlsplit(url).path).name or "file"
    path = cache.root() / "downloads" / f"{sha256[:16]}-{name}"
    with cache.lock(f"download-{sha256[:16]}", waiting=lambda: progress.step(f"waiting for the download of {name}")):
        # Under this name only what was verified; still it is 10 ms to see that the disk kept it.
        if path.is_file() and cache.digest(path) == sha256:
            return path
        partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            progress.step(f"downloading {name}")
            _download(url, partial, progress)
            if (found := cache.digest(partial)) != sha256:
                raise _wrong_hash(url, expected=sha256, found=found, hint="the download was removed; is the url right?")
            partial.chmod(0o444)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _download(url: str, to: Path, progress: Progress) -> None:
    if urlsplit(url).scheme not in ("http", "https", "ftp", "file"):
        raise UsageError(f"{url}: this kind of url is not supported", hint="use http, https, ftp or file")
    try:
        with urllib.request.urlopen(url, timeout=60) as reply, to.open("wb") as out:  # noqa: S310  checked above
            total = int(reply.headers.get("Content-Length") or 0) or None
            done = 0
            while chunk := reply.read(_CHUNK):
                out.write(chunk)
                done += len(chunk)
                progress.bytes(done, total)
            out.flush()
            os.fsync(out.fileno())
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise ImageError(
            f"{url} cannot be downloaded: {reason}",
            hint="building an image for the first time needs the network; afterwards nothing does",
        ) from None


def _wrong_hash(what: str, *, expected: str, found: str, hint: str) -> WrongHash:
    return WrongHash(f"{what} is not what it should be: its SHA-256 is {found}, expected {expected}", hint=hint)
