"""What a QEMU that is worked on may have of the host's memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["limits"]

MEMORY = 4 << 30
"""Bytes that it may have, its guest's memory included: what asks for more is told as that. They are of address space;
resident ones where it is built with AddressSanitizer, which reserves 16 TiB for what it knows of all others."""


def limits(binary: Path) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Words to put before its command line, and what it needs in its environment."""
    if _has_asan(binary):
        options = [os.environ.get("ASAN_OPTIONS", ""), f"hard_rss_limit_mb={MEMORY >> 20}", "detect_leaks=0"]
        return ("prlimit", "--core=0"), {"ASAN_OPTIONS": ":".join(filter(None, options))}
    return ("prlimit", f"--as={MEMORY}", "--core=0"), {}


@cache
def _has_asan(binary: Path) -> bool:
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"__asan_init") >= 0
