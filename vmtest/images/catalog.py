"""Where images are described: a folder each, with an image.toml; ours, and the user's own by path."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path

from vmtest.errors import ImageError, UsageError
from vmtest.model.image import Image, Source

__all__ = ["agent_binary", "folder", "load", "names"]

# The name becomes a part of file names in the cache ("@" and a leading "." mean something there).
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@cache
def folder() -> Path:
    """The folder with our images: ``images/`` of a checkout, or ``vmtest/images/data`` of an installed wheel."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "data", here.parents[1] / "images"):
        if candidate.is_dir():
            return candidate
    raise ImageError(
        f"vmtest's images are missing: there is neither {here / 'data'} nor {here.parents[1] / 'images'}",
        hint="the installation is incomplete: reinstall pytest-vmtest",
    )


def names() -> tuple[str, ...]:
    """The names of our images, sorted. Folders that start with ``_`` hold parts that images share."""
    found = (path.parent.name for path in folder().glob("*/image.toml"))
    return tuple(sorted(name for name in found if not name.startswith(("_", "."))))


def load(name_or_path: str | Path) -> Image:
    """The image of that name, or of that folder or image.toml.

    What looks like a path (it has a ``/``, or is a ``Path``) is taken as one. Raises UsageError for a name that
    is unknown, a path without an image.toml, and an image.toml that does not describe an image.
    """
    if isinstance(name_or_path, str) and "/" not in name_or_path:
        if name_or_path not in names():
            raise _unknown(name_or_path)
        toml = folder() / name_or_path / "image.toml"
    else:
        toml = Path(name_or_path).expanduser()
        toml = toml / "image.toml" if toml.is_dir() else toml
        if not toml.is_file():
            raise UsageError(
                f"there is no image at {name_or_path}",
                hint=f"give a folder with an image.toml, or one of: {', '.join(names())}",
            )
        toml = toml.resolve()
    try:
        data = tomllib.loads(toml.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{toml}: {error}") from None
    except OSError as error:
        raise UsageError(f"{toml} cannot be read: {error.strerror}") from None
    name = toml.parent.name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{toml.parent}: an image is named after its folder, and {name!r} is no name for an image",
            hint="use letters, digits, and . _ + - after the first",
        )
    return _resolve(Image.from_toml(name, data, where=str(toml)), toml.parent)


def agent_binary(arch: str) -> Path:
    """vmtest's agent for that architecture. Raises ImageError where it has not been compiled."""
    path = folder() / "_agent" / f"agent.{arch}"
    if not path.is_file():
        raise ImageError(
            f"the guest agent for {arch} is not there: {path}",
            hint="in a checkout, `pip install -e .` compiles it; an installed wheel carries it",
        )
    return path


def _unknown(name: str) -> UsageError:
    known = names()
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f"did you mean {close[0]}? " if close else ""
    return UsageError(
        f"unknown guest {name!r}: no image has that name", hint=f"{meant}known images: {', '.join(known) or 'none'}"
    )


def _resolve(image: Image, base: Path) -> Image:
    """The image with paths that no longer depend on where its folder is."""

    def absolute(source: Source) -> Source:
        if not source.file:
            return source
        return replace(source, file=str(base / Path(source.file).expanduser()))

    init = base / image.init
    if not init.is_file():
        init = folder() / "_init" / image.init
    if image.has_initramfs and not init.is_file():
        raise UsageError(
            f"{base / 'image.toml'}: the init script {image.init!r} is not there",
            hint=f"put it into {base}, or name one of {folder() / '_init'}",
        )
    return replace(
        image,
        init=str(init),
        kernel=image.kernel and absolute(image.kernel),
        initrd=image.initrd and absolute(image.initrd),
        disk=image.disk and absolute(image.disk),
        files=tuple(map(absolute, image.files)),
        instead=image.instead and _resolve(image.instead, base),
    )
