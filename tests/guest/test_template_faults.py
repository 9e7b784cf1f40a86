"""Templates, pools and snapshots on hosts that fail: damage, full disks, killed processes, no memory.

Whatever happens, a guest that is handed out is a good one, or there is one clear error.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

import vmtest
from vmtest import booting, cache, images
from vmtest.deadline import Deadline
from vmtest.errors import ColdBootWarning, SnapshotError, UsageError
from vmtest.model.spec import DEFAULT_GUEST
from vmtest.pool import Pool
from vmtest.qemu.qcow2 import create_overlay
from vmtest.snapshots import Snapshot, store
from vmtest.snapshots.snapshot import _hash

VMTEST = str(Path(sys.executable).with_name("vmtest"))
TEXT = b"BusyBox is copyrighted by many authors"
"""In the guest's memory, and printed by its busybox."""
SESSION = """
import sys, warnings
import vmtest

class Steps:
    def step(self, text):
        print("step:", text, flush=True)
    def bytes(self, done, total):
        pass

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    with vmtest.boot(memory=128, progress=Steps()) as guest:
        print("guest:", guest.run("echo works").stdout.strip(), guest.origin)
for warning in told:
    print("warned:", warning.message)
"""
TEMPLATE = "step: booting linux-x86_64 under tcg, for the template"


class _Steps(list[str]):
    """Progress that is remembered."""

    def step(self, text: str) -> None:
        self.append(text)

    def bytes(self, done: int, total: int | None) -> None:
        pass

    @property
    def boots(self) -> int:
        """How often a template was booted."""
        return sum("for the template" in text for text in self if text.startswith("booting"))


def _link(home: Path) -> None:
    """A cache of our own that has the real one's images and what is known of the host: nothing is downloaded."""
    real, own = cache.root(), home / "vmtest"
    own.mkdir(parents=True, exist_ok=True)
    for name in ("images", "downloads"):
        (own / name).symlink_to(real / name)
    if not (own / "host").exists():
        shutil.copytree(real / "host", own / "host")


@contextmanager
def _session(home: Path) -> Iterator[None]:
    """A session that knows nothing of templates yet, as a process of its own would, with that cache."""
    opened: dict[str, Snapshot] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        patch.setattr(booting, "_templates", opened)
        patch.setattr(booting, "_made", {})
        patch.setattr(booting, "_hopeless", {})
        patch.setattr(booting, "_swept", False)
        patch.setattr(booting, "_pool", Pool(0))
        try:
            yield
        finally:
            booting._pool.close()
            for snapshot in opened.values():
                snapshot.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the template of a small guest."""
    images.prepare(images.load(DEFAULT_GUEST))
    home = tmp_path_factory.mktemp("built")
    _link(home)
    with _session(home):
        _boot(steps := _Steps()).close()
    assert steps.boots == 1
    return home


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A cache of our own, without templates."""
    images.prepare(images.load(DEFAULT_GUEST))
    home = tmp_path / "cache"
    _link(home)
    return home


@pytest.fixture
def own(built: Path, empty: Path) -> Path:
    """A cache of our own with a copy of that template."""
    shutil.copytree(built / "vmtest" / "host", empty / "vmtest" / "host", dirs_exist_ok=True)
    subprocess.run(["cp", "-a", built / "vmtest" / "templates", empty / "vmtest"], check=True)
    return empty


def _template(home: Path) -> Path:
    (path,) = (home / "vmtest" / "templates").glob("[!.]*")
    return path


def _boot(steps: _Steps | None = None, **said: object) -> vmtest.Guest:
    return vmtest.boot(memory=128, progress=steps if steps is not None else _Steps(), **said)  # type: ignore[arg-type]


def _good(guest: vmtest.Guest) -> bool:
    """Whether the guest's memory is what it was when the template was made."""
    return TEXT.decode() in guest.run("busybox 2>&1").stdout


def _left(home: Path) -> list[str]:
    """What builders have left in the cache."""
    return [path.name for kind in ("templates", "snapshots") for path in (home / "vmtest" / kind).glob(".*")]


# -- damage ----------------------------------------------------------------------------------------------------------


def _flip_text(template: Path) -> None:
    """Flip a bit in each place of the memory where the text is that the guest's busybox prints."""
    with (template / "ram").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        places = []
        at = memory.find(TEXT)
        while at >= 0:
            places.append(at)
            at = memory.find(TEXT, at + 1)
    assert places
    with (template / "ram").open("r+b") as file:
        for at in places:
            os.pwrite(file.fileno(), bytes([TEXT[0] ^ 1]), at)


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        at = path.stat().st_size // 2
        os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, at)[0] ^ 16]), at)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _other_format(path: Path) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "format": 99}))


@pytest.mark.parametrize(
    ("name", "harm", "told"),
    [
        ("ram", _cut, "damaged: ram has 67108864 bytes, not 134217728"),
        ("ram", lambda path: _flip_text(path.parent), "damaged: ram has changed"),
        ("state", _flip, "damaged: state has changed"),
        ("manifest.json", _flip, "damaged: its manifest cannot be read"),
        ("manifest.json", _other_format, "was made by another version of vmtest"),
    ],
)
def test_damage_between_sessions(
    own: Path, name: str, harm: Callable[[Path], object], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A template whose file was cut, or has one wrong bit, is never restored: it is made again, with one warning."""
    template = _template(own)
    harm(template / name)
    with _session(own), _boot(steps := _Steps()) as guest:
        assert _good(guest)
        assert guest.origin
        assert steps.boots == 1
        assert [told in record.getMessage() for record in caplog.records if record.name == "vmtest"] == [True]
    with _session(own), _boot(steps := _Steps()) as guest:
        assert steps.boots == 0, "what was made again is good"
    assert _template(own) == template
    assert not _left(own)


@pytest.mark.parametrize(
    ("harm", "pool"), [(_cut, 0), (lambda path: _flip_text(path.parent), 0), (lambda path: _flip_text(path.parent), 1)]
)
def test_damage_during_a_session(own: Path, harm: Callable[[Path], object], pool: int) -> None:
    """A template that is damaged while it is in use makes no further guest, not even one that waits in the pool."""
    with _session(own):
        booting.use_pool(pool)
        _boot(steps := _Steps()).close()
        with _ready(booting._pool):
            harm(_template(own) / "ram")
        with _boot(steps) as guest:
            assert _good(guest)
        assert steps.boots == 1
        with _boot(steps) as guest:
            assert _good(guest)
        assert steps.boots == 1
        with _ready(booting._pool):
            assert all(life.parent and life.parent.untouched for life in booting._pool.ready)


@contextmanager
def _ready(pool: Pool) -> Iterator[None]:
    """With all clones ready that the pool can make."""
    with pool._changed:
        assert pool._changed.wait_for(lambda: len(pool.ready) == pool.size, 60)
    yield


def test_damage_that_a_reboot_of_the_host_brings_to_light(own: Path) -> None:
    """A bit that goes bad under an untouched file is found at the first use after each boot of the host."""
    template = _template(own)
    with _session(own):
        _boot().close()
    _flip_text(template)
    stamp = json.loads((template / "checked.json").read_text())
    stat = (template / "ram").stat()
    stamp["files"]["ram"] = [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]
    (template / "checked.json").write_text(json.dumps(stamp))
    with _session(own), _boot() as guest:
        assert not _good(guest), "this is what the other tests would see if nothing were checked"
    (template / "checked.json").write_text(json.dumps({**stamp, "boot": "the one before"}))
    with _session(own), _boot(steps := _Steps()) as guest:
        assert _good(guest)
        assert steps.boots == 1


def test_damage_with_its_time_set_back(own: Path) -> None:
    """Setting back the time of the file hides nothing."""
    with _session(own):
        _boot().close()
    ram = _template(own) / "ram"
    stat = ram.stat()
    _flip_text(_template(own))
    os.utime(ram, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with _session(own), _boot(steps := _Steps()) as guest:
        assert _good(guest)
        assert steps.boots == 1


def test_damage_with_its_time_set_back_during_a_session(own: Path) -> None:
    """Nor does it in the session that has the template open."""
    with _session(own):
        _boot(steps := _Steps()).close()
        ram = _template(own) / "ram"
        stat = ram.stat()
        _flip_text(_template(own))
        os.utime(ram, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with _boot(steps) as guest:
            assert _good(guest)
        assert steps.boots == 1


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A qcow2 disk that lies over another file."""
    (tmp_path / "below.raw").write_bytes(b"original".ljust(1 << 20))
    create_overlay(tmp_path / "disk.qcow2", "below.raw", "raw", 1 << 20)
    return tmp_path / "disk.qcow2"


def test_touched_template_is_checked_and_not_made_again(own: Path, image: Path) -> None:
    """Where only a time of its files has changed a template is hashed again, by each session that has it open."""
    with _session(own):
        _boot(steps := _Steps(), disk=image, image=DEFAULT_GUEST).close()
        touched = next(path for path in (own / "vmtest" / "templates").glob("[!.]*/disk0.qcow2"))
        others = dict(booting._templates)
        os.utime(touched)
        for _ in range(2):
            _boot(steps, disk=image, image=DEFAULT_GUEST).close()
        booting._templates.update(others)  # as another session, which opened it before
        _boot(steps, disk=image, image=DEFAULT_GUEST).close()
        assert steps.boots == 1


def test_threads_share_a_damaged_template(own: Path) -> None:
    """Several threads that come upon a damaged template make it again once, and all get clones."""
    with _session(own):
        steps = _Steps()
        _boot(steps).close()
        _flip_text(_template(own))

        def boot(number: int) -> str:
            with _boot(steps) as guest:
                assert _good(guest)
                return guest.origin

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(boot, range(4)))
        assert steps.boots == 1
        assert not booting._hopeless


def test_disk_changed_under_a_snapshot(own: Path, image: Path) -> None:
    """A named snapshot whose disk, or what that lies over, has been changed since is refused: its memory fits no more.
    So it is where the disk has gone.
    """
    with _session(own):
        with _boot(disk=image, image=DEFAULT_GUEST) as guest:
            guest.snapshot("mine").close()
            other = guest.snapshot()
            vmtest.boot(snapshot="mine").close()
            (image.parent / "below.raw").write_bytes(b"another!".ljust(1 << 20))
            with pytest.raises(SnapshotError, match=r"the disk \S+disk.qcow2 has been changed since it was saved"):
                vmtest.boot(snapshot="mine")
            with pytest.raises(SnapshotError, match="has been changed since it was saved"):
                guest.restore(other)
            assert _good(guest)
        image.unlink()
        with pytest.raises(UsageError, match=r"the disk .* cannot be used: No such file"):
            vmtest.boot(snapshot="mine")


def test_template_replaced_under_its_clone(own: Path, image: Path) -> None:
    """A clone whose template's disk was replaced meanwhile cannot be saved: the new one's blocks are not its own."""
    with _session(own), _boot(disk=image, image=DEFAULT_GUEST) as guest:
        (disk,) = (own / "vmtest" / "templates").glob("[!.]*/disk0.qcow2")
        shutil.copy(disk, disk.with_name("copy"))
        disk.with_name("copy").rename(disk)
        with pytest.raises(SnapshotError, match="was changed or removed while it ran"):
            guest.snapshot()
        assert _good(guest)


CREATE = """
import sys
import vmtest
with vmtest.boot(memory=128) as guest:
    print("up", flush=True)
    sys.stdin.readline()
    try:
        guest.snapshot("one")
        print("kept")
    except vmtest.UsageError as error:
        print(error.message)
"""


def test_two_sessions_take_one_name(own: Path) -> None:
    """Of two sessions that save under the same name at the same time one succeeds, and the other is told."""
    sessions = [_start(own, CREATE) for _ in range(2)]
    for session in sessions:
        assert session.stdout is not None
        assert session.stdout.readline() == "up\n"
    said = sorted(
        out.strip() for out, _ in ThreadPoolExecutor(2).map(lambda session: session.communicate("go\n", 120), sessions)
    )
    assert said == ["kept", "there is a snapshot named 'one' already"]


def test_named_snapshot_that_is_damaged(own: Path) -> None:
    """A snapshot that people have named cannot be made again: it is one clear error, each time."""
    with _session(own):
        with _boot() as guest:
            guest.run("echo kept > /tmp/file").check()
            guest.snapshot("mine").close()
        with vmtest.boot(snapshot="mine") as guest:
            assert guest.run("cat /tmp/file").stdout == "kept\n"
        _flip_text(store.named_path("mine"))
        for _ in range(2):
            with pytest.raises(SnapshotError, match="mine is damaged: ram has changed since it was saved"):
                vmtest.boot(snapshot="mine")


# -- another QEMU ----------------------------------------------------------------------------------------------------


def test_upgraded_qemu_has_templates_of_its_own(empty: Path, tmp_path: Path) -> None:
    """When the QEMU binary is replaced a template is made anew; the former one fits again should that come back."""
    found = shutil.which("qemu-system-x86_64")
    assert found
    binary = tmp_path / "usr" / "bin" / "qemu-system-x86_64"
    binary.parent.mkdir(parents=True)
    shutil.copy2(Path(found).resolve(), binary)
    for name in ("share", "lib"):  # QEMU looks for its firmware and its modules from where it is
        (tmp_path / "usr" / name).symlink_to(f"/usr/{name}")
    before = binary.stat()
    boots = []
    for when in (before.st_mtime_ns, before.st_mtime_ns + 10**9, before.st_mtime_ns):
        os.utime(binary, ns=(when, when))
        with _session(empty), _boot(steps := _Steps(), qemu=str(binary), accel="tcg") as guest:
            assert _good(guest)
            assert Path(f"/proc/{guest.pid}/exe").resolve() == binary
        boots.append(steps.boots)
    assert boots == [1, 1, 0]


def test_snapshot_of_a_newer_qemu_is_refused(own: Path) -> None:
    """An older QEMU does not try to restore what a newer one has saved: both versions are told."""
    with _session(own):
        with _boot() as guest:
            guest.snapshot("mine").close()
            ours = guest.qemu_version
        manifest = store.named_path("mine") / "manifest.json"
        data = json.loads(manifest.read_text())
        del data["sha256"]
        data["qemu_version"] = [99, 1, 0]
        manifest.write_text(json.dumps({**data, "sha256": _hash(data)}))
        with pytest.raises(
            UsageError, match=rf"mine was saved by QEMU 99\.1\.0, and .* is {ours}: an older QEMU cannot"
        ):
            vmtest.boot(snapshot="mine")


# -- full disks ------------------------------------------------------------------------------------------------------

FILLED = """
from pathlib import Path
from vmtest import cloning, cache
rest = cloning._come_to_rest
def fill(life):
    rest(life)
    with (cache.root() / "templates" / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            print("full:", error)
cloning._come_to_rest = fill
"""


@pytest.mark.parametrize(
    ("size", "before", "told"),
    [
        ("64m", "", r"a snapshot takes some 128 MiB, and .*/templates has 64 MiB left"),
        ("200m", FILLED, r"(cannot be saved|could not be saved): .*(No space left|Unable to write|Input/output)"),
    ],
)
def test_full_disk(empty: Path, size: str, before: str, told: str) -> None:
    """Where a template finds no room, or space ends while it is saved, the guest is booted and a warning says why."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    templates = empty / "vmtest" / "templates"
    templates.mkdir()
    # In a mount namespace of its own: nothing stays mounted, whatever happens.
    script = 'mount -t tmpfs -o size=$2 none "$1" && "$3" -c "$4" && find "$1" -mindepth 1'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(templates), size, sys.executable, before + SESSION],
        env={**os.environ, "XDG_CACHE_HOME": str(empty)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "step:" not in done.stdout:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    lines = done.stdout.splitlines()
    assert "guest: works" in [line.strip() for line in lines], done.stdout + done.stderr
    (warned,) = [line for line in lines if line.startswith("warned:")]
    with pytest.warns(ColdBootWarning, match=told):
        warnings.warn(ColdBootWarning(warned), stacklevel=1)
    assert (TEMPLATE in done.stdout) == bool(before)
    assert [line for line in lines if line.startswith(str(templates))] == [f"{templates}/filler"] * bool(before)


# -- several processes -----------------------------------------------------------------------------------------------


def _start(home: Path, code: str = SESSION) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(home)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, env=environment)


def test_two_sessions_make_a_template_once(empty: Path) -> None:
    """Of two sessions that need the same template at once one boots; the other says that it waits, and clones it."""
    with _start(empty) as first:
        assert first.stdout is not None
        assert first.stdout.readline().startswith(TEMPLATE)
        with _start(empty) as second:
            assert second.stdout is not None
            assert second.stdout.readline().startswith("step: waiting for another process that boots linux-x86_64")
            outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    for output in outputs:
        assert "guest: works a clone of linux-x86_64" in output
        assert "step: booting" not in output
    assert not _left(empty)


def test_killed_while_a_template_is_made(empty: Path) -> None:
    """SIGKILL at 10 random moments of a template's making: no QEMU is left, what is there is whole, and the next
    session makes what is missing and removes what was left.
    """
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown when the test fails
    moments = random.Random(seed)
    killed, took = 0, 5.0
    while killed < 10:
        with suppress(FileNotFoundError):
            shutil.rmtree(empty / "vmtest" / "templates")
        with _start(empty) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline().startswith(TEMPLATE)
            began = time.monotonic()
            try:
                # Half of them about the end, when it is saved.
                victim.wait(moments.uniform(0.7 * took if killed % 2 else 0, took))
            except subprocess.TimeoutExpired:
                children = psutil.Process(victim.pid).children(recursive=True)
                victim.kill()
                victim.wait()
                _wait_ended([child.pid for child in children])
                killed += 1
            else:  # it is done: faster than was thought
                assert victim.returncode == 0
                took = 0.95 * (time.monotonic() - began)
        with _session(empty):
            for path in store.all_snapshots():
                Snapshot(path).close()
    _half_made(empty)
    with _start(empty) as last:
        assert "guest: works a clone of" in last.communicate(timeout=60)[0]
    assert not _left(empty)
    assert _template(empty)


def _half_made(home: Path) -> None:
    """Leave behind what a builder leaves that is killed in the middle."""
    with suppress(FileNotFoundError):
        shutil.rmtree(home / "vmtest" / "templates")
    with _start(home) as victim:
        while not _left(home):
            assert victim.poll() is None
        victim.kill()


def _wait_ended(pids: list[int]) -> None:
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        readable, _, _ = select.select([descriptor], [], [], 30)
        os.close(descriptor)
        assert readable, f"process {pid} has not ended"


def test_cache_removed_under_a_session(own: Path) -> None:
    """When the cache is deleted, guests that run go on, and new ones are clones of the memory that is held open."""
    with _session(own), _boot(steps := _Steps()) as guest:
        shutil.rmtree(own)
        _link_back(own)
        assert _good(guest)
        with _boot(steps) as another:
            assert _good(another)
            assert another.origin
        assert guest.run("cat /bin/busybox | wc -c").stdout != "0\n"
    assert steps.boots == 0


def test_cache_removed_under_a_session_with_disks(empty: Path, tmp_path: Path) -> None:
    """Where a template has a disk it is made again; a guest that runs goes on with its disk."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"data" * 262144)
    with _session(empty), _boot(steps := _Steps(), image=DEFAULT_GUEST, disk=disk) as guest:
        read = "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=4 skip=9999 count=1 2>/dev/null"
        guest.run("echo mine | dd of=/dev/vda conv=fsync").check()
        shutil.rmtree(empty)
        _link_back(empty)
        with _boot(steps, image=DEFAULT_GUEST, disk=disk) as another:
            assert another.run(read).stdout == "data"
            assert another.run("head -c 4 /dev/vda").stdout == "data"
        assert guest.run("head -c 4 /dev/vda").stdout == "mine"
        assert guest.run(read).stdout == "data"
    assert steps.boots == 2


def _link_back(home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(REAL))
        _link(home)


REAL = cache.root().parent


# -- memory, descriptors, processes ----------------------------------------------------------------------------------

GROUPS = Path("/sys/fs/cgroup")
ENTER = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own, of either version."""
    v1 = (GROUPS / "memory" / "memory.limit_in_bytes").exists()
    path = (GROUPS / "memory" if v1 else GROUPS) / f"vmtest-guests-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    if not (path / ("memory.limit_in_bytes" if v1 else "memory.max")).exists():
        path.rmdir()
        pytest.skip("the memory controller is not given to control groups here")
    yield path
    path.rmdir()


def _limit(group: Path, mebibytes: int) -> None:
    v1 = group / "memory.limit_in_bytes"
    (v1 if v1.exists() else group / "memory.max").write_text(str(mebibytes << 20))


def _oom_kills(group: Path) -> int:
    v1 = group / "memory.oom_control"
    lines = (v1 if v1.exists() else group / "memory.events").read_text().splitlines()
    return int(dict(line.split() for line in lines)["oom_kill"])


CROWD = """
import pytest
from vmtest import booting
from vmtest.deadline import Deadline

def test_first(boot):
    guest, deadline = boot(), Deadline(60)
    while not booting._pool.shortage:
        assert guest.run("echo on").stdout == "on\\n"
        assert not deadline.expired
    for _ in range(3):
        assert boot().run("echo on").stdout == "on\\n"

@pytest.mark.skip
@pytest.mark.parametrize("number", range(64))
def test_more(guest, number):
    pass
"""


def test_pool_of_64_with_memory_for_10(own: Path, tmp_path: Path, group: Path) -> None:
    """A pool that is larger than memory allows stops growing and says so; its guests work, and none is killed."""
    (tmp_path / "test_crowd.py").write_text(CROWD)
    _limit(group, 256 + 60 + 11 * 48)
    pytest_ = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--vm-memory=128", "--vm-pool=64"]
    done = subprocess.run(
        ["sh", "-c", ENTER, "sh", str(group), *pytest_, "test_crowd.py"],
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(own)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (note,) = [line for line in done.stdout.splitlines() if line.startswith("vmtest: the pool kept")]
    kept = int(note.split()[4])
    assert 3 < kept < 30, note
    assert "guests ready and not 64: " in note
    assert "MiB of memory were left, of which it leaves 256" in note
    assert _oom_kills(group) == 0


def _python(own: Path, code: str, *within: str) -> subprocess.CompletedProcess[str]:
    """A program of its own with that cache, every warning an error; ``within`` is what starts it."""
    return subprocess.run(
        [*within, sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "XDG_CACHE_HOME": str(own)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


NO_MEMORY = """
import sys
import vmtest
from vmtest.host import memory
kept = []
while memory.available() >= memory.CLONE:
    kept.append(b"x" * (1 << 20))
for said in ({}, {"cold": True}, {"append": "another.template"}):
    try:
        vmtest.boot(memory=128, **said)
    except vmtest.HostError as error:
        print(type(error).__name__, error.message)
"""


def test_no_memory_for_a_guest(own: Path, group: Path) -> None:
    """Without memory for a clone, a boot or a template, each is a HostError that says how much is left."""
    _limit(group, 160)
    done = _python(own, NO_MEMORY, "sh", "-c", ENTER, "sh", str(group))
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    for line, least in zip(lines, (48, 128, 128), strict=True):
        assert line.startswith("HostError there is no memory for another guest: ")
        assert line.endswith(f"MiB are available, and it takes at least {least} MiB")
    assert _oom_kills(group) == 0
    assert len(list((own / "vmtest" / "templates").iterdir())) == 1


FEW_DESCRIPTORS = """
import os, resource
import vmtest
from vmtest import booting
with vmtest.boot(memory=128):
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 160, 4096))
    pool = booting.use_pool(64)
    with vmtest.boot(memory=128) as first:
        while not pool.shortage:
            first.run("true").check()
        files = [open("/dev/null") for _ in range(40)]
        with vmtest.boot(memory=128) as second:
            print(first.run("echo works").stdout + second.run("echo works").stdout + pool.shortage)
    pool.close()
"""


def test_pool_with_few_descriptors(own: Path) -> None:
    """A pool leaves the program the file descriptors that it works with, and says that it is small for them."""
    done = _python(own, FEW_DESCRIPTORS)
    *works, note = done.stdout.splitlines() or [""]
    assert works == ["works", "works"], done.stdout + done.stderr
    assert 2 < int(note.split()[3]) < 20, note
    assert "guests ready and not 64: " in note
    assert "more files could be opened, of which it leaves 64" in note


NO_DESCRIPTORS = """
import os, resource
import psutil
import vmtest
me = psutil.Process()
with vmtest.boot(memory=128):
    before = me.num_fds(), len(me.children())
    for spare in range(24):  # so that each of a clone's descriptors is once the first that cannot be had
        resource.setrlimit(resource.RLIMIT_NOFILE, (me.num_fds() + spare, 4096))
        try:
            with vmtest.boot(memory=128) as guest:
                guest.run("true").check()
            print("works")
        except vmtest.HostError as error:
            print("refused", "open files" in error.message)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
        assert (me.num_fds(), len(me.children())) == before, spare
"""


def test_boot_without_descriptors(own: Path) -> None:
    """Whichever of its file descriptors a guest cannot have, the boot is a HostError that says so and leaves nothing
    behind.
    """
    done = _python(own, NO_DESCRIPTORS)
    lines = done.stdout.splitlines()
    refused = lines.index("works") if "works" in lines else len(lines)
    assert 5 < refused < 20, done.stdout + done.stderr
    assert lines == ["refused True"] * refused + ["works"] * (24 - refused), done.stdout + done.stderr


@pytest.mark.parametrize("noticed", [True, False])
def test_killed_while_waiting_in_the_pool(own: Path, noticed: bool) -> None:
    """A clone whose QEMU is killed while it waits, even just now, is not handed out: the test gets one that works."""
    with _session(own):
        pool = booting.use_pool(2)
        _boot(steps := _Steps()).close()
        with _ready(pool):
            victims = [life.running for life in pool.ready]
        for victim in victims:
            os.kill(victim.process.pid, signal.SIGKILL)
            if noticed:
                victim.process.wait(Deadline(30))
                assert victim.verdict.wait(30)
        for _ in range(3):
            with _boot(steps) as guest:
                assert _good(guest)
                assert guest.pid not in [victim.process.pid for victim in victims]
        assert steps.boots == 0


# -- limits ----------------------------------------------------------------------------------------------------------


def _prune(home: Path, *args: str, **more: str) -> list[str]:
    """The keys of what `vmtest snapshot prune` says it has removed."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(home), **more}
    done = subprocess.run(
        [VMTEST, "snapshot", "prune", *args], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return [line.split(":")[0] for line in done.stdout.splitlines() if line.endswith("MB freed")]


def test_prune(own: Path) -> None:
    """`vmtest snapshot prune` removes what was least recently used, down to --max-size or VMTEST_SNAPSHOT_LIMIT; what a
    session has open stays, and its guests work.
    """
    template = _template(own)
    copies = []
    for number in range(3):
        copies.append(template.with_name(f"{number:016x}"))
        subprocess.run(["cp", "-a", template, copies[-1]], check=True)
        (copies[-1] / "used").touch()
        os.utime(copies[-1] / "used", (1000 - number, 1000 - number))
    each = sum(file.stat().st_blocks * 512 for file in template.iterdir()) >> 20
    with _session(own), _boot(steps := _Steps()) as guest:
        os.utime(template / "used", (1, 1))  # used longest ago, but in use
        assert _prune(own) == []
        assert _prune(own, "--max-size", f"{4 * each + 9}M") == []
        assert _prune(own, "--max-size", f"{3 * each + 9}M") == [copies[2].name]
        assert _prune(own, VMTEST_SNAPSHOT_LIMIT=f"{2 * each + 9}M") == [copies[1].name]
        assert _prune(own, "--max-size", "0") == [copies[0].name]
        assert _good(guest)
        with _boot(steps) as another:
            assert _good(another)
    assert steps.boots == 0
    assert _prune(own, "--max-size", "0") == [template.name]


def test_new_template_makes_room_within_the_limit(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit for two, a third template costs the least recently used one its place."""
    template = _template(own)
    older, newer = template.with_name("0" * 16), template.with_name("1" * 16)
    subprocess.run(["cp", "-a", template, older], check=True)
    template.rename(newer)
    for number, path in enumerate((older, newer)):
        os.utime(path / "used", (1000 + number, 1000 + number))
    monkeypatch.setenv("VMTEST_SNAPSHOT_LIMIT", str(store.size(newer) * 5 // 2))
    with _session(own), _boot(steps := _Steps()) as guest:
        assert _good(guest)
        assert steps.boots == 1
        assert (older.exists(), newer.exists(), template.exists()) == (False, True, True)


# -- what cannot be cloned -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"qemu_args": ["-virtfs", "local,path={tmp},mount_tag=t,security_model=none"]}, "a 9p share cannot be saved"),
        ({"qemu_args": ["-device", "nvme,serial=1"]}, "cannot save the state of one of its devices"),
        ({"nic": "user,hostfwd=tcp:127.0.0.1:0-:22"}, "its network forwards a port"),
        ({"qemu_args": ["-rtc", "base=utc"]}, "nothing is known of the QEMU option -rtc"),
        ({"channel": "console"}, "its channel is console"),
    ],
)
def test_what_cannot_be_cloned_is_booted(empty: Path, tmp_path: Path, said: dict[str, object], why: str) -> None:
    """What is known to forbid clones is told before anything is booted for a template, and the guest works."""
    if "qemu_args" in said:
        said = {"qemu_args": [word.format(tmp=tmp_path) for word in said["qemu_args"]]}  # type: ignore[attr-defined]
    with _session(empty):
        with pytest.warns(ColdBootWarning, match=why) as told:
            guest = _boot(steps := _Steps(), **said)
        with guest:
            assert _good(guest)
            assert not guest.origin
        assert len(told) == 1
        assert steps.boots == 0
        assert [text for text in steps if text.startswith("booting")] == ["booting linux-x86_64 under tcg"]
    assert not (empty / "vmtest" / "templates").exists()


def test_what_turns_out_not_to_be_savable(empty: Path) -> None:
    """What only QEMU knows to forbid clones is told with QEMU's words, once it was tried; then it is remembered."""
    said = {"qemu_args": ["-device", "amd-iommu"]}
    with _session(empty):
        steps = _Steps()
        for _ in range(2):
            with pytest.warns(ColdBootWarning, match="amd-iommu") as told:
                guest = _boot(steps, **said)
            with guest:
                assert _good(guest)
                assert not guest.origin
            assert len(told) == 1
            assert steps.boots <= 1
    assert not _left(empty)
    assert not list((empty / "vmtest" / "templates").glob("*"))
