"""The real default images: built from Debian's packages, once, in the session's cache."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from vmtest import images
from vmtest.images.prepared import Prepared

ARCHES = {"linux-x86_64": 62, "linux-aarch64": 183}  # the ELF machine numbers of what must be in them


def _entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    found, at = {}, 0
    while True:
        mode, size, length = (int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in (1, 6, 11))
        name = archive[at + 110 : at + 109 + length].decode()
        start = (at + 110 + length + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[start : start + size])
        at = (start + size + 3) & ~3


@pytest.fixture(scope="module", params=sorted(ARCHES))
def built(request: pytest.FixtureRequest) -> Prepared:
    """Each default image, from the cache or built now."""
    return images.prepare(images.load(request.param))


def test_initramfs_has_all_that_init_needs(built: Prepared) -> None:
    """Each module that the lists name is there, once, with virtio_ring before what stands on it."""
    assert built.initrd is not None
    found = _entries(built.initrd.read_bytes())
    machine = ARCHES[built.image.name]
    for name in ("init", "vmtest-agent", "usr/bin/busybox"):
        assert found[name][0] == stat.S_IFREG | 0o755
    for name in ("vmtest-agent", "usr/bin/busybox"):
        assert int.from_bytes(found[name][1][18:20], "little") == machine
    assert {"usr/bin/sh", "usr/bin/insmod", "usr/bin/mount", "usr/bin/setsid"} <= set(found)
    listed = [found[name][1].decode().split() for name in ("modules.list", "modules.later.list")]
    first = [path.rpartition("/")[2] for path in listed[0]]
    assert first.index("virtio_ring.ko") < first.index("virtio.ko") < first.index("virtio_pci.ko")
    assert "virtio_console.ko" in first
    assert not set(listed[0]) & set(listed[1])
    for path in (*listed[0], *listed[1]):
        assert found["usr" + path][1][:4] == b"\x7fELF"
    assert found["etc/vmtest-image"][1].decode() == f"{built.image.name}\n"


def test_warm_build_needs_neither_apt_nor_network(built: Prepared) -> None:
    """Once built, an image is answered from the cache where there is no apt at all."""
    script = "import sys; from vmtest import images; print(images.prepare(images.load(sys.argv[1])).key)"
    run = subprocess.run(
        [sys.executable, "-c", script, built.image.name],
        env={**os.environ, "PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == built.key
