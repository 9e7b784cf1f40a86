"""Boot real guests under QEMU or KVM, drive them, and compare what they do.

>>> import vmtest
>>> with vmtest.boot("linux-x86_64") as guest:
...     guest.run("uname -s").stdout
'Linux\\n'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmtest.booting import boot
    from vmtest.errors import (
        AcceleratorUnavailable,
        BootTimeout,
        ColdBootWarning,
        CommandFailed,
        CommandTimeout,
        ConsoleTimeout,
        Divergence,
        GuestError,
        GuestGone,
        GuestPanicked,
        HostError,
        ImageError,
        QemuDied,
        QmpError,
        SnapshotError,
        TransferFailed,
        UsageError,
        VmtestError,
    )
    from vmtest.guest import Guest
    from vmtest.model.machine import Channel, Drive, Machine, Nic
    from vmtest.model.observation import CrashReport, Result, Severity
    from vmtest.model.spec import GuestSpec
    from vmtest.snapshots import Snapshot

_HOMES = {
    "vmtest.booting": ("boot",),
    "vmtest.errors": (
        "AcceleratorUnavailable",
        "BootTimeout",
        "ColdBootWarning",
        "CommandFailed",
        "CommandTimeout",
        "ConsoleTimeout",
        "Divergence",
        "GuestError",
        "GuestGone",
        "GuestPanicked",
        "HostError",
        "ImageError",
        "QemuDied",
        "QmpError",
        "SnapshotError",
        "TransferFailed",
        "UsageError",
        "VmtestError",
    ),
    "vmtest.guest": ("Guest",),
    "vmtest.model.machine": ("Channel", "Drive", "Machine", "Nic"),
    "vmtest.model.observation": ("CrashReport", "Result", "Severity"),
    "vmtest.model.spec": ("GuestSpec",),
    "vmtest.snapshots": ("Snapshot",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AcceleratorUnavailable",
    "BootTimeout",
    "Channel",
    "ColdBootWarning",
    "CommandFailed",
    "CommandTimeout",
    "ConsoleTimeout",
    "CrashReport",
    "Divergence",
    "Drive",
    "Guest",
    "GuestError",
    "GuestGone",
    "GuestPanicked",
    "GuestSpec",
    "HostError",
    "ImageError",
    "Machine",
    "Nic",
    "QemuDied",
    "QmpError",
    "Result",
    "Severity",
    "Snapshot",
    "SnapshotError",
    "TransferFailed",
    "UsageError",
    "VmtestError",
    "boot",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import vmtest`, and a pytest that boots no guest, stay fast."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
