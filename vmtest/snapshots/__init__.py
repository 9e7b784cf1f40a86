"""Snapshots on disk: what one is, how it is found, checked, listed and removed. Nothing here starts a QEMU."""

from __future__ import annotations

from vmtest.snapshots.key import facts, key_of
from vmtest.snapshots.snapshot import Disk, Snapshot

__all__ = ["Disk", "Snapshot", "facts", "key_of"]
