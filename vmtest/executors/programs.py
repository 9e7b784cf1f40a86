"""The programs that hatch_build.py compiles from images/_executors, and whether they are of these sources."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vmtest.images.catalog import folder

__all__ = ["STAMP", "lacks_program", "program", "sources_hash"]

STAMP = "compiled"
"""The file beside them that says of which sources they are."""
_SOURCES = (".c", ".h", ".S")


def program(name: str, arch: str) -> Path:
    """Where it is."""
    return folder() / "_executors" / f"{name}.{arch}"


def lacks_program(name: str, arch: str) -> str:
    """Why it cannot be run: it is not there, or not of these sources; "" where it can."""
    path = program(name, arch)
    if not path.is_file():
        return f"{path} is not there; such programs are made for x86_64, aarch64 and riscv64 when vmtest is installed"
    stamp = path.with_name(STAMP)
    if not stamp.is_file() or stamp.read_text().strip() != sources_hash(path.parent):
        return f"{path} was compiled from other sources than are beside it (in a checkout: pip install -e .)"
    return ""


def sources_hash(directory: Path) -> str:
    """Of all sources together. hatch_build.py has the same."""
    found = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix in _SOURCES:
            found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
