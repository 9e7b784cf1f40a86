"""The host: which QEMUs it has, and which accelerators really work here, and how fast.

``find_qemu`` and ``choose`` are what a boot needs. Both answer from the cache within a few milliseconds once the
host is known, and start no process then.
"""

from vmtest.host.accelerators import AccelStatus, choose, measure
from vmtest.host.binaries import Qemu, find_emulator, find_qemu
from vmtest.host.cpu import Virtualization, virtualization
from vmtest.host.store import NotKnownYet, known_only
from vmtest.host.system import host_arch, install_hint, require_linux

__all__ = [
    "AccelStatus",
    "NotKnownYet",
    "Qemu",
    "Virtualization",
    "choose",
    "find_emulator",
    "find_qemu",
    "host_arch",
    "install_hint",
    "known_only",
    "measure",
    "require_linux",
    "virtualization",
]
