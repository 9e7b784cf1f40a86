"""Overlays that are written without qemu-img, looked at by qemu-img."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vmtest.errors import HostError, UsageError
from vmtest.qemu.qcow2 import NAME_MOST, chain, create_overlay, set_backing, virtual_size

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def _img(*args: str | Path) -> str:
    done = subprocess.run(["qemu-img", *map(str, args)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _info(path: Path) -> dict[str, Any]:
    return dict(json.loads(_img("info", "--output=json", path)))


def _raw(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("size", [512, 64 * KIB, 10 * MIB + 512, 511 * MIB, 512 * MIB, 513 * MIB, 5 * GIB, 40 << 40])
def test_overlay_is_what_qemu_img_would_make(tmp_path: Path, size: int) -> None:
    """qemu-img finds no error in an overlay of any size, and reads the size and the backing file that were given."""
    base, overlay = _raw(tmp_path / "base", size) if size < 1 << 40 else tmp_path / "base", tmp_path / "overlay"
    if size == 40 << 40:  # more than most file systems have in a file
        _img("create", "-q", "-f", "qcow2", base, str(size))
    kind = "qcow2" if size == 40 << 40 else "raw"
    create_overlay(overlay, str(base), kind, size)
    assert json.loads(_img("check", "--output=json", overlay))["check-errors"] == 0
    info = _info(overlay)
    assert info["format"] == "qcow2"
    assert info["virtual-size"] == size == virtual_size(overlay, "qcow2")
    assert info["backing-filename"] == str(base)
    assert info["backing-filename-format"] == kind


def test_chain(tmp_path: Path) -> None:
    """All files that an image's contents depend on are found, a data file and what QEMU looks at by itself included."""
    top, middle, data, base = (tmp_path / name for name in ("top", "middle", "data", "base"))
    _raw(base, MIB)
    _img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", middle)
    _img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", "-b", "middle", "-F", "qcow2", top, str(MIB))
    assert chain(top, "qcow2") == [top, middle, data, base]
    assert chain(top, "raw") == [top], "a raw disk is what it holds, whatever that looks like"
    _img("create", "-q", "-f", "qcow2", "-u", "-b", "nbd://host/disk", "-F", "raw", middle, str(MIB))
    assert chain(middle, "qcow2") == [middle]
    create_overlay(tmp_path / "itself", "x", "raw", MIB)
    set_backing(tmp_path / "itself", "itself")
    assert chain(tmp_path / "itself", "qcow2") == [tmp_path / "itself"]


def test_size_of_a_block_device(tmp_path: Path) -> None:
    """A block device's size is what can be read of it: its file has none."""
    losetup = subprocess.run(
        ["losetup", "--find", "--show", _raw(tmp_path / "file", 3 * MIB)], capture_output=True, text=True, check=False
    )
    if losetup.returncode:
        pytest.skip(f"no loop devices here: {losetup.stderr.strip()}")
    device = Path(losetup.stdout.strip())
    try:
        assert virtual_size(device, "raw") == 3 * MIB
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_writes_go_to_the_overlay(tmp_path: Path) -> None:
    """What is written to an overlay is read back, the rest is the base's, and the base stays as it was."""
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    content = os.urandom(3 * MIB)
    base.write_bytes(content)
    create_overlay(overlay, str(base), "raw", len(content))
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 64k", "-c", "read -P 0x5a 1M 64k", str(overlay)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert json.loads(_img("check", "--output=json", overlay))["check-errors"] == 0
    _img("convert", "-O", "raw", overlay, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == content[:MIB] + b"\x5a" * 64 * KIB + content[MIB + 64 * KIB :]
    assert base.read_bytes() == content


def test_name_counts_from_the_overlays_directory(tmp_path: Path) -> None:
    """A bare name of a backing file is one beside the overlay, so that the directory can be moved."""
    (tmp_path / "a").mkdir()
    _raw(tmp_path / "a" / "base", MIB)
    create_overlay(tmp_path / "a" / "overlay", "base", "raw", MIB)
    (tmp_path / "a").rename(tmp_path / "b")
    assert _info(tmp_path / "b" / "overlay")["full-backing-filename"] == str(tmp_path / "b" / "base")


@pytest.mark.parametrize("name", ["x", "ä, b = c", "n" * 200])
def test_backing_file_can_be_renamed(tmp_path: Path, name: str) -> None:
    """set_backing gives a shorter or longer name, and loses nothing that was written."""
    base, overlay = tmp_path / "before", tmp_path / "overlay"
    base.write_bytes(b"\1" * MIB)
    create_overlay(overlay, "before", "raw", MIB)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4k", overlay], check=True, capture_output=True)
    base.rename(tmp_path / name)
    set_backing(overlay, name)
    assert json.loads(_img("check", "--output=json", overlay))["check-errors"] == 0
    assert _info(overlay)["backing-filename"] == name
    _img("convert", "-O", "raw", overlay, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"\7" * 4096 + b"\1" * (MIB - 4096)


def test_name_that_the_format_cannot_hold(tmp_path: Path) -> None:
    """The longest name that fits works; one that is longer is a HostError with the name, and no overlay is made."""
    create_overlay(tmp_path / "fits", "n" * NAME_MOST, "raw", MIB)
    assert _info(tmp_path / "fits")["backing-filename"] == "n" * NAME_MOST
    with pytest.raises(HostError, match="too long for an overlay"):
        create_overlay(tmp_path / "overlay", "n" * (NAME_MOST + 1), "raw", MIB)
    assert not (tmp_path / "overlay").exists()


def test_virtual_size_is_qemus(tmp_path: Path) -> None:
    """The size of a qcow2 file is its header's, of a raw one what QEMU makes of it; a file that is none is told."""
    _img("create", "-q", "-f", "qcow2", tmp_path / "disk", "3G")
    assert virtual_size(tmp_path / "disk", "qcow2") == 3 * GIB
    odd = tmp_path / "odd"
    odd.write_bytes(b"x" * 1000)
    assert virtual_size(odd, "raw") == _info(odd)["virtual-size"] == 1024
    with pytest.raises(UsageError, match="is not a qcow2 image"):
        virtual_size(odd, "qcow2")
