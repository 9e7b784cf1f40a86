"""An image's files: out of the cache, or built into it first."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmtest import cache
from vmtest.errors import ImageError, UsageError
from vmtest.images import catalog, store
from vmtest.model.image import Image, Source
from vmtest.progress import SILENT, Progress

__all__ = ["Prepared", "cache_key", "cached", "prepare"]

# Raised when the same inputs are to give another result.
_FORMAT = 1
# What decides what is built. The other fields say how to boot it, and may change without a new build.
_BUILT_FROM = ("name", "arch", "kernel", "initrd", "disk", "files", "modules", "later_modules", "agent", "instead")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An image that is ready to boot. ``key`` changes whenever the bytes of one of the files do."""

    image: Image
    kernel: Path | None
    initrd: Path | None
    disk: Path | None
    key: str


def prepare(image: Image, *, progress: Progress = SILENT, update: bool = False) -> Prepared:
    """The image's files: from the cache where they are there and whole, else built now.

    Two processes that want the same image build it once: the second waits. What was built stays as it is, and
    needs no network, until the image's description changes or ``update`` asks for the newest packages.
    Raises ImageError where something cannot be fetched, verified or written, UsageError for an image that is
    described wrongly.
    """
    with _disk_errors(image.name):
        key = cache_key(image)
        path = store.entry_path(image.name, key)
        if not update and (entry := store.check(path)):
            return _prepared(image, entry)

        def waiting() -> None:
            progress.step(f"waiting for another process that is building {image.name}")

        with cache.lock(store.lock_name(image.name), waiting=waiting):
            # The other process may just have built it; of a damaged entry the user has been told above.
            entry = None if update else store.check(path, warn=False)
            if entry is None:
                with cache.building(path, image.name) as work:
                    # Here, since a boot of what is built needs neither tar nor http, whose import takes 50 ms.
                    from vmtest.images.build import build

                    build(image, work, progress=progress, update=update)
                entry = store.check(path)
        if entry is None:
            raise ImageError(f"the image {image.name} was damaged while it was being built: {path}")
        return _prepared(image, entry)


def cached(image: Image) -> store.Entry | None:
    """The image's entry in the cache, if it is built and whole. Builds nothing."""
    with _disk_errors(image.name):
        return store.check(store.entry_path(image.name, cache_key(image)))


def cache_key(image: Image) -> str:
    """A hash of all that the image is built from and that is known without the network.

    Package versions are not known, so that a newer kernel in the archive does not change it. A ``file`` source
    counts by what tells that it was changed; its contents are hashed when it is built.
    """
    facts = _facts(asdict(image))
    parts = [json.dumps({"format": _FORMAT, **facts}, sort_keys=True, default=str).encode()]
    for source in _sources(image):
        if source.file:
            try:
                stat = Path(source.file).stat()
            except OSError as error:
                raise UsageError(
                    f"the image {image.name} needs {source.file}: {error.strerror}",
                    hint="its image.toml names it; paths are relative to its folder",
                ) from None
            parts.append(f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}".encode())
    if image.has_initramfs:
        parts.append(Path(image.init).read_bytes())
        if image.agent:
            parts.append(catalog.agent_binary(image.arch).read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _facts(image: dict[str, Any]) -> dict[str, Any]:
    """What decides what is built; nothing of where the image's folder is."""
    facts = {name: value for name, value in image.items() if name in _BUILT_FROM}
    if image["instead"]:
        facts["instead"] = _facts(image["instead"])
    return facts


def _prepared(image: Image, entry: store.Entry) -> Prepared:
    kernel, initrd, disk = map(entry.file, ("kernel", "initrd", "disk"))
    return Prepared(image=image, kernel=kernel, initrd=initrd, disk=disk, key=entry.content_key)


def _sources(image: Image) -> list[Source]:
    return [source for source in (image.kernel, image.initrd, image.disk, *image.files) if source]


@contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    """A full disk and the like as one clear error."""
    try:
        yield
    except OSError as error:
        where = cache.root()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(where).free
            raise ImageError(
                f"there is no room to build the image {name}: {where} has {free / 1e6:.0f} MB left",
                hint="free some space (`vmtest image rm --all` empties the cache), or set XDG_CACHE_HOME",
            ) from error
        raise ImageError(f"the image {name} cannot be built: {error}", hint=f"the cache is {where}") from error
