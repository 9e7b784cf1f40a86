"""What can be cloned, restored elsewhere and pooled, and what clones get of their own: rules that start nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtest.errors import UsageError
from vmtest.identity import script
from vmtest.model.accel import ACCELERATORS
from vmtest.model.machine import Channel, Drive, Machine, Nic
from vmtest.model.snapshot import CROSSINGS, OBSTACLES, SAFE_OPTIONS, crossing, obstacle, poolable
from vmtest.model.spec import GuestSpec
from vmtest.pytest_plugin.pooling import share

# -- obstacles -------------------------------------------------------------------------------------------------------

OLDEST = (7, 2, 0)

CLONABLE = [
    Machine(),
    Machine(arch="aarch64", smp=4, channel=Channel.AGENT),
    Machine(machine="q35,smm=off", cpu="qemu64,+avx2,migratable=on"),
    Machine(drives=(Drive(path=Path("/d")), Drive(path=Path("/e"), readonly=True, snapshot=False))),
    Machine(nics=(Nic(backend="user"), Nic(backend="user,restrict=on"), Nic(backend="socket,mcast=230.0.0.1:1234"))),
    Machine(extra=("-device", "edu", "-device", "virtio-rng-pci", "-d", "int", "--name", "x", "-no-reboot")),
    Machine(extra=("-nic", "none")),
    Machine(extra=("-device", "e1000,romfile=", "-device", "e1000,romfile=,id=x")),
    Machine(extra=("-nic", "user,model=e1000")),
]


@pytest.mark.parametrize("machine", CLONABLE, ids=range(len(CLONABLE)))
def test_no_obstacle(machine: Machine) -> None:
    """Nothing is in the way of what a template and all its clones can have at the same time."""
    assert obstacle(machine, OLDEST) == ""


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (Machine(channel=Channel.CONSOLE), "its channel is console"),
        (Machine(channel=Channel.QGA), "its channel is qga"),
        (Machine(drives=(Drive(path=Path("/d"), snapshot=False),)), "no two guests can have the disk"),
        (Machine(nics=(Nic(backend="tap,ifname=tap0"),)), "'tap' cannot be had by two"),
        (Machine(nics=(Nic(), Nic(backend="bridge"))), "'bridge' cannot be had by two"),
        (Machine(nics=(Nic(backend="user,hostfwd=tcp:127.0.0.1:2222-:22"),)), "forwards a port"),
        (Machine(nics=(Nic(backend="user,smb=/srv"),)), "shares files of the host"),
        (Machine(nics=(Nic(backend="user,tftp=/srv"),)), "shares files of the host"),
        (Machine(extra=("-nic", "tap")), "tied to the host"),
        (Machine(extra=("-nic", "user,hostfwd=tcp::1-:1")), "forwards a port"),
        (Machine(extra=("-virtfs", "local,path=/,mount_tag=x,security_model=none")), "9p"),
        (Machine(extra=("-fsdev", "local,id=x")), "9p"),
        (Machine(extra=("-device", "virtio-9p-pci,fsdev=x,mount_tag=x")), "9p"),
        (Machine(extra=("-device", "vhost-user-fs-pci,chardev=x,tag=x")), "in another process"),
        (Machine(extra=("-device", "vhost-vsock-pci,guest-cid=3")), "in another process"),
        (Machine(extra=("-device", "vfio-pci,host=01:00.0")), "a device of the host"),
        (Machine(extra=("-device", "usb-host,vendorid=1")), "a device of the host"),
        (Machine(extra=("-device", "nvme,serial=x")), "cannot save the state of one of its devices"),
        (Machine(extra=("-device", "rocker")), "cannot save the state of one of its devices"),
        (Machine(cpu="host,migratable=off"), "not migratable"),
        (Machine(cpu="max,migratable=no"), "not migratable"),
        (Machine(machine="q35,memory-backend=mine"), "memory is not ours"),
        (Machine(extra=("-mem-path", "/dev/hugepages")), "memory is not ours"),
        (Machine(nics=(Nic(backend="socket,listen=:1234"),)), "listens on a socket"),
        (Machine(nics=(Nic(backend="stream,server=on,addr.type=unix"),)), "listens on a socket"),
        (Machine(extra=("-device", "loader,file=/fw.bin,addr=0")), "does not look into"),
        (Machine(extra=("-smbios", "file=/table")), "does not look into"),
        (Machine(extra=("-device", "e1000,romfile=/rom")), "does not look into"),
        (Machine(machine="virt,dtb=/tree"), "does not look into"),
        (Machine(extra=("-drive", "if=none")), "nothing is known of the QEMU option -drive"),
        (
            Machine(extra=("-device", "edu", "--chardev", "file,path=/x")),
            "nothing is known of the QEMU option --chardev",
        ),
    ],
)
def test_obstacle(machine: Machine, why: str) -> None:
    """What no two guests can have, or QEMU cannot save, is named before anything is started."""
    assert why in obstacle(machine, OLDEST)


def test_initramfs_of_unknown_making() -> None:
    """Where nothing is known of an agent no template is made, unless the user says that there is one."""
    assert "nothing is known of its initramfs" in obstacle(Machine(), OLDEST, expects_agent=False)
    assert obstacle(Machine(channel=Channel.AGENT), OLDEST, expects_agent=False) == ""


def test_riscv_timers() -> None:
    """A riscv64 guest is cloned only by a QEMU that saves its timers: 10.2 and later."""
    machine = Machine(arch="riscv64")
    assert "loses the timers" in obstacle(machine, (10, 1, 3))
    assert obstacle(machine, (10, 2, 0)) == ""


def test_every_obstacle_is_a_pattern() -> None:
    """Each row's pattern is a regular expression, and no plain machine matches it."""
    for row in OBSTACLES:
        assert not re.search(row.pattern, "q35 -cpu max -device virtio-blk-pci")
        assert row.why


@given(st.sampled_from(sorted(SAFE_OPTIONS)), st.text("abcxyz=,0123", min_size=1))
def test_unknown_options_are_obstacles(safe: str, tail: str) -> None:
    """An option that nothing is known of forbids clones, wherever it stands and however it begins."""
    assert obstacle(Machine(extra=(safe, "x", f"-q{tail}")), OLDEST)
    assert obstacle(Machine(extra=(f"--q{tail}", safe)), OLDEST)


@pytest.mark.parametrize(
    ("backends", "may"),
    [
        ((), True),
        (("user",), True),
        (("user", "user"), True),
        (("socket,mcast=230.0.0.1:1234",), False),
        (("user", "dgram,local.type=inet"), False),
    ],
)
def test_poolable(backends: tuple[str, ...], may: bool) -> None:
    """A guest that others on a network would see does not wait in a pool."""
    assert poolable(Machine(nics=tuple(Nic(backend=backend) for backend in backends))) is may


# -- crossings -------------------------------------------------------------------------------------------------------

BOTH = {"machine": "pc-q35-5.1,smm=off", "cpu": "qemu64,-kvmclock"}


@pytest.mark.parametrize("row", CROSSINGS, ids=lambda row: f"{row.saved}-{row.restored}")
def test_crossing(row: object) -> None:
    """The machine that all rows can do with is let through by each."""
    assert crossing(Machine(accel=row.saved, **BOTH), row.restored) is row  # type: ignore[attr-defined, arg-type]


@pytest.mark.parametrize(
    ("saved", "changed", "advice"),
    [
        ("tcg", {"cpu": ""}, "cpu='qemu64'"),
        ("tcg", {"cpu": "max"}, "cpu='qemu64'"),
        ("tcg", {"cpu": "max,-svm"}, "cpu='qemu64'"),
        ("kvm", {"cpu": "host"}, "cpu='qemu64'"),
        ("kvm", {"cpu": "host,-arch-capabilities"}, "cpu='qemu64'"),
        ("tcg", {"machine": ""}, "machine='q35,smm=off'"),
        ("tcg", {"machine": "q35"}, "machine='q35,smm=off'"),
        ("tcg", {"machine": "pc,smm=on"}, "machine='q35,smm=off'"),
        ("kvm", {"machine": "pc-q35-5.1"}, "machine='q35,smm=off'"),
        ("kvm", {"cpu": "qemu64"}, "cpu='qemu64,-kvmclock'"),
        ("kvm", {"machine": "q35,smm=off"}, "machine='pc-q35-5.1,smm=off'"),
        ("kvm", {"machine": "pc,smm=off"}, "machine='pc-q35-5.1,smm=off'"),
        ("kvm", {"machine": "pc-q35-5.2,smm=off"}, "machine='pc-q35-5.1,smm=off'"),
        ("kvm", {"machine": "pc-q35-7.2,smm=off"}, "machine='pc-q35-5.1,smm=off'"),
        ("kvm", {"machine": "pc-i440fx-10.0,smm=off"}, "machine='pc-q35-5.1,smm=off'"),
    ],
)
def test_refused_crossing(saved: str, changed: dict[str, str], advice: str) -> None:
    """What stands in the way of a crossing is a usage error that names what to save the snapshot with."""
    restored = {"tcg": "kvm", "kvm": "tcg"}[saved]
    with pytest.raises(UsageError, match=f"saved under {saved} cannot be restored under {restored}") as caught:
        crossing(Machine(accel=saved, **{**BOTH, **changed}), restored)  # type: ignore[arg-type]
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    "machine", ["pc-q35-5.1,smm=off", "pc-q35-4.2,smm=off", "pc-i440fx-2.12,smm=off", "pc-q35-5.0,smm=off,vmport=off"]
)
def test_old_machines_cross(machine: str) -> None:
    """Machine types of the times before the kvmclock that is always there cross from KVM."""
    assert crossing(Machine(accel="kvm", machine=machine, cpu="qemu64,-kvmclock"), "tcg").works


def test_unknown_crossing() -> None:
    """Between accelerators that nothing is known of nothing crosses; the known ones are named."""
    known = {(row.saved, row.restored) for row in CROSSINGS}
    for saved in ACCELERATORS:
        for restored in ACCELERATORS:
            if (saved, restored) not in known:
                with pytest.raises(UsageError, match="cannot be restored under") as caught:
                    crossing(Machine(accel=saved, **BOTH), restored)  # type: ignore[arg-type]
                assert "tcg to kvm" in caught.value.hint


# -- an identity -----------------------------------------------------------------------------------------------------

LAN = Nic(backend="socket,mcast=230.0.0.1:1234")


def test_nothing_to_do() -> None:
    """A guest that is alone, or whose address was chosen, and whose name was not, is left as it is."""
    assert script(Machine(), None) == ""
    assert script(Machine(nics=(Nic(), Nic(backend="user,restrict=on"))), None) == ""
    assert script(Machine(nics=(Nic(backend=LAN.backend, mac="52:54:00:00:00:01"),)), None) == ""


def test_addresses_of_its_own() -> None:
    """Each card on a shared network gets a random, locally administered unicast address; other cards keep theirs."""
    machine = Machine(nics=(Nic(), LAN, LAN))
    seen = set()
    for _ in range(50):
        text = script(machine, None)
        found = re.findall(r"ip link set dev eth(\d) address ((?:[0-9a-f]{2}:){5}[0-9a-f]{2}) ", text)
        assert [number for number, _ in found] == ["1", "2"]
        assert all(int(mac[:2], 16) & 3 == 2 for _, mac in found)
        seen |= {mac for _, mac in found}
        assert "hostname" not in text
    assert len(seen) == 100


def test_name_and_machine_id() -> None:
    """A name goes where names are, with a machine-id that nobody else has."""
    texts = [script(Machine(), "db-1") for _ in range(2)]
    ids = [re.findall(r"\b[0-9a-f]{32}\b", text) for text in texts]
    assert len(ids[0]) == 1
    assert ids[0] != ids[1]
    assert "hostname db-1 " in texts[0]


@pytest.mark.parametrize("machine", [Machine(), Machine(nics=(Nic(), LAN))])
def test_script_is_one_for_every_shell(machine: Machine) -> None:
    """A shell can read the whole script."""
    text = script(machine, "db-1.example")
    subprocess.run(["/bin/sh", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    "name", ["", "-x", "x-", "a b", "a;reboot", "$(reboot)", "a\nb", "ä", "x" * 65, ".x", "a/b", 7]
)
def test_bad_hostname(name: object) -> None:
    """What is no host name never gets into the script."""
    with pytest.raises(UsageError, match="hostname"):
        GuestSpec.parse({"hostname": name}, where="here")


# -- specs and pools -------------------------------------------------------------------------------------------------


def test_snapshot_says_the_whole_machine() -> None:
    """Below a snapshot only what is not about the machine counts; above it what is said is kept, to be refused."""
    below = GuestSpec(
        image="mine", memory=300, smp=2, append="x", nic="user", accel="kvm", cold=True, qemu="/q", hostname="h"
    )
    above = GuestSpec(snapshot="kept", timeout=5)
    assert above.over(below) == GuestSpec(snapshot="kept", timeout=5, qemu="/q", hostname="h")
    assert GuestSpec(snapshot="kept", memory=1).over(below).memory == 1


def test_laid_over_a_snapshot() -> None:
    """A snapshot that is said below holds for what is laid over it."""
    assert GuestSpec(memory=1).over(GuestSpec(snapshot="kept")) == GuestSpec(memory=1, snapshot="kept")
    assert GuestSpec(snapshot="new").over(GuestSpec(snapshot="old")).snapshot == "new"


@given(st.integers(0, 200), st.integers(1, 64))
def test_shares_add_up(total: int, workers: int) -> None:
    """The workers' shares of a pool add up to it, and differ by one at most."""
    shares = [share(total, workers, index) for index in range(workers)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
