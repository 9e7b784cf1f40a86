"""A cache of a test's own, which has nothing in it but the session's images and measurements."""

from __future__ import annotations

from pathlib import Path

from vmtest import cache

__all__ = ["SHARED", "own_cache"]

SHARED = cache.root()
"""The session's, whatever a test then sets XDG_CACHE_HOME to."""


def own_cache(home: Path) -> Path:
    """Make ``home`` a directory for XDG_CACHE_HOME; vmtest's cache in it."""
    own = home / "vmtest"
    own.mkdir(parents=True)
    for name in ("images", "host"):
        (SHARED / name).mkdir(exist_ok=True)
        (own / name).symlink_to(SHARED / name)
    return own
