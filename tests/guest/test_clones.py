"""Clones: whatever is done to one, the next begins as its template was; and nothing of one is the other's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import vmtest
from vmtest import booting
from vmtest.booting import use_pool
from vmtest.deadline import Deadline
from vmtest.errors import GuestError, GuestGone, GuestPanicked, SnapshotError, UsageError, VmtestError
from vmtest.pool import Pool
from vmtest.pytest_plugin.fixtures import Boot
from vmtest.snapshots import Snapshot, store

DISK = 4 << 20
READY = "vmtest-init: ready"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of random bytes. The templates that it makes are of no use to anybody else, and are removed."""
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(os.urandom(DISK))
    before = set(store.all_snapshots())
    yield path
    for template in set(store.all_snapshots()) - before:
        with contextlib.suppress(VmtestError):
            if any(drive.path == path for drive in Snapshot.peek(template).machine.drives):
                store.remove(template)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of two clones, in place of the session's own for this test."""
    before, booting._pool = booting._pool, Pool(0)
    pool = use_pool(2)
    yield pool
    pool.close()
    booting._pool = before


# -- pristine --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What of a guest must be the template's."""

    files: str
    processes: list[str]
    modules: str
    mounts: str
    hostname: str
    disk: str

    free_kib: int
    clock_error: float

    def assert_as(self, template: Seen) -> None:
        for name in ("files", "processes", "modules", "mounts", "hostname", "disk"):
            assert getattr(self, name) == getattr(template, name), name
        assert abs(self.free_kib - template.free_kib) < 4 << 10
        assert self.clock_error <= 1


_FILES = r"""
find / \( -path /proc -o -path /sys -o -path /dev \) -prune -o -exec stat -c '%n %F %a %u:%g %s %Y %N' {} + | sort
find / \( -path /proc -o -path /sys -o -path /dev \) -prune -o -type f -exec sha256sum {} + | sort
ls -la /dev | sed '/ tty[0-9]/d; s/ *[^ ]* *[^ ]* *[^ ]* \([^ ]*\)$/ \1/'
"""
_PROCESSES = "for it in /proc/[0-9]*; do read -r name < $it/comm && echo $name; done"  # one process, the shell


def look(guest: vmtest.Guest) -> Seen:
    """What of the guest must be as it was in its template."""
    # The clock first, and no file is read before free memory is.
    before = time.time()
    clock = int(guest.run("date +%s").stdout)
    after = time.time()
    free = re.search(r"MemFree: +(\d+) kB", guest.run("cat /proc/meminfo").check().stdout)
    assert free
    return Seen(
        files=guest.run(_FILES).check().stdout,
        processes=sorted(name for name in guest.run(_PROCESSES).check().stdout.split() if "kworker" not in name),
        modules=guest.run("cut -d ' ' -f 1-4 /proc/modules").stdout,
        mounts=guest.run("cat /proc/mounts").check().stdout,
        hostname=guest.run("hostname").check().stdout,
        disk=guest.run("cat /dev/vda | sha256sum").check().stdout if guest.machine.drives else "",
        free_kib=int(free[1]),
        clock_error=max(before - (clock + 1), clock - after, 0.0),
    )


DAMAGE = [
    "rm -rf /etc /root /var /tmp; mkdir /etc",
    "rm -rf /usr",
    "rm -rf /*",
    "for it in /etc/* /init /modules.list; do echo ruined > $it; done",
    "echo '#!/bin/sh' > /usr/bin/busybox",
    "chmod 0 / /usr /usr/bin /bin/busybox",
    "chown -R 1000:1000 /etc /usr; touch -t 200001010000 /etc/*",
    "dd if=/dev/zero of=/filled bs=1M count=90",
    "dd if=/dev/urandom of=/dev/shm/filled bs=1M count=20",
    "head -c 60m /dev/zero | tail",
    "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i + 1)); done",
    "killall sh; killall init; echo 300 > /proc/sys/kernel/pid_max",
    "kill -9 -1",
    "kill -STOP $(pidof vmtest-agent | tr ' ' '\\n' | grep -vx $PPID)",
    "date -s '2001-02-03 04:05:06'",
    "date -s '2034-02-03 04:05:06'; hwclock -w -f /dev/rtc0",
    "hostname ruined; echo 1 > /proc/sys/kernel/panic_on_oops",
    "dd if=/dev/urandom of=/dev/vda bs=1M; sync",
    "dd if=/dev/zero of=/dev/vda bs=512 count=3 seek=7; sync; echo 3 > /proc/sys/vm/drop_caches",
    "rmmod virtio_net; rmmod net_failover; rmmod failover",
    "rmmod virtio_blk",
    "rmmod virtio_net; insmod /usr/lib/modules/*/kernel/drivers/net/virtio_net.ko",
    "mount -t tmpfs over /usr/lib; mount -t tmpfs over /mnt; touch /mnt/there",
    "umount -l /dev/pts; umount /run /dev/shm; umount -l /sys",
    "umount -l /proc; umount -l /dev",
    "mknod /tmp/node b 254 0; ln -s / /tmp/loop; mkfifo /tmp/fifo",
    "echo c > /proc/sysrq-trigger; sleep 1000",
    "echo o > /proc/sysrq-trigger; sleep 1000",
    "reboot -f; sleep 1000",
]


def ruin(guest: vmtest.Guest, commands: list[str]) -> None:
    """Run them until the guest is beyond that."""
    for command in commands:
        try:
            guest.run(command, timeout=2)
        except (GuestGone, GuestPanicked):
            return
        except GuestError:  # it takes too long, or kills our agent
            continue


@pytest.mark.parametrize("with_disk", [False, True], ids=["without-disk", "with-disk"])
def test_pristine_after_any_damage(disk: Path, with_disk: bool) -> None:
    """Whatever was done to a clone, the next has the template's files, memory, processes, modules, mounts, name and
    disk, and the host's time; and the file of the disk is on the host what it was.
    """
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown when the test fails
    choice = random.Random(seed)
    wanted = {"image": "linux-x86_64", "disk": disk if with_disk else None}
    contents = hashlib.sha256(disk.read_bytes()).hexdigest()
    with vmtest.boot(**wanted) as guest:  # type: ignore[arg-type]
        template = look(guest)
    if with_disk:
        assert template.disk.split()[0] == contents
    for _ in range(7):
        commands = choice.sample(DAMAGE, 4)
        print(*commands, sep="\n", end="\n\n")
        with vmtest.boot(**wanted) as guest:  # type: ignore[arg-type]
            ruin(guest, commands)
        with vmtest.boot(**wanted) as guest:  # type: ignore[arg-type]
            look(guest).assert_as(template)
    assert hashlib.sha256(disk.read_bytes()).hexdigest() == contents


# -- of its own ------------------------------------------------------------------------------------------------------

_DRAW = """
cat /proc/sys/kernel/random/uuid
od -An -v -tx1 -N16 /dev/urandom
od -An -v -tx1 -N16 /dev/random
mktemp -u XXXXXXXXXXXXXXXXXXXXXXXX
tail -n 4 /proc/self/maps
"""
"""What the kernel draws: by its files, by getrandom (glibc's mktemp), and by itself (where a program's stack lies)."""


def _draws(guest: vmtest.Guest) -> list[str]:
    lines = guest.run(_DRAW).check().stdout.splitlines()
    stack = next(line for line in lines if "[stack]" in line)
    return [*lines[:4], stack.split()[0]]


def _all_differ(drawn: list[list[str]]) -> None:
    for kind in zip(*drawn, strict=True):
        assert len(set(kind)) == len(kind), kind


def test_no_two_draw_the_same() -> None:
    """Clones draw random bytes of their own, by each way of drawing, from their very first command on."""
    drawn = []
    for _ in range(10):
        with vmtest.boot() as guest:
            drawn += [_draws(guest), _draws(guest)]
    _all_differ(drawn)


def test_no_two_of_a_pool_draw_the_same(pool: Pool) -> None:
    """So do clones that were made ahead: each other's draws, and those of clones that were not."""
    drawn = []
    for _ in range(8):
        with vmtest.boot() as first, vmtest.boot() as second:
            drawn += [_draws(first), _draws(second)]
    _all_differ(drawn)


def test_restored_twice_draws_twice(guest: vmtest.Guest) -> None:
    """A guest that goes back to the same snapshot again and again draws something new each time."""
    snapshot = guest.snapshot()
    drawn = [_draws(guest)]
    for _ in range(3):
        drawn.append(_draws(guest.restore(snapshot)))
    _all_differ(drawn)


DRAWING = """
i=10000000
while :; do
    i=$((i+1)); read draw </proc/sys/kernel/random/uuid; echo "draw $i $draw"
done >/tmp/draws
"""


@pytest.mark.parametrize("smp", [1, 2])
def test_running_programs_do_not_draw_the_same(boot: Boot, smp: int) -> None:
    """What runs in a guest while its snapshot is taken draws in each of two clones something else from then on."""
    guest = boot(smp=smp)
    guest.run(["sh", "-c", f"({DRAWING}) & exec sleep 0.2"]).check()
    snapshot = guest.snapshot()
    saved = (snapshot.path / "ram").read_bytes()
    last = max(map(int, re.findall(rb"draw (\d{8}) [0-9a-f]{8}-", saved)))
    drawn = []
    for _ in range(2):
        guest.restore(snapshot)
        lines = guest.run(f"until grep -q 'draw {last + 200} ' /tmp/draws; do sleep 0.01; done; cat /tmp/draws").stdout
        drawn.append({int(n): draw for n, draw in re.findall(r"draw (\d+) (\S{36})\n", lines)})
    (first, second), numbers = drawn, range(10000001, last + 200)
    # It may have been held when it had drawn the next one already, and not yet written it down.
    assert {n for n in numbers if first[n] == second[n] and n > last} <= {last + 1}
    assert [n for n in numbers if first[n] != second[n] and n <= last] == []


@pytest.mark.parametrize("smp", [1, 2])
def test_held_programs_stand_still(boot: Boot, smp: int) -> None:
    """While a guest is held its programs stand still, on each of its processors, and go on afterwards."""
    guest = boot(smp=smp)
    guest.run("for n in 1 2 3; do (while :; do echo $n; done) >/dev/console & done").check()
    agent = guest._life.uplink.agent
    assert agent is not None
    with agent.held(Deadline(10)):
        while guest._running.verdict.wait(0.05) or (before := guest.console.total) != guest.console.total:
            pass  # what the serial port still held
        assert not guest._running.verdict.wait(0.2)
        assert guest.console.total == before
    patience = Deadline(10)
    while guest.console.total == before and not patience.expired:
        assert guest.run("echo answers").stdout == "answers\n"
    assert guest.console.total > before


def test_named_snapshot_that_is_not_waited_for(guest: vmtest.Guest) -> None:
    """Two that begin in one snapshot draw each their own, and know the time, where they are not waited for, too."""
    name = f"unwaited-{os.getpid()}"
    guest.run("date -s '2001-02-03 04:05:06'").check()
    guest.snapshot(name).close()
    drawn = []
    try:
        for _ in range(2):
            with vmtest.boot(snapshot=name, wait=False) as other:
                drawn.append(_draws(other))
                assert abs(int(other.run("date +%s").stdout) - time.time()) < 5
    finally:
        store.remove(store.named_path(name))
    _all_differ(drawn)


def test_the_clock_is_now(guest: vmtest.Guest) -> None:
    """A clone's clock is the host's, even where its template's showed years ago when it was saved."""
    guest.run("date -s '2001-02-03 04:05:06'").check()
    assert int(guest.run("date +%s").stdout) < 1_000_000_000
    guest.restore(guest.snapshot())
    before = time.time()
    clock = int(guest.run("date +%s").stdout)
    assert before - 1 <= clock <= time.time() + 1


def test_hostname(boot: Boot) -> None:
    """hostname= gives a clone this name at once, to a cold guest too; /etc/hostname and machine-id follow if there."""
    for cold in (False, True):
        guest = boot(hostname="db-1.example", cold=cold)
        assert guest.run("hostname; uname -n; ls /etc/machine-id").stdout == "db-1.example\ndb-1.example\n"
    guest.run("echo old > /etc/hostname; echo old > /etc/machine-id").check()
    name = f"hosts-{os.getpid()}"
    guest.snapshot(name).close()
    try:
        first, second = (
            boot(snapshot=name, hostname=host).run("hostname; cat /etc/hostname /etc/machine-id").stdout.split()
            for host in ("one", "two")
        )
    finally:
        store.remove(store.named_path(name))
    assert (first[:2], second[:2]) == (["one"] * 2, ["two"] * 2)
    assert re.fullmatch("[0-9a-f]{32}", first[2])
    assert first[2] != second[2]


def test_two_on_one_lan(boot: Boot) -> None:
    """Two clones on one LAN have addresses of their own, and reach each other by them."""
    # The address space is large: another run on this host, in the same LAN, does not meet ours.
    net = f"10.{random.randrange(256)}.{random.randrange(256)}"
    guests = [boot(nic="socket,mcast=230.0.0.1:31234,localaddr=127.0.0.1") for _ in range(2)]
    macs = []
    for number, guest in enumerate(guests, 1):
        assert guest.origin.startswith("a clone of")
        guest.run(f"ip addr add {net}.{number}/24 dev eth0; ip link set eth0 up").check()
        macs.append(guest.run("cat /sys/class/net/eth0/address").stdout)
    assert macs[0] != macs[1]
    guests[0].run(f"ping -c 3 -w 20 {net}.2").check()
    guests[1].run(f"ping -c 3 -w 20 {net}.1").check()


# -- as a guest that was booted --------------------------------------------------------------------------------------


def test_console_of_its_boot(tmp_path: Path, pool: Pool) -> None:
    """What its boot printed can be expected of a clone, pooled or not, and is in its log; so is what it prints."""
    for number in range(3):
        logs = tmp_path / str(number)
        with vmtest.boot(logs=logs) as guest:
            guest.console.expect_exact(READY)
            guest.run(f"echo printed by {number} > /dev/console").check()
            guest.console.expect_exact(f"printed by {number}")
            assert guest.logs == logs
            assert guest.console.log_path == logs / "console.log"
        log = (logs / "console.log").read_bytes()
        assert log.count(READY.encode()) == 1
        assert log.count(b"printed by") == 1


def _by_reboot(guest: vmtest.Guest) -> None:
    guest.reboot()


def _by_reset(guest: vmtest.Guest) -> None:
    guest.reset()


def _by_panic(guest: vmtest.Guest) -> None:
    guest.run("echo -1 > /proc/sys/kernel/panic").check()
    with pytest.raises(GuestPanicked, match="sysrq"):
        guest.run("echo c > /proc/sysrq-trigger; sleep 1000", timeout=1000)
    guest.reset()


def _by_console(guest: vmtest.Guest) -> None:
    guest.console.sendline("reboot -f")


@pytest.mark.parametrize("way", [_by_reboot, _by_reset, _by_panic, _by_console])
def test_reboot_is_a_cold_boot(disk: Path, way: object) -> None:
    """However a clone comes to be reset, it boots as a cold guest: memory forgotten, disk kept; then it shuts down."""
    assert callable(way)
    with vmtest.boot("linux-x86_64", disk=disk) as guest:
        guest.console.expect_exact(READY)
        guest.run("echo kept | dd of=/dev/vda conv=notrunc; sync; touch /tmp/mark").check()
        for _ in range(2):  # a second time it is not the first QEMU any more
            way(guest)
            guest.console.expect_exact(READY)  # the disk's driver is loaded while the agent already answers
            assert guest.run("head -c 5 /dev/vda; ls /tmp/mark").stdout == "kept\n"
            assert float(guest.run("cat /proc/uptime").stdout.split()[0]) < 30
        pid = guest.pid
        guest.shutdown()
        assert not psutil.pid_exists(pid)
    assert disk.read_bytes()[:5] != b"kept\n"


def test_power_off(guest: vmtest.Guest) -> None:
    """A clone that powers off has gone, and wait() gives QEMU's exit code."""
    assert guest.origin
    with pytest.raises(GuestGone, match="guest-shutdown"):
        guest.run("poweroff -f; sleep 1000")
    assert guest.wait() == 0


# -- snapshots of one's own ------------------------------------------------------------------------------------------


def _marks(guest: vmtest.Guest) -> str:
    disk = "; head -c 4 /dev/vda" if guest.machine.drives else ""
    return guest.run(f"cat /tmp/mark; nproc{disk}").check().stdout


def _mark(guest: vmtest.Guest, mark: str) -> str:
    disk = f"; printf {mark} | dd of=/dev/vda conv=notrunc; sync" if guest.machine.drives else ""
    guest.run(f"printf {mark} > /tmp/mark{disk}").check()
    return _marks(guest)


MACHINES: dict[str, dict[str, object]] = {
    "clone": {},
    "cold": {"cold": True},
    "smp": {"smp": 2},
    "aarch64": {"image": "linux-aarch64"},
}


@pytest.mark.parametrize("kind", [*MACHINES, "disk", "cold-disk"])
def test_snapshots_nest(kind: str, disk: Path) -> None:
    """A guest goes back to any of its snapshots in any order: those of a snapshot's clone, and after a reset, too."""
    wanted = MACHINES.get(kind) or {"image": "linux-x86_64", "disk": disk, "cold": kind.startswith("cold")}
    with vmtest.boot(**wanted if kind != "clone" else {}) as guest:  # type: ignore[arg-type]
        kept = []
        for mark in ("one1", "two2"):
            shown = _mark(guest, mark)
            kept.append((guest.snapshot(), shown))
            assert _marks(guest) == shown  # it goes on
        guest.restore(kept[0][0])
        assert _marks(guest) == kept[0][1]
        shown = _mark(guest, "three"[:4])
        kept.append((guest.snapshot(), shown))
        guest.reset()
        assert guest.run("ls /tmp/mark").exit_code
        shown = _mark(guest, "four")
        kept.append((guest.snapshot(), shown))
        for number in (2, 0, 3, 1, 1):
            snapshot, shown = kept[number]
            guest.restore(snapshot)
            assert _marks(guest) == shown
            assert guest.machine == snapshot.machine
        assert guest.origin
    if guest.machine.drives:
        assert disk.read_bytes()[:4] not in (b"one1", b"two2", b"thre", b"four")


def test_riscv_timers_are_not_lost(boot: Boot) -> None:
    """A riscv64 guest, whose timers this QEMU may lose, is booted instead, or its clone's timers fire."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        guest = boot("linux-riscv64")
    assert (guest.origin == "") == any("loses the timers" in str(warning.message) for warning in told)
    guest.run("sleep 0.1", timeout=30).check()
    if not guest.origin:
        with pytest.raises(SnapshotError, match="loses the timers"):
            guest.snapshot()


@pytest.mark.parametrize("image", ["linux-x86_64", "linux-aarch64"])
def test_timers_of_a_busy_guest(boot: Boot, image: str) -> None:
    """Timers that were running at a snapshot, also on the second CPU, fire in its clones."""
    guest = boot(image, smp=2)
    for _ in range(3):
        guest.run("i=0; while [ $i -lt 200 ]; do i=$((i+1)); done").check()
        guest.restore(guest.snapshot())
        for cpu in ("1", "2"):
            guest.run(["taskset", cpu, "sleep", "0.05"], timeout=30).check()


def test_named_snapshot(boot: Boot, disk: Path) -> None:
    """A snapshot with a name is there for each guest that asks for it; a taken name, a missing one, and options that
    would change the machine are refused.
    """
    guest = boot("linux-x86_64", disk=disk, memory=200)
    shown = _mark(guest, "name")
    name = f"named-{os.getpid()}"
    try:
        assert guest.snapshot(name).name == name
        with pytest.raises(UsageError, match="there is a snapshot named"):
            guest.snapshot(name)
        guest.kill()
        for number in range(2):
            other = boot(snapshot=name)
            assert _marks(other) == shown
            assert other.machine.memory == 200
            assert name in other.origin
            _mark(other, f"num{number}")
        for said in ({"memory": 300}, {"cold": True}, {"trim": False}, {"image": "linux-aarch64"}, {"arch": "riscv64"}):
            with pytest.raises(UsageError, match=f"{next(iter(said))} = .* cannot be had of a guest that begins in"):
                vmtest.boot(snapshot=name, **said)  # type: ignore[arg-type]
        boot(snapshot=name, image="linux-x86_64", arch="x86_64")
    finally:
        store.remove(store.named_path(name))
    with pytest.raises(UsageError, match="there is no snapshot named"):
        boot(snapshot=name)
    for bad in ("../up", ".dot", "", "a/b", "x" * 200):
        with pytest.raises(UsageError, match="cannot be the name"):
            boot(snapshot=bad)


def test_snapshot_of_another_machine(boot: Boot) -> None:
    """A guest does not become what it is not: a snapshot of another machine is refused, and the guest goes on."""
    guest, other = boot(), boot(memory=200)
    snapshot = other.snapshot()
    for way in (guest.restore, guest.reset_to):
        with pytest.raises(UsageError, match=r"of another machine than this guest's: memory 200 and not 256"):
            way(snapshot)
        for wrong in ("a name", None):
            with pytest.raises(UsageError, match="is not a snapshot"):
                way(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no way 'bogus' to reset a guest"):
        guest.reset_to(guest.snapshot(), way="bogus")  # type: ignore[arg-type]
    assert guest.run("echo on").stdout == "on\n"


def test_snapshot_of_a_paused_guest(guest: vmtest.Guest) -> None:
    """Saving a paused guest leaves it paused, each time; what was saved runs when it is restored."""
    shown = _mark(guest, "held")
    guest.pause()
    for _ in range(2):
        snapshot = guest.snapshot()
    assert guest.qmp("query-status")["running"] is False  # type: ignore[index]
    with pytest.raises(UsageError, match="is paused"):
        guest.run("true")
    guest.resume()
    assert _marks(guest) == shown
    _mark(guest, "more")
    guest.restore(snapshot)
    assert _marks(guest) == shown


def test_reset_of_a_paused_guest(guest: vmtest.Guest) -> None:
    """A clone that is reset while it is paused runs again, as the new boot that it is."""
    guest.pause()
    guest.reset()
    assert guest.run("echo runs").stdout == "runs\n"


def test_snapshot_while_it_boots(boot: Boot) -> None:
    """A guest whose agent has not answered yet is not saved: nothing could renew what its clones draw."""
    guest = boot(wait=False)
    with pytest.raises(UsageError, match="has not come up yet"):
        guest.snapshot()
    guest.wait_up()
    assert guest.restore(guest.snapshot()).run("echo up").stdout == "up\n"


@pytest.mark.parametrize("words", [["-no-reboot"], ["--no-reboot"], ["-action", "reboot=shutdown"]])
def test_no_reboot(boot: Boot, words: list[str]) -> None:
    """A clone whose QEMU is told to end at a reset does, however that is written, as where it was booted."""
    guest = boot(qemu_args=words)
    guest.console.sendline("reboot -f")
    assert guest.wait(timeout=60) == 0
    assert guest.origin


def test_prepared_guest_that_had_crashed(boot: Boot, tmp_path: Path) -> None:
    """What a guest printed before it went back to a snapshot is not part of what it is saved as."""
    with vmtest.boot(logs=tmp_path) as guest:
        snapshot = guest.snapshot()
        _by_panic(guest)
        guest.restore(snapshot)
        clone = guest.snapshot()
        assert b"panic" in guest.console.log_path.read_bytes()
        assert b"panic" not in clone.transcript


# -- a thousand ------------------------------------------------------------------------------------------------------

THOUSAND = """
import json, os, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

import vmtest
from vmtest.booting import use_pool
from vmtest.workdir import base

me = psutil.Process()


def one(number):
    with vmtest.boot() as guest:
        assert guest.run(["echo", str(number)]).stdout == f"{number}\\n"


def rounds(count):
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(one, range(count)))
    pool = use_pool(2)
    for number in range(count // 10):
        one(number)
    pool.close()


def seen():
    return {
        "processes": len(me.children(recursive=True)),
        "descriptors": me.num_fds(),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "directories": sorted(path.name for path in base().iterdir()),
        "rss": me.memory_info().rss,
    }


rounds(50)
before = seen()
rounds(900)
print(json.dumps([before, seen()]))
"""


def test_a_thousand(tmp_path: Path) -> None:
    """After a thousand clones there are as many processes, descriptors, threads and directories as before, and hardly
    more memory is used.
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", THOUSAND], env=environment, stdout=subprocess.PIPE, check=True, timeout=600
    )
    before, after = json.loads(done.stdout)
    assert before["processes"] == 0
    assert before["directories"] == []
    growth = after.pop("rss") - before.pop("rss")
    assert after == before
    assert growth < 30 << 20
