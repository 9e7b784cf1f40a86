"""Kernel modules: dependencies, order, and names."""

from __future__ import annotations

import lzma
import struct

import pytest

from vmtest.errors import ImageError
from vmtest.images.modules import ModuleTree, depends


def module(*dependencies: str) -> bytes:
    """A 64-bit ELF file with nothing but a .modinfo section."""
    modinfo = b"license=GPL\0depends=" + ",".join(dependencies).encode() + b"\0name=x\0"
    strings = b"\0.modinfo\0.shstrtab\0"
    offset = 64 + len(modinfo) + len(strings)
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, offset, 0, 64, 0, 0, 64, 3, 2)
    )
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, 64, len(modinfo), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(modinfo), len(strings), 0, 0, 1, 0)
    return header + modinfo + strings + sections


def _tree(files: dict[str, bytes]) -> ModuleTree:
    return ModuleTree(files, files.__getitem__)


VIRTIO = {
    "lib/modules/1/virtio.ko": module("virtio_ring"),
    "lib/modules/1/virtio_ring.ko": module(),
    "lib/modules/1/virtio_pci.ko": module("virtio", "virtio_ring"),
    "lib/modules/1/virtio-rng.ko": module("virtio"),
    "lib/modules/1/unused.ko": module("missing"),
    "lib/modules/1/modules.builtin": b"kernel/drivers/char/hw_random/rng-core.ko\n",
}


def _names(*wanted: str) -> list[str]:
    return [found.path.split("/")[-1] for found in _tree(VIRTIO).closure(wanted)]


def test_dependencies_come_first() -> None:
    """insmod never meets a module whose dependency is not loaded, and loads none twice."""
    assert _names("virtio_pci", "virtio_rng") == ["virtio_ring.ko", "virtio.ko", "virtio_pci.ko", "virtio-rng.ko"]


def test_order_follows_what_is_wanted() -> None:
    """The order is that of the list in image.toml, run after run."""
    assert _names("virtio_rng", "virtio_pci") == ["virtio_ring.ko", "virtio.ko", "virtio-rng.ko", "virtio_pci.ko"]


@pytest.mark.parametrize("name", ["virtio-rng", "virtio_rng"])
def test_dash_and_underscore_are_the_same(name: str) -> None:
    """A module is found under both spellings, as modprobe finds it."""
    assert _names(name)[-1] == "virtio-rng.ko"


def test_what_is_built_in_needs_no_file() -> None:
    """A name that the kernel has built in is no error and no file."""
    assert _names("rng_core") == []


def test_unknown_module_is_named() -> None:
    """A misspelt module stops the build, and the error says which."""
    with pytest.raises(ImageError, match="no module 'virtoi_pci'"):
        _names("virtoi_pci")


def test_missing_dependency_says_who_needs_it() -> None:
    """Where a dependency is missing, the error names both."""
    with pytest.raises(ImageError, match="'missing', which unused depends on"):
        _names("unused")


def test_circle_is_an_error() -> None:
    """Modules that depend on each other end in an error, not in a hang."""
    with pytest.raises(ImageError, match="circle"):
        _tree({"a.ko": module("b"), "b.ko": module("a")}).closure(["a"])


def test_compressed_modules_are_unpacked() -> None:
    """A .ko.xz goes into the initramfs as the .ko that any insmod loads."""
    (found,) = _tree({"m/a.ko.xz": lzma.compress(module())}).closure(["a"])
    assert (found.path, found.data) == ("m/a.ko", module())


@pytest.mark.parametrize("broken", [b"", b"not elf", module("a")[:80], b"\x7fELF\x02\x01" + b"\xff" * 100])
def test_broken_module_is_an_image_error(broken: bytes) -> None:
    """A damaged module file is told of by its path."""
    with pytest.raises(ImageError, match=r"m/a\.ko"):
        _tree({"m/a.ko": broken}).closure(["a"])


def test_32_bit_big_endian_module() -> None:
    """Modules of other architectures' ELF classes and byte orders are read alike."""
    modinfo = b"depends=crc32\0"
    strings = b"\0.modinfo\0"
    header = b"\x7fELF\x01\x02\x01" + bytes(9)
    header += struct.pack(">HHIIIIIHHHHHH", 1, 8, 1, 0, 0, 52 + 14 + 10, 0, 52, 0, 0, 40, 2, 1)
    sections = struct.pack(">IIIIIIIIII", 1, 1, 0, 0, 52, 14, 0, 0, 1, 0)
    sections += struct.pack(">IIIIIIIIII", 0, 3, 0, 0, 52 + 14, 10, 0, 0, 1, 0)
    assert depends(header + modinfo + strings + sections) == ("crc32",)
