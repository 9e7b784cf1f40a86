"""How much memory is left for guests: of the host, and of the control group that we are in."""

from __future__ import annotations

import re
from pathlib import Path

from vmtest.errors import HostError

__all__ = ["BOOT", "CLONE", "RESERVE", "available", "require"]

CLONE = 48
"""MiB that a clone takes before it does anything: 25 of QEMU, the rest for what its first commands touch."""
BOOT = 128
"""MiB that a machine takes until it has booted: what a small Linux and its firmware touch, and QEMU."""
RESERVE = 256
"""MiB that a pool leaves free: what its guests will write is theirs alone."""

_CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """MiB that can be had without swapping."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    amounts = [int(found[1]) >> 10] if found else []
    return min([*amounts, *_of_groups()], default=0)


def require(needed: int, soon: int) -> None:
    """Raise HostError where there is no room for another guest, which takes ``needed`` MiB if it uses all it has.

    Only what it takes ``soon``, CLONE or BOOT, is asked for: most guests never touch the rest.
    """
    least = min(needed, soon)
    left = available()
    if left < least:
        raise HostError(
            f"there is no memory for another guest: {left} MiB are available, and it takes at least {least} MiB",
            hint="run fewer at a time (pytest -n, --vm-pool), with less memory (--vm-memory), or raise the limit of "
            "this container or control group",
        )


def _of_groups() -> list[int]:
    """MiB left below each limit of the control groups that we are in; the file cache counts as free.

    cgroup v2: memory.max and memory.current; v1: memory.limit_in_bytes and memory.usage_in_bytes
    (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst).
    """
    left = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        root = _CGROUP / "memory" if controllers else _CGROUP
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            limit, usage = (_read(group / name).strip() for name in names)
            if limit.isdigit() and usage.isdigit():
                # v1 has it of the group alone, and by another name of those below too, as its usage is.
                kind = "total_inactive_file" if controllers else "inactive_file"
                cache = re.search(rf"^{kind} (\d+)$", _read(group / "memory.stat"), re.MULTILINE)
                left.append(max(0, int(limit) - int(usage) + (int(cache[1]) if cache else 0)) >> 20)
            group = group.parent
    return left


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
