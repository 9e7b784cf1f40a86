"""Building into the cache: once, whole, checked, and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vmtest import cache, images
from vmtest.errors import ImageError, UsageError
from vmtest.images import catalog, prepared, store

KERNEL = bytes(0x202) + b"HdrS" + bytes(3000)
BUILD = """
import sys
from vmtest import images

class Lines:
    def step(self, text):
        print(text, flush=True)
    def bytes(self, done, total):
        pass

try:
    print("built", images.prepare(images.load(sys.argv[1]), progress=Lines()).key, flush=True)
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image of local files, which needs no network."""
    return _image(tmp_path, 'kernel = { file = "bzImage" }')


def _image(tmp_path: Path, kernel: str, more: str = "") -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir(exist_ok=True)
    (folder / "bzImage").write_bytes(KERNEL)
    (folder / "init").write_text("#!/bin/sh\n")
    (folder / "image.toml").write_text(f'arch = "x86_64"\ndescription = "t"\nagent = false\n{kernel}\n{more}\n')
    return folder


def _left() -> list[str]:
    """Everything in the cache but finished entries, finished downloads and locks."""
    root = cache.root()
    return [str(path) for path in root.rglob("*") if path.name.startswith(".") or ".partial" in path.name]


def test_built_once_and_the_same_each_time(folder: Path) -> None:
    """The second call answers from the cache, and a build from the same inputs gives the same bytes."""
    first = images.prepare(images.load(folder))
    assert first.kernel is not None
    assert first.initrd is not None
    written = first.initrd.stat().st_mtime_ns
    again = images.prepare(images.load(folder))
    assert again.initrd == first.initrd
    assert first.initrd.stat().st_mtime_ns == written
    content = first.initrd.read_bytes()
    store.remove("tiny")
    rebuilt = images.prepare(images.load(folder))
    assert rebuilt.initrd is not None
    assert rebuilt.initrd.read_bytes() == content
    assert rebuilt.key == first.key
    assert first.kernel.read_bytes() == KERNEL


def test_changed_input_is_another_entry(folder: Path) -> None:
    """A new init script or kernel is taken without being told to."""
    before = images.prepare(images.load(folder))
    (folder / "init").write_text("#!/bin/sh\necho\n")
    after = images.prepare(images.load(folder))
    assert before.key != after.key
    (folder / "bzImage").write_bytes(KERNEL + b"\1")
    assert images.prepare(images.load(folder)).key != after.key


def test_what_only_says_how_to_boot_builds_nothing(folder: Path) -> None:
    """A change of memory or of the kernel's command line uses what is built."""
    before = images.prepare(images.load(folder))
    toml = folder / "image.toml"
    toml.write_text(toml.read_text() + 'memory = 99\nappend = "a=b"\n')
    after = images.prepare(images.load(folder))
    assert after.image.memory == 99
    assert after.kernel == before.kernel


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest", "no manifest"])
def test_damaged_entry_is_built_again(folder: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    """A file that was changed, cut or removed is never booted: it is rebuilt, with one warning."""
    good = images.prepare(images.load(folder))
    assert good.kernel is not None
    manifest = good.kernel.with_name("manifest.json")
    good.kernel.chmod(0o644)
    if harm == "flip":
        stat = good.kernel.stat()
        good.kernel.write_bytes(KERNEL[:-1] + b"x")
        os.utime(good.kernel, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a careful corruption would
    elif harm == "truncate":
        os.truncate(good.kernel, 100)
    elif harm == "remove":
        good.kernel.unlink()
    elif harm == "manifest":
        manifest.write_text("{}")
    else:
        manifest.unlink()
    with caplog.at_level(logging.WARNING, "vmtest"):
        again = images.prepare(images.load(folder))
    assert again.kernel == good.kernel
    assert again.kernel is not None
    assert again.kernel.read_bytes() == KERNEL
    assert len(caplog.records) == 1
    assert "damaged and will be built again" in caplog.text
    assert not _left()


def test_manifest_says_what_is_in_the_entry(folder: Path) -> None:
    """Size, hash and origin of each file can be read without vmtest."""
    built = images.prepare(images.load(folder))
    assert built.kernel is not None
    manifest = json.loads(built.kernel.with_name("manifest.json").read_text())
    assert manifest["files"]["kernel"]["sha256"] == hashlib.sha256(KERNEL).hexdigest()
    assert manifest["files"]["kernel"]["size"] == len(KERNEL)
    assert manifest["origins"] == [{"file": str(folder / "bzImage")}]


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"text" * 300])
def test_file_that_is_no_kernel_is_refused(folder: Path, content: bytes) -> None:
    """An empty or wrong file as kernel is one error before anything boots, and leaves nothing."""
    (folder / "bzImage").write_bytes(content)
    with pytest.raises(ImageError, match="no kernel that x86_64 can boot"):
        images.prepare(images.load(folder))
    assert not _left()
    assert not list((cache.root() / "images").iterdir())


def test_missing_file_is_named(folder: Path) -> None:
    """A file source that is not there is the user's mistake, told with its path."""
    (folder / "bzImage").unlink()
    with pytest.raises(UsageError, match=r"needs .*bzImage: No such file"):
        images.prepare(images.load(folder))


def test_wrong_hash_of_a_file_is_refused(tmp_path: Path) -> None:
    """A file with another hash than stated is not used, and both hashes are told."""
    found, stated = hashlib.sha256(KERNEL).hexdigest(), "0" * 64
    folder = _image(tmp_path, f'kernel = {{ file = "bzImage", sha256 = "{stated}" }}')
    with pytest.raises(ImageError, match=f"{found}, expected {stated}"):
        images.prepare(images.load(folder))


def test_modules_without_a_package_are_refused(tmp_path: Path) -> None:
    """A bare kernel file has no modules: asking for some is told, not ignored."""
    folder = _image(tmp_path, 'kernel = { file = "bzImage" }', 'modules = ["virtio_pci"]')
    with pytest.raises(UsageError, match="lists modules"):
        images.prepare(images.load(folder))


class _Server:
    """Serves the kernel, but not before ``release`` is set; counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.count = 0
        self.release = threading.Event()
        self.body = KERNEL
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.count += 1
                outer.asked.release()
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body[:100])
                outer.release.wait(60)
                try:
                    self.wfile.write(outer.body[100:])
                except OSError:
                    self.close_connection = True  # the builder was killed: that is the test

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/bzImage"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def source(self) -> str:
        return f'kernel = {{ url = "{self.url}", sha256 = "{hashlib.sha256(KERNEL).hexdigest()}" }}'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    """A web server of our own on this host; no proxy stands between."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = _Server()
    yield server
    server.release.set()
    server.http.shutdown()
    server.http.server_close()


def _builder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILD, str(folder)], stdout=subprocess.PIPE, text=True)


def test_url_is_downloaded_once_and_verified(tmp_path: Path, server: _Server) -> None:
    """A download is kept read-only; a rebuild takes it from the cache."""
    server.release.set()
    folder = _image(tmp_path, server.source())
    images.prepare(images.load(folder))
    store.remove("tiny")
    images.prepare(images.load(folder))
    assert server.count == 1
    (download,) = (cache.root() / "downloads").iterdir()
    assert download.stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("body", [b"evil" + KERNEL[4:], KERNEL[:-7], b""])
def test_wrong_hash_of_a_download_is_refused(tmp_path: Path, server: _Server, body: bytes) -> None:
    """A download that is not what its sha256 says is removed and never used."""
    server.release.set()
    server.body = body
    folder = _image(tmp_path, server.source())
    with pytest.raises(ImageError, match="is not what it should be") as caught:
        images.prepare(images.load(folder))
    assert hashlib.sha256(body).hexdigest() in caught.value.message
    assert hashlib.sha256(KERNEL).hexdigest() in caught.value.message
    assert not list((cache.root() / "downloads").iterdir())
    assert not _left()


def test_no_network_is_one_clear_error(tmp_path: Path, server: _Server) -> None:
    """Where the server cannot be reached, the error says so, and that only the first build needs it."""
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(ImageError, match="cannot be downloaded") as caught:
        images.prepare(images.load(_image(tmp_path, server.source())))
    assert "afterwards nothing does" in caught.value.hint


def test_two_processes_build_once(tmp_path: Path, server: _Server) -> None:
    """Of two processes that want the same image at once one builds; the other says that it waits, and uses it."""
    folder = _image(tmp_path, server.source())
    with _builder(folder) as first:
        assert server.asked.acquire(timeout=30)
        with _builder(folder) as second:
            assert second.stdout is not None
            assert "waiting for another process that is building tiny" in second.stdout.readline()
            server.release.set()
            outputs = [process.communicate(timeout=30)[0].splitlines()[-1] for process in (first, second)]
    assert outputs[0].startswith("built ")
    assert outputs[0] == outputs[1]
    assert server.count == 1


def test_killed_builder_leaves_nothing_after_the_next_build(tmp_path: Path, server: _Server) -> None:
    """SIGKILL in the middle of a build blocks nobody, and the next build clears what it left."""
    folder = _image(tmp_path, server.source())
    with _builder(folder) as victim:
        assert server.asked.acquire(timeout=30)
        assert _left(), "it is in the middle"
        victim.send_signal(signal.SIGKILL)
    server.release.set()
    assert images.prepare(images.load(folder)).kernel
    assert not _left()


def test_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    """Where the cache's disk is full, the build ends in one clear error and frees what it had written."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    (folder / "bzImage").write_bytes(KERNEL + bytes(200_000))
    disk = tmp_path / "cache"
    disk.mkdir()
    # In a mount namespace of its own: nothing stays mounted, whatever happens.
    script = 'mount -t tmpfs -o size=64k none "$1" && "$2" -c "$3" "$4"; find "$1/vmtest/images" -mindepth 1'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(disk), sys.executable, BUILD, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "built" not in run.stdout and "Error" not in run.stdout:
        pytest.skip(f"no mount namespaces here: {run.stderr.strip()}")
    assert run.stdout.startswith("ImageError: there is no room to build the image tiny")
    assert "hint: free some space" in run.stdout
    assert str(disk / "vmtest/images") not in run.stdout, "nothing half-written is left"


def test_place_of_the_folder_does_not_matter(tmp_path: Path) -> None:
    """An image has one cache key wherever its folder is, with an [instead] too: checkout and wheel share entries."""
    keys = set()
    for place in ("a", "b"):
        folder = tmp_path / place / "mine"
        folder.mkdir(parents=True)
        (folder / "init").write_text("#!/bin/sh\n")
        (folder / "image.toml").write_text(
            'arch = "x86_64"\ndescription = "d"\nagent = false\nkernel = { apt = "k", suite = "s" }\n'
            '[instead]\nkernel = { apt = "k", suite = "t" }\n'
        )
        keys.add(prepared.cache_key(catalog.load(str(folder))))
    assert len(keys) == 1
