"""The guests that a project declares: ``[tool.vmtest]`` of its pyproject.toml, or a vmtest.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmtest.errors import UsageError
from vmtest.model.spec import DEFAULT_GUEST, GuestSpec

__all__ = ["Config", "find", "read"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """``default`` is the guest used where none is named; ``guests`` maps names to specs; ``path`` is the file."""

    path: Path | None = None
    default: str = DEFAULT_GUEST
    guests: dict[str, GuestSpec] = field(default_factory=dict)

    def spec(self, name: str | None) -> GuestSpec:
        """What that name stands for: a guest declared here, else the image of that name or path."""
        name = name or self.default
        return self.guests.get(name) or GuestSpec(image=name)


def find(start: Path) -> Config:
    """The configuration of the project that ``start`` is in; an empty one where it says nothing of guests.

    The project is the nearest directory, from ``start`` upward, with a vmtest.toml or a pyproject.toml.
    """
    for directory in (start, *start.parents):
        own, project = directory / "vmtest.toml", directory / "pyproject.toml"
        if own.is_file():
            return read(own)
        if project.is_file():
            return _from_pyproject(project) or Config()
    return Config()


def read(path: Path) -> Config:
    """The configuration in a vmtest.toml. Raises UsageError that names the file and the key."""
    return _config(_parsed(path), path, "")


def _from_pyproject(path: Path) -> Config | None:
    try:
        table = _parsed(path).get("tool", {}).get("vmtest")
    except UsageError:
        # A pyproject.toml that is broken, or not ours to read, is no business of a test run without guests.
        if b"tool.vmtest" not in _bytes(path):
            return None
        raise
    return None if table is None else _config(table, path, "tool.vmtest.")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _config(table: dict[str, Any], path: Path, prefix: str) -> Config:
    unknown = sorted(set(table) - {"guest", "guests"})
    if unknown:
        raise UsageError(
            f"{path}: unknown key {prefix}{unknown[0]}",
            hint=f"known: {prefix}guest (the default guest's name) and the tables {prefix}guests.NAME",
        )
    guests = table.get("guests", {})
    if not isinstance(guests, dict) or not all(isinstance(value, dict) for value in guests.values()):
        raise UsageError(f"{path}: {prefix}guests holds a table for each guest: [{prefix}guests.NAME]")
    return Config(
        path=path,
        default=table.get("guest", DEFAULT_GUEST),
        guests={
            name: GuestSpec.parse(value, where=f"{path}: [{prefix}guests.{name}]", base=path.parent)
            for name, value in guests.items()
        },
    )
