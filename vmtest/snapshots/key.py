"""What must be the same for a snapshot to fit: as a table of facts, and as a hash of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vmtest import cache
from vmtest.errors import UsageError
from vmtest.host import Qemu
from vmtest.model.machine import Channel, Machine
from vmtest.qemu.argv import Wiring, argv
from vmtest.qemu.qcow2 import chain

__all__ = ["FORMAT", "facts", "host_cpu", "key_of", "unfit"]

FORMAT = 3
"""Raised when snapshots made by earlier versions of vmtest do not fit any more."""


def facts(machine: Machine, qemu: Qemu) -> dict[str, Any]:
    """All that a machine's state depends on: QEMU, its whole command line with the contents of the files on it, and
    for hardware virtualization the host's CPU and kernel.

    Raises UsageError where a file cannot be read.
    """
    files = [path for path in (machine.kernel, machine.initrd, machine.firmware) if path]
    named = {path: Path(_content(path)) for path in files}
    plain = replace(
        machine,
        kernel=named.get(machine.kernel) if machine.kernel else None,
        initrd=named.get(machine.initrd) if machine.initrd else None,
        firmware=named.get(machine.firmware) if machine.firmware else None,
    )
    agent = None if machine.channel is Channel.CONSOLE else 0
    wiring = Wiring.sockets(console=0, qmp=0, agent=agent)
    return {
        "format": FORMAT,
        "qemu": qemu.fingerprint,
        "argv": argv(plain, wiring, binary=str(qemu.path), sandbox=qemu.sandbox),
        "disks": [_identity(drive.path, drive.format) for drive in machine.drives],
        "host": host_cpu() if machine.accel != "tcg" else "",
    }


def key_of(known: dict[str, Any]) -> str:
    """The hash of facts, short enough for the name of a file."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def unfit(known: dict[str, Any], machine: Machine, accel: str) -> str:
    """Why ``machine``, saved with these facts, cannot be restored under ``accel`` on this host as it is now; "" where
    nothing has changed. Raises UsageError where a disk is not there.
    """
    for drive, before in zip(machine.drives, known["disks"], strict=True):
        if _identity(drive.path, drive.format) != before:
            return f"the disk {drive.path} has been changed since it was saved"
    if accel == machine.accel and known["host"] not in ("", host_cpu()):
        return "the host has another CPU or kernel than it was saved on"
    return ""


@lru_cache(maxsize=1)
def host_cpu() -> str:
    """The host's CPU and kernel: a state saved by KVM fits no other."""
    text = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
    lines = re.findall(r"^((?:model name|flags|Features|CPU (?:part|implementer|revision))\s*:.*)$", text, re.MULTILINE)
    return f"{os.uname().release} {hashlib.sha256(''.join(lines).encode()).hexdigest()[:16]}"


def _identity(disk: Path, kind: str) -> str:
    """What tells that a disk, or a file that it lies over, has been changed; it may be too large to be read."""
    try:
        stats = [(path.absolute(), path.stat()) for path in chain(disk, kind)]
    except OSError as error:
        raise UsageError(f"the disk {disk} cannot be used: {error.strerror}: {error.filename}") from error
    return "; ".join(
        f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}" for path, stat in stats
    )


def _content(path: Path) -> str:
    """The hash of a file, computed again when anything tells that it has been changed."""
    try:
        stat = path.stat()
        return _digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=256)
def _digest(path: Path, *identity: int) -> str:
    return cache.digest(path)
