"""What can be snapshotted, what cannot, and under which accelerator a snapshot can be restored: tables, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmtest.errors import UsageError
from vmtest.model.arch import arch
from vmtest.model.machine import Channel, Machine, Nic

__all__ = [
    "CROSSINGS",
    "OBSTACLES",
    "SAFE_OPTIONS",
    "Crossing",
    "Obstacle",
    "crossing",
    "obstacle",
    "poolable",
    "shared",
    "unsavable",
]

SAFE_OPTIONS = frozenset(
    "-device -global -smbios -boot -name -uuid -action -no-reboot -watchdog-action -nic -d".split()  # noqa: SIM905
)
"""Options of QEMU that a template and all its clones can have at the same time: they open nothing of the host's.
(-nic is looked at by OBSTACLES.)"""


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Something in QEMU's arguments (words joined by spaces, ``pattern`` is a regular expression) that forbids
    snapshots, and ``why``.
    """

    pattern: str
    why: str


OBSTACLES: tuple[Obstacle, ...] = (
    # 9p: hw/9pfs/9p.c blocks migration while a share is mounted; the files are the host's and would not go back.
    Obstacle(pattern=r"-virtfs|-fsdev|virtio-9p", why="a 9p share cannot be saved: its files are the host's"),
    # vhost-user-fs: its state is in virtiofsd, a process of its own.
    Obstacle(pattern=r"vhost-user|vhost-vsock|vhost-vdpa", why="part of its devices' state is in another process"),
    # hw/vfio/migration.c: only with a device driver that implements it.
    Obstacle(pattern=r"vfio-|-usb-host|usb-host|scsi-block|scsi-generic", why="a device of the host cannot be saved"),
    # vmstate_*.unmigratable = 1 in 7.2: hw/nvme/ctrl.c, hw/net/rocker/rocker.c, hw/virtio/virtio-crypto.c; QEMU says
    # "State blocked by non-migratable device". An ivshmem's memory and a TPM's state are in other processes.
    Obstacle(
        pattern=r"\b(nvme|rocker|virtio-crypto|ivshmem|tpm-)",
        why="QEMU cannot save the state of one of its devices",
    ),
    # Two QEMUs cannot have one tap device, listening port or socket; what connects to one would meet a stranger.
    Obstacle(
        pattern=r"(hostfwd|guestfwd|smb|tftp)=",
        why="its network forwards a port or shares files of the host, which two guests cannot have at a time",
    ),
    Obstacle(pattern=r"-nic (?!user|none)", why="its network card is tied to the host"),
    Obstacle(pattern=r"-cpu \S*\b(?:\+|)migratable=(?:off|no)", why="its CPU model is not migratable"),
    Obstacle(pattern=r"\b(listen|server=(on|yes))\b", why="it listens on a socket, which two guests cannot at a time"),
    # What is in them would have to be part of the key.
    Obstacle(
        pattern=r"\b(guest-)?loader\b|\b(file|dtb|firmware|splash)=|\bromfile=[^,\s]",
        why="it reads a file of the host's by an option that vmtest does not look into",
    ),
    Obstacle(pattern=r"hugepages|hugetlb|/dev/hugepages|memory-backend", why="its memory is not ours to map"),
)
"""What rules a snapshot out before anything is started; the first that matches is the reason."""


TIMERS_OF_RISCV = (10, 2, 0)
"""target/riscv/machine.c has a hart's timers (Sstc) in its state from this QEMU on, hw/intc/riscv_aclint.c likewise.
Before, those that were pending are lost: seen with 7.2 and 10.0 in 5 of 6 snapshots, whose guests slept for ever.
"""


def obstacle(machine: Machine, qemu: tuple[int, int, int], *, expects_agent: bool = True) -> str:
    """Why no template of that machine can be made, "" where nothing is known to forbid it. Starts nothing."""
    if machine.channel is Channel.AUTO and not expects_agent:
        return (
            "its random numbers can be renewed by vmtest's agent only, and nothing is known of its initramfs (where "
            "that has the agent: channel agent)"
        )
    if machine.channel not in (Channel.AUTO, Channel.AGENT):
        return f"its random numbers can be renewed by vmtest's agent only, and its channel is {machine.channel}"
    return unsavable(machine, qemu)


def unsavable(machine: Machine, qemu: tuple[int, int, int]) -> str:
    """Why that QEMU (its version) cannot save that machine, or not run it twice at a time; "" where nothing is known
    to forbid it.
    """
    if machine.arch == "riscv64" and qemu < TIMERS_OF_RISCV:
        return f"QEMU before {TIMERS_OF_RISCV[0]}.{TIMERS_OF_RISCV[1]} loses the timers of a riscv64 guest"
    if any(not drive.readonly and not drive.snapshot for drive in machine.drives):
        return "what it writes to its disk is kept, so that no two guests can have the disk at a time"
    for nic in machine.nics:
        kind = nic.backend.split(",", 1)[0]
        if kind not in ("user", "socket", "dgram", "stream"):
            return f"its network back-end {kind!r} cannot be had by two guests at a time"
        if found := _named(nic.backend):
            return found
    words = [machine.machine, f"-cpu {machine.cpu}", *machine.extra]
    if found := _named(" ".join(words)):
        return found
    for word in machine.extra:
        if word.startswith("-") and word.replace("--", "-") not in SAFE_OPTIONS:
            return f"nothing is known of the QEMU option {word} that would allow it"
    return ""


def _named(text: str) -> str:
    return next((row.why for row in OBSTACLES if re.search(row.pattern, text)), "")


def poolable(machine: Machine) -> bool:
    """Whether a guest may wait, paused, until it is wanted: not one that others on a network would see."""
    return not any(shared(nic) for nic in machine.nics)


def shared(nic: Nic) -> bool:
    """Whether other guests are on the card's network: behind QEMU's own NAT each is alone."""
    return nic.backend.split(",", 1)[0] != "user"


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A snapshot that was ``saved`` under one accelerator, ``restored`` under another: whether it ``works``.

    ``needs`` are parts of the machine that must be as the patterns say (the whole value is matched), each with why.
    """

    saved: str
    restored: str
    works: bool
    why: str
    needs: tuple[tuple[str, str, str], ...] = ()


_SAME_CPU = (
    "cpu",
    r"(?!max|host)[\w-]+(,[^ ]*)?",
    "its CPU model means another CPU under each accelerator: save it with one that has a name, such as cpu='qemu64'",
)
_NO_SMM = (
    "machine",
    r"(?!(q35|pc)\b(?!.*smm=off)).*",
    "KVM may lack system management mode: save it with machine='q35,smm=off'",
)
_NO_KVMCLOCK = (
    "cpu",
    r".*-kvmclock.*",
    "a kvmclock, which TCG does not have, is part of its state: save it with cpu='qemu64,-kvmclock' and "
    "machine='pc-q35-5.1,smm=off'",
)
# hw/i386/pc.c, kvmclock_create_always: true but for machine types up to 5.1.
_OLD_PC = (
    "machine",
    r"(?!(q35|pc)(,|$)|pc-(q35|i440fx)-(5\.2|[6-9]\.|\d\d)).*",
    "since version 5.2 a PC has a kvmclock under KVM whatever its CPU: save it with machine='pc-q35-5.1,smm=off'",
)

CROSSINGS: tuple[Crossing, ...] = (
    Crossing(saved="tcg", restored="tcg", works=True, why="the same emulator"),
    Crossing(saved="kvm", restored="kvm", works=True, why="the same CPU and host kernel, which the key holds"),
    Crossing(
        saved="tcg",
        restored="kvm",
        works=True,
        why="QEMU's device state is the same; the CPU and the chipset must be ones that both have",
        needs=(_SAME_CPU, _NO_SMM),
    ),
    Crossing(
        saved="kvm",
        restored="tcg",
        works=True,
        why="likewise, and nothing that only KVM gives a guest may be part of the state",
        needs=(_SAME_CPU, _NO_SMM, _NO_KVMCLOCK, _OLD_PC),
    ),
)


def crossing(machine: Machine, restored: str) -> Crossing:
    """The row for a snapshot of ``machine`` under another accelerator. Raises UsageError, with the reason, where it
    cannot work.
    """
    for row in CROSSINGS:
        if (row.saved, row.restored) == (machine.accel, restored):
            for name, pattern, why in row.needs:
                value = getattr(machine, name) or getattr(arch(machine.arch), name)
                if not re.fullmatch(pattern, value):
                    raise UsageError(f"a snapshot saved under {row.saved} cannot be restored under {restored}: {why}")
            return row
    raise UsageError(
        f"a snapshot saved under {machine.accel} cannot be restored under {restored}",
        hint="known: " + ", ".join(f"{row.saved} to {row.restored}" for row in CROSSINGS),
    )
