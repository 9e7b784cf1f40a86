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

__all__ = ["FORMAT", "facts", "host_cpu", "key_of"]

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
        "disks": [_identity(drive.path) for drive in machine.drives],
        "host": host_cpu() if machine.accel != "tcg" else "",
    }


def key_of(known: dict[str, Any]) -> str:
    """The hash of facts, short enough for the name of a file."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def host_cpu() -> str:
    """The host's CPU and kernel: a state saved by KVM fits no other."""
    text = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
    lines = re.findall(r"^((?:model name|flags|Features|CPU (?:part|implementer|revision))\s*:.*)$", text, re.MULTILINE)
    return f"{os.uname().release} {hashlib.sha256(''.join(lines).encode()).hexdigest()[:16]}"


def _identity(path: Path) -> str:
    """What tells that a disk has been changed; it may be too large to be read."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UsageError(f"the disk {path} cannot be used: {error.strerror}") from error
    return f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


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
