"""What was found out about the host, on disk: one small JSON file a fact, trusted only where its key still fits.

The cache saves time and nothing else: where it cannot be read or written, everything is found out again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from vmtest.errors import HostError

__all__ = ["NotKnownYet", "asking", "known_only", "load", "locked", "save"]

Key = Mapping[str, Any]


def _path(name: str) -> Path:
    # cache pulls in filelock, whose import costs more than the rest of a warm start.
    from vmtest import cache

    # Not a secret and not many: crc32 is enough, and hashlib's import is dear.
    return cache.root() / "host" / f"{name.split()[0]}-{zlib.crc32(name.encode()):08x}.json"


def load(name: str, key: Key) -> dict[str, Any] | None:
    """What was saved under ``name`` with exactly this key; None where nothing was, or it is not whole."""
    try:
        stored = json.loads(_path(name).read_bytes())
    except (OSError, ValueError, HostError):
        return None
    if not isinstance(stored, dict) or stored.get("key") != dict(key):
        return None
    value = stored.get("value")
    return value if isinstance(value, dict) else None


def save(name: str, key: Key, value: Mapping[str, Any]) -> None:
    """Save it in place of what ``name`` had. ``name``'s first word is a prefix of the file's name."""
    from vmtest import cache

    with suppress(HostError):
        cache.write(_path(name), json.dumps({"key": dict(key), "value": dict(value)}, indent=1).encode())


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock of that name; where the cache cannot be written, go on without."""
    from vmtest import cache

    with ExitStack() as stack:
        with suppress(OSError, HostError):
            stack.enter_context(cache.lock(name))
        yield


class NotKnownYet(HostError):
    """Something must be asked of the host, by starting a process, and ``known_only`` forbids that."""


_forbidden = False


@contextmanager
def known_only() -> Iterator[None]:
    """In this block nothing of the host is found out that is not known: NotKnownYet is raised instead."""
    global _forbidden
    before, _forbidden = _forbidden, True
    try:
        yield
    finally:
        _forbidden = before


def asking() -> None:
    """Called by whoever is about to start a process. Raises NotKnownYet inside ``known_only``."""
    if _forbidden:
        raise NotKnownYet("not looked at yet: the first guest will tell")
