"""Everything that can be said of the host, looked at in one go: what ``vmtest doctor`` shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

from vmtest.errors import HostError, UsageError
from vmtest.host.accelerators import AccelStatus, fastest, measure
from vmtest.host.binaries import Qemu, find_qemu
from vmtest.host.cpu import Virtualization, virtualization
from vmtest.host.system import install_hint, require_linux
from vmtest.model.accel import ACCELERATORS
from vmtest.model.arch import ARCHES
from vmtest.progress import SILENT, Progress

__all__ = ["DEFAULT_ARCH", "TOOLS", "Checkup", "Missing", "QemuRow", "Tool", "checkup"]

DEFAULT_ARCH = "x86_64"
"""The architecture of the default guest."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A program other than QEMU: what it is needed for, its Debian package, where it is ("" for missing)."""

    name: str
    package: str
    purpose: str
    path: str = ""


TOOLS = (
    Tool(name="setpriv", package="util-linux", purpose="no QEMU outlives the process that started it"),
    Tool(name="apt-get", package="apt", purpose="fetches the kernels of the Debian guests"),
    Tool(name="dpkg-deb", package="dpkg", purpose="unpacks them"),
)


@dataclass(frozen=True, kw_only=True)
class QemuRow:
    """The QEMU for one architecture, or why there is none, and what to do."""

    arch: str
    binary: str
    qemu: Qemu | None
    why: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Something that is missing, and the command or the advice that brings it."""

    what: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """The findings. ``free_bytes`` is the room in ``cache_path``, None where the cache cannot be made."""

    system: str
    machine: str
    qemus: tuple[QemuRow, ...]
    accels: tuple[AccelStatus, ...]
    virtualization: Virtualization
    tools: tuple[Tool, ...]
    cache_path: str
    free_bytes: int | None
    missing: tuple[Missing, ...]

    def auto(self, arch: str) -> AccelStatus | None:
        """What "auto" takes for guests of that architecture."""
        return fastest(status for status in self.accels if status.arch == arch)

    @property
    def ready(self) -> bool:
        """Whether the default guest can be made and run: QEMU, an accelerator, the tools and the cache."""
        tools = all(tool.path for tool in self.tools)
        return self.auto(DEFAULT_ARCH) is not None and tools and self.free_bytes is not None


def checkup(*, refresh: bool = False, progress: Progress = SILENT) -> Checkup:
    """Look at everything; ``refresh`` asks each QEMU and measures each accelerator again.

    Raises HostError on a host that does not run Linux; all else that is wrong is a finding.
    """
    require_linux()
    qemus = tuple(_qemu(name, refresh, progress) for name in ARCHES)
    accels = tuple(
        measure(row.qemu, accel.name, refresh=refresh, progress=progress)
        for row in qemus
        if row.qemu
        for accel in ACCELERATORS.values()
        # A row for every hypervisor of another system would only be noise.
        if accel.host_system in (None, os.uname().sysname)
    )
    tools = tuple(
        Tool(name=tool.name, package=tool.package, purpose=tool.purpose, path=shutil.which(tool.name) or "")
        for tool in TOOLS
    )
    cache_path, free, cache_missing = _cache()
    kernel = os.uname()
    return Checkup(
        system=f"{kernel.sysname} {kernel.release}",
        machine=kernel.machine,
        qemus=qemus,
        accels=accels,
        virtualization=virtualization(),
        tools=tools,
        cache_path=cache_path,
        free_bytes=free,
        missing=(*missing(qemus, accels, tools), *cache_missing),
    )


def missing(qemus: Iterable[QemuRow], accels: Iterable[AccelStatus], tools: Iterable[Tool]) -> tuple[Missing, ...]:
    """What is missing, the most important first, each command once."""
    found = [Missing(what=f"{row.binary} for {row.arch} guests", command=row.hint) for row in qemus if not row.qemu]
    found += [
        Missing(what=f"{tool.name}: {tool.purpose}", command=install_hint(tool.package, tool.name))
        for tool in tools
        if not tool.path
    ]
    found += [
        Missing(what=f"{status.accel} for {status.arch} guests: {status.why}", command=status.hint)
        for status in accels
        # A guest of a foreign architecture lacks nothing that could be installed.
        if not status.works and status.hint and status.accel in _within_reach(status)
    ]
    return tuple({entry.what: entry for entry in found}.values())


def _within_reach(status: AccelStatus) -> set[str]:
    from vmtest.host.system import host_arch

    return {row.name for row in ACCELERATORS.values() if not row.native_only or status.arch == host_arch()}


def _qemu(arch: str, refresh: bool, progress: Progress) -> QemuRow:
    binary = ARCHES[arch].qemu
    progress.step(f"looking for {binary}")
    try:
        return QemuRow(arch=arch, binary=binary, qemu=find_qemu("", arch, refresh=refresh))
    except (HostError, UsageError) as error:
        return QemuRow(arch=arch, binary=binary, qemu=None, why=error.message, hint=error.hint)


def _cache() -> tuple[str, int | None, tuple[Missing, ...]]:
    from vmtest import cache

    try:
        path = cache.root()
        return str(path), shutil.disk_usage(path).free, ()
    except HostError as error:
        return "", None, (Missing(what=error.message, command=error.hint),)
    except OSError as error:
        return "", None, (Missing(what=f"the cache directory: {error.strerror}", command="set XDG_CACHE_HOME"),)
