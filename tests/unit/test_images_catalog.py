"""Finding images, and what a wrong image.toml is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmtest.errors import UsageError
from vmtest.images import catalog

GOOD = 'arch = "x86_64"\ndescription = "mine"\nkernel = { file = "bzImage" }\nagent = false\n'


def _write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "image.toml").write_text(text)
    return folder


def test_our_images_all_load() -> None:
    """Each folder of ours has an image.toml that describes an image of a known architecture."""
    assert {"linux-x86_64", "linux-aarch64", "linux-riscv64"} <= set(catalog.names())
    for name in catalog.names():
        image = catalog.load(name)
        assert image.name == name
        assert image.min_memory <= image.memory
        assert "console=" not in f"{image.append} {image.trim}"


def test_unknown_name_gets_a_suggestion() -> None:
    """A misspelt name is told what was probably meant, and all that there is."""
    with pytest.raises(UsageError, match=r"unknown guest 'linux-x86-64'") as caught:
        catalog.load("linux-x86-64")
    assert "did you mean linux-x86_64?" in caught.value.hint
    assert "linux-riscv64" in caught.value.hint


@pytest.mark.parametrize("inner", ["", "image.toml"])
def test_own_image_by_path(tmp_path: Path, inner: str) -> None:
    """A folder of the user's own is an image, and its files are meant relative to it."""
    folder = _write(tmp_path / "mine", GOOD)
    (folder / "init").write_text("#!/bin/sh\n")
    image = catalog.load(folder / inner)
    assert image.name == "mine"
    assert image.kernel is not None
    assert image.kernel.file == str(folder / "bzImage")
    assert image.init == str(folder / "init")


def test_shared_init_is_the_default(tmp_path: Path) -> None:
    """An image without an init script of its own takes the shared one."""
    assert catalog.load(_write(tmp_path / "mine", GOOD)).init == str(catalog.folder() / "_init" / "init")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arch = ", "image.toml: "),
        ('arch = "x86_64"\n', "'description' is missing"),
        (GOOD + "memry = 3\n", "unknown key 'memry'"),
        (GOOD.replace("x86_64", "vax"), "unknown architecture 'vax'"),
        (GOOD.replace('{ file = "bzImage" }', '"bzImage"'), "a source is a table"),
        (GOOD.replace('{ file = "bzImage" }', '{ file = "a", apt = "b" }'), "exactly one of"),
        (GOOD.replace('{ file = "bzImage" }', '{ url = "https://localhost/k" }'), "no sha256"),
        (GOOD.replace('{ file = "bzImage" }', '{ fil = "a" }'), "fil"),
        (GOOD + 'init = "nowhere"\n', "init script 'nowhere'"),
        (GOOD + 'channel = "telepathy"\n', "telepathy"),
    ],
)
def test_wrong_toml_names_the_file_and_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    """A mistake in an image.toml is one error that says where it is."""
    folder = _write(tmp_path / "mine", text)
    with pytest.raises(UsageError) as caught:
        catalog.load(folder)
    assert str(folder) in caught.value.message
    assert message in caught.value.message


def test_no_image_at_a_path(tmp_path: Path) -> None:
    """A path without an image.toml is told apart from an unknown name."""
    with pytest.raises(UsageError, match="there is no image at"):
        catalog.load(tmp_path)


def test_folder_name_that_is_no_image_name(tmp_path: Path) -> None:
    """A folder whose name cannot be part of a cache entry's is refused."""
    with pytest.raises(UsageError, match="no name for an image"):
        catalog.load(_write(tmp_path / "my image", GOOD))
