"""Snapshots on disk: what one is, how it is found, checked, listed and removed. Nothing here starts a QEMU."""

from __future__ import annotations

from vmtest.snapshots.key import facts, key_of, unfit
from vmtest.snapshots.snapshot import Disk, OtherFormat, Snapshot

__all__ = ["Disk", "OtherFormat", "Snapshot", "facts", "key_of", "unfit"]
