"""Snapshots on disk: found by key, checked in every bit, listed, and limited. No QEMU runs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from vmtest import cache
from vmtest.errors import SnapshotError, UsageError
from vmtest.host import Qemu
from vmtest.model.machine import Channel, Drive, Machine, Nic
from vmtest.model.manner import Manner
from vmtest.snapshots import Disk, Snapshot, facts, key_of, store
from vmtest.snapshots.digest import PIECE, digest
from vmtest.snapshots.key import FORMAT
from vmtest.snapshots.snapshot import machine_from

MIB = 1 << 20
MACHINE = Machine(
    accel="tcg",
    machine="q35,smm=off",
    cpu="qemu64",
    memory=3,
    smp=2,
    kernel=Path("/boot/a kernel"),
    initrd=Path("/boot/initrd"),
    append="quiet x=ä",
    firmware=Path("/firmware"),
    drives=(Drive(path=Path("/disk"), format="qcow2"), Drive(path=Path("/other"), readonly=True)),
    nics=(Nic(backend="user"), Nic(model="e1000", mac="52:54:00:00:00:01")),
    channel=Channel.AGENT,
    qemu="/usr/bin/qemu",
    extra=("-device", "edu"),
)
QEMU = Qemu(
    path=Path("/usr/bin/qemu-system-x86_64"),
    version=(7, 2, 0),
    version_text="QEMU emulator version 7.2.0",
    arch="x86_64",
    accels=("tcg", "kvm"),
    sandbox=True,
    fingerprint="/usr/bin/qemu-system-x86_64 1 2",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VMTEST_SNAPSHOT_LIMIT", raising=False)


def _snapshot(path: Path, *, name: str = "", machine: Machine = MACHINE, disks: int = 1) -> Path:
    """A snapshot of a guest of 3 MiB that never was."""
    path.mkdir(parents=True)
    with (path / "ram").open("wb") as file:
        file.truncate(3 * MIB)
        file.seek(MIB + 5)
        file.write(b"memory" * 1000)
    (path / "state").write_bytes(b"state" * 99)
    (path / "console.log").write_bytes(b"booted\r\n")
    files = tuple(f"disk0.{level}.qcow2" for level in range(disks))
    for number, file_name in enumerate(files):
        (path / file_name).write_bytes(b"disk" * 100 + bytes([number]))
    Snapshot.write(
        path,
        name=name,
        origin="a test",
        machine=machine,
        manner=Manner(name="tiny", timeout=5.5),
        known={"format": 1, "machine_type": "pc-q35-7.2"},
        key="0123",
        disks=(Disk(number=0, files=files),) if files else (),
        ram_block="pc.ram",
        qemu_version=(7, 2, 1),
    )
    return path


# -- digest ----------------------------------------------------------------------------------------------------------


def test_digest_does_not_depend_on_holes(tmp_path: Path) -> None:
    """A file has the same digest whether its zeros are holes or written."""
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    with sparse.open("wb") as file:
        file.truncate(5 * MIB + 77)
        file.seek(2 * MIB + 3)
        file.write(b"x")
        file.seek(5 * MIB + 70)
        file.write(b"end")
    full.write_bytes(sparse.read_bytes())
    assert full.stat().st_blocks > sparse.stat().st_blocks, "this file system knows no holes"
    assert digest(sparse) == digest(full)


def test_digest_sees_every_bit_place_and_size(tmp_path: Path) -> None:
    """One bit, the same bytes elsewhere, or more zeros at the end make another digest."""
    seen = set()
    for number, (at, value, size) in enumerate(
        [
            *((at, 1, 3 * MIB) for at in (0, 1, PIECE - 1, PIECE, MIB, 3 * MIB - 1)),
            *((0, 2, 3 * MIB), (0, 1, 4 * MIB)),
            *((0, 0, size) for size in (0, 1, MIB)),
        ]
    ):
        path = tmp_path / str(number)
        content = bytearray(size)
        if size:
            content[at] = value
        path.write_bytes(content)
        seen.add(digest(path))
    assert len(seen) == 11


# -- key -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bootable(tmp_path: Path) -> Machine:
    """A machine whose files exist."""
    for name in ("kernel", "initrd", "disk"):
        (tmp_path / name).write_bytes(name.encode())
    return Machine(
        accel="tcg",
        kernel=tmp_path / "kernel",
        initrd=tmp_path / "initrd",
        drives=(Drive(path=tmp_path / "disk"),),
    )


def test_key_changes_with_all_that_a_state_depends_on(bootable: Machine) -> None:
    """Each property of the machine, the contents of its files and the QEMU binary make another key."""
    keys = [key_of(facts(bootable, QEMU))]
    assert key_of(facts(bootable, QEMU)) == keys[0]
    for change in (
        {"memory": 300},
        {"smp": 2},
        {"append": "x"},
        {"cpu": "qemu64"},
        {"machine": "pc"},
        {"accel": "kvm"},
        {"extra": ("-device", "edu")},
        {"nics": (Nic(),)},
        {"drives": ()},
        {"channel": Channel.QGA},
        {"initrd": None},
    ):
        keys.append(key_of(facts(replace(bootable, **change), QEMU)))  # type: ignore[arg-type]
    keys.append(key_of(facts(bootable, replace(QEMU, fingerprint="/usr/bin/qemu-system-x86_64 1 3"))))
    assert bootable.kernel is not None
    for path in (bootable.kernel, bootable.drives[0].path):
        path.write_bytes(path.read_bytes() + b"!")
        keys.append(key_of(facts(bootable, QEMU)))
    assert len(set(keys)) == len(keys)


def test_key_does_not_depend_on_the_place_of_the_kernel(bootable: Machine, tmp_path: Path) -> None:
    """The same kernel under another path has the same template; the same content twice is one."""
    assert bootable.kernel is not None
    moved = tmp_path / "elsewhere"
    moved.write_bytes(bootable.kernel.read_bytes())
    assert key_of(facts(replace(bootable, kernel=moved), QEMU)) == key_of(facts(bootable, QEMU))


def test_key_of_files_that_are_not_there(bootable: Machine) -> None:
    """A kernel or a disk that is gone is the user's mistake, told with its path."""
    with pytest.raises(UsageError, match=r"/nowhere cannot be read: No such file"):
        facts(replace(bootable, kernel=Path("/nowhere")), QEMU)
    with pytest.raises(UsageError, match=r"the disk /nowhere cannot be used: No such file"):
        facts(replace(bootable, drives=(Drive(path=Path("/nowhere")),)), QEMU)


# -- manifest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [MACHINE, Machine(), Machine(arch="riscv64", channel=Channel.CONSOLE)])
def test_machine_comes_back_from_json(machine: Machine) -> None:
    """A Machine is the same after it went through a manifest."""
    assert machine_from(json.loads(json.dumps(asdict(machine), default=str))) == machine


def test_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    """All that was said when a snapshot was written is there when it is opened, and when it is only peeked at."""
    path = _snapshot(tmp_path / "s", name="mine", disks=2)
    opened = Snapshot(path)
    for found in (opened, Snapshot.peek(path)):
        assert (found.name, found.origin, found.label) == ("mine", "a test", "mine")
        assert (found.key, found.ram_block, found.qemu_version) == ("0123", "pc.ram", (7, 2, 1))
        assert found.machine == MACHINE
        assert found.manner == Manner(name="tiny", timeout=5.5)
        assert found.facts["machine_type"] == "pc-q35-7.2"
        assert found.disks == (Disk(number=0, files=("disk0.0.qcow2", "disk0.1.qcow2")),)
    assert opened.state == b"state" * 99
    assert opened.transcript == b"booted\r\n"
    assert opened.drives() == (Drive(path=path / "disk0.1.qcow2", format="qcow2"), MACHINE.drives[1])
    assert os.pread(opened.ram, 6, MIB + 5) == b"memory"
    opened.close()
    opened.close()


def test_every_bit_of_the_manifest_is_checked(tmp_path: Path) -> None:
    """Whichever bit of a manifest is flipped, what is read is refused, or the same as before (in white space)."""
    path = _snapshot(tmp_path / "s")
    manifest = path / "manifest.json"
    good = manifest.read_bytes()
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown when the test fails
    for at in random.Random(seed).sample(range(len(good) * 8), 1500):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        manifest.write_bytes(bad)
        try:
            found = Snapshot.peek(path)
        except SnapshotError:
            continue
        assert (found.machine, found.key, found.qemu_version) == (MACHINE, "0123", (7, 2, 1)), (at, bad)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "5", '"x"', "null", json.dumps({"format": FORMAT}), "\0" * 100, "\xff"]
)
def test_garbled_manifest(tmp_path: Path, text: str) -> None:
    """Whatever a manifest holds that is none, it is one SnapshotError with the path."""
    path = _snapshot(tmp_path / "s")
    (path / "manifest.json").write_text(text, encoding="latin-1")
    for look in (Snapshot, Snapshot.peek):
        with pytest.raises(SnapshotError, match=f"the snapshot {path} is damaged: its manifest cannot be read"):
            look(path)


def test_manifest_of_another_format(tmp_path: Path) -> None:
    """A snapshot of a later or earlier vmtest is told as such, not as damaged."""
    path = _snapshot(tmp_path / "s")
    data = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**data, "format": 77}))
    with pytest.raises(SnapshotError, match="made by another version of vmtest, and this one cannot use it"):
        Snapshot(path)


def test_nothing_there_is_not_damage(tmp_path: Path) -> None:
    """A snapshot that is not there is FileNotFoundError; one of whose files one is missing is damaged."""
    with pytest.raises(FileNotFoundError):
        Snapshot(tmp_path / "nowhere")
    for name in ("manifest.json", "ram", "state", "console.log", "disk0.0.qcow2"):
        path = _snapshot(tmp_path / name)
        (path / name).unlink()
        with pytest.raises(SnapshotError, match=rf"is damaged: No such file or directory: .*/{name}"):
            Snapshot(path)


# -- checks ----------------------------------------------------------------------------------------------------------


def _flip(path: Path, at: int, *, quietly: bool = False) -> None:
    stat = path.stat()
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 4]), at)
    if quietly:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("quietly", [False, True])
@pytest.mark.parametrize(
    ("name", "at"), [("ram", MIB + 5), ("ram", 0), ("state", 7), ("console.log", 1), ("disk0.0.qcow2", 400)]
)
def test_one_flipped_bit_is_found(tmp_path: Path, name: str, at: int, quietly: bool) -> None:
    """A flipped bit in memory, state or disk is found at the next opening, even with mtime set back."""
    path = _snapshot(tmp_path / "s")
    Snapshot(path).close()
    _flip(path / name, at, quietly=quietly)
    with pytest.raises(SnapshotError, match="has changed since it was saved"):
        Snapshot(path)


@pytest.mark.parametrize("name", ["ram", "state", "console.log", "disk0.0.qcow2"])
def test_cut_file_is_found(tmp_path: Path, name: str) -> None:
    """A file that was cut is found."""
    path = _snapshot(tmp_path / "s")
    os.truncate(path / name, (path / name).stat().st_size - 1)
    with pytest.raises(SnapshotError, match="is damaged"):
        Snapshot(path)


def test_after_a_reboot_all_is_hashed(tmp_path: Path) -> None:
    """A stamp of another boot of the host is worth nothing, even if it names the file as it now is."""
    path = _snapshot(tmp_path / "s")
    Snapshot(path).close()
    _flip(path / "ram", MIB + 6)
    stamp = json.loads((path / "checked.json").read_text())
    stat = (path / "ram").stat()
    # As after a boot: the disk went bad under an untouched file.
    stamp["files"]["ram"] = [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]
    (path / "checked.json").write_text(json.dumps(stamp))
    Snapshot(path).close()  # which within one boot is what is trusted
    (path / "checked.json").write_text(json.dumps({**stamp, "boot": "another"}))
    with pytest.raises(SnapshotError, match="ram has changed since it was saved"):
        Snapshot(path)


@pytest.mark.parametrize("stamp", ["", "{", "[]", "null", '{"boot": 5}', '{"files": {}}'])
def test_garbled_stamp_only_costs_time(tmp_path: Path, stamp: str) -> None:
    """A stamp that cannot be read makes all be hashed again, and is written anew."""
    path = _snapshot(tmp_path / "s")
    (path / "checked.json").write_text(stamp)
    Snapshot(path).close()
    assert set(json.loads((path / "checked.json").read_text())["files"]) == {"ram", "disk0.0.qcow2"}


def test_untouched_tells_a_change_while_it_is_open(tmp_path: Path) -> None:
    """An open snapshot knows when its memory or a disk is written, and does not mind that its directory is removed."""
    for name in ("ram", "disk0.0.qcow2"):
        opened = Snapshot(_snapshot(tmp_path / name))
        assert opened.untouched
        _flip(opened.path / name, 3)
        assert not opened.untouched
        opened.close()
    diskless = Snapshot(_snapshot(tmp_path / "s", disks=0))
    store.remove(diskless.path)
    assert not diskless.path.exists()
    assert diskless.untouched
    diskless.close()


def test_snapshot_that_cannot_be_written_can_be_used(tmp_path: Path) -> None:
    """In a cache on a read-only file system a snapshot is opened all the same; its stamp stays as it was."""
    if os.geteuid() != 0:
        pytest.skip("mounting read-only needs root")
    path = _snapshot(tmp_path / "s")
    (path / "checked.json").unlink()
    code = "import sys; from pathlib import Path; from vmtest.snapshots import Snapshot; Snapshot(Path(sys.argv[1]))"
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(path), sys.executable, code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (path / "checked.json").exists()


# -- the store -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("7", 7), ("3K", 3072), ("500M", 500 << 20), ("8G", 8 << 30), ("1t", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    """A size is a whole number, with K, M, G or T in powers of 1024, of which B and iB change nothing."""
    suffixes = ("", "B", "iB") if not text[-1].isdigit() else ("",)
    assert {store.size_of(text + suffix, where="x") for suffix in suffixes} == {size}


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "1P", "1 G", "many", "0x10"])
def test_what_is_no_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no size is a UsageError that names where it was said."""
    with pytest.raises(UsageError, match=r"--max-size: .* is not a size"):
        store.size_of(text, where="--max-size")
    monkeypatch.setenv("VMTEST_SNAPSHOT_LIMIT", text or "-")
    with pytest.raises(UsageError, match="VMTEST_SNAPSHOT_LIMIT"):
        store.limit()


def test_limit_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """VMTEST_SNAPSHOT_LIMIT is the limit, by default 4 GiB."""
    assert store.limit() == 4 << 30
    monkeypatch.setenv("VMTEST_SNAPSHOT_LIMIT", "")
    assert store.limit() == 4 << 30
    monkeypatch.setenv("VMTEST_SNAPSHOT_LIMIT", "300M")
    assert store.limit() == 300 << 20


@pytest.mark.parametrize("name", ["a", "booted-6.12", "A_b.c", "9"])
def test_names(name: str) -> None:
    """Letters, digits, dots, dashes and underscores are a name, which is a directory's below snapshots/."""
    assert store.named_path(name) == cache.root() / "snapshots" / name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "-x", "a b", "a\n", "a\0b", "é/", "x" * 101])
def test_what_is_no_name(name: str) -> None:
    """Nothing that could leave the directory, hide in it or be an option is a name."""
    with pytest.raises(UsageError, match="cannot be the name of a snapshot"):
        store.named_path(name)


def test_unknown_name_tells_the_known_ones() -> None:
    """A name that is not there is a UsageError with those that are."""
    with pytest.raises(UsageError) as caught:
        store.named("nosuch")
    assert "there are none yet" in caught.value.hint
    _snapshot(store.named_path("mine"), name="mine")
    with pytest.raises(UsageError) as caught:
        store.named("nosuch")
    assert "snapshots: mine" in caught.value.hint
    store.named("mine").close()


@pytest.fixture
def templates() -> list[Path]:
    """Four templates, the first of which was used longest ago, though it was made last."""
    paths = []
    for number in (3, 2, 1, 0):
        paths.insert(0, _snapshot(store.template_path(f"{number:016x}")))
        (paths[0] / "used").touch()
        os.utime(paths[0] / "used", (1000 + number, 1000 + number))
    return paths


def test_prune_removes_the_least_recently_used(templates: list[Path]) -> None:
    """Pruning goes by the last use, and removes no more than it must."""
    each = store.size(templates[0])
    assert store.prune(4 * each) == []
    assert store.prune(3 * each) == [(templates[0].name, each)]
    assert store.prune(each + 1) == [(path.name, each) for path in templates[1:3]]
    assert [path.exists() for path in templates] == [False, False, False, True]
    assert store.prune(0) == [(templates[3].name, each)]
    assert store.all_snapshots() == []


def test_use_is_opening(templates: list[Path]) -> None:
    """A template that is opened is the most recently used, and the last to go."""
    Snapshot(templates[0]).close()
    store.prune(store.size(templates[0]))
    assert [path.exists() for path in templates] == [True, False, False, False]


def test_prune_leaves_what_is_in_use(templates: list[Path]) -> None:
    """A template that anybody has open stays, in this process or another; it goes once it is closed."""
    mine = Snapshot(templates[0])
    code = "import sys; from pathlib import Path; from vmtest.snapshots import Snapshot\n"
    code += "kept = Snapshot(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(templates[1])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline()
        assert [name for name, _ in store.prune(0)] == [path.name for path in templates[2:]]
        other.kill()
    assert [name for name, _ in store.prune(0)] == [templates[1].name]
    assert mine.untouched
    mine.close()
    assert [name for name, _ in store.prune(0)] == [templates[0].name]


def test_named_snapshots_stay(templates: list[Path]) -> None:
    """What people have named neither counts nor goes, unless that is said."""
    kept = _snapshot(store.named_path("mine"), name="mine")
    assert len(store.prune(0)) == 4
    assert kept.exists()
    assert [name for name, _ in store.prune(0, named_too=True)] == ["mine"]
    assert not kept.exists()
    assert not [path for path in templates if path.exists()]


@pytest.mark.parametrize("kind", ["templates", "snapshots"])
def test_prune_clears_what_killed_builders_left(kind: str) -> None:
    """The directory of a dead builder goes with the next pruning, that of one at work stays."""
    dead, alive = (cache.root() / kind / f".{name}@{name}.1" for name in ("dead", "alive"))
    for path in (dead, alive):
        path.mkdir(parents=True)
        (path / "ram").write_bytes(b"x")
    with cache.lock(store.locked(Path("alive"))):
        store.prune(1 << 40)
        assert not dead.exists()
        assert alive.exists()
    store.prune(1 << 40)
    assert not alive.exists()


def test_size_while_others_write(templates: list[Path]) -> None:
    """Files that come and go while a directory is measured are no error."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for name in ("a.tmp", "b.tmp", "c.tmp"):
                (templates[0] / name).touch()
                (templates[0] / name).unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        sizes = {store.size(templates[0]) for _ in range(2000)}
    finally:
        stop.set()
        thread.join()
    assert store.size(templates[0]) in sizes
    assert store.size(templates[0] / "nowhere") == 0


def test_room(tmp_path: Path) -> None:
    """Where the disk has no room for a snapshot, that is told, with what to do."""
    store.room(tmp_path, 1)
    with pytest.raises(store.NoRoom, match=r"a snapshot takes some \d+ MiB, and .* has \d+ MiB left") as caught:
        store.room(tmp_path, 1 << 60)
    assert "vmtest snapshot prune" in caught.value.hint


def test_who_opens_what_is_being_pruned(templates: list[Path]) -> None:
    """Who opens templates while another prunes them finds each whole or not at all."""
    results: list[Any] = []

    def use() -> None:
        for path in templates * 5:
            try:
                Snapshot(path).close()
            except FileNotFoundError:
                results.append(path)
            except BaseException as error:
                results.append(error)
                raise

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    removed = store.prune(0)
    for thread in threads:
        thread.join()
    assert [error for error in results if isinstance(error, Exception)] == []
    assert len(removed) <= 4
