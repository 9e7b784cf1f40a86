"""The reproducers that vmtest has found, on the QEMU that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmtest.devices.reproducer import Reproducer, read, run
from vmtest.host import find_emulator

FILES = sorted((Path(__file__).parents[2] / "fixtures/reproducers").glob("*.toml"))
MOST = 60
"""Operations: what has more is not made small enough to be kept."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_was_found(path: Path) -> None:
    """It ends a QEMU of a version on which it was seen as it was seen there, at the same place of the same build; on
    another version it runs.
    """
    found = read(path)
    qemu = find_emulator(found.binary)
    version = ".".join(map(str, qemu.version))
    crash = run(found, qemu)
    if version in found.seen:
        assert (crash.signature if crash else "") == found.seen[version].partition(" at +")[0]


def test_what_is_kept() -> None:
    """Each is small, and of a signature and place of its own, was found by vmtest, and says which versions it ends."""
    kept = [read(path) for path in FILES]
    assert len(kept) >= 10
    assert len({_key(found) for found in kept}) == len(kept)
    for path, found in zip(FILES, kept, strict=True):
        assert len(found.accesses) <= MOST, path
        assert found.source.startswith("vmtest fuzz device"), path
        assert any(found.seen.values()), path


def _key(found: Reproducer) -> str:
    return f"{found.signature} {found.seen.get('7.2.22')} {found.seen.get('10.0.2')}"
