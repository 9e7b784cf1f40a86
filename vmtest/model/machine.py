"""What a guest is: a value that says everything QEMU must be told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmtest.errors import UsageError
from vmtest.model.accel import AUTO
from vmtest.model.arch import arch

__all__ = ["Channel", "Drive", "Machine", "Nic"]


class Channel(StrEnum):
    """How commands reach the guest."""

    AUTO = "auto"
    """The agent where the guest has it, else the console."""
    AGENT = "agent"
    """vmtest's own agent, on a virtio-serial port: raw bytes, several commands at a time."""
    QGA = "qga"
    """QEMU's guest agent, as distributions ship it: JSON and base64 on a virtio-serial port."""
    CONSOLE = "console"
    """The shell on the serial console, synchronised by markers. Works wherever there is a shell prompt."""


@dataclass(frozen=True, kw_only=True)
class Drive:
    """A virtio-blk disk. With ``snapshot`` (the default) what the guest writes is gone when it ends."""

    path: Path
    format: str = "raw"
    readonly: bool = False
    snapshot: bool = True


@dataclass(frozen=True, kw_only=True)
class Nic:
    """A network card: ``model`` as ``-device`` takes it, ``backend`` as ``-netdev`` takes it, without an id."""

    model: str = "virtio-net-pci"
    backend: str = "user"
    mac: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine as data. ``qemu.argv.argv`` turns it into a command line; nothing else decides anything.

    ``arch`` names a row of ARCHES. ``accel`` names a row of ACCELERATORS, or is "auto" until ``host`` has
    resolved it. ``machine`` and ``cpu`` are the machine type and CPU model as QEMU takes them, "" for the
    architecture's default. ``memory`` is in MiB. ``append`` is the kernel command line without the console,
    which is added. ``qemu`` is the binary's name or path, "" for the architecture's. ``extra`` are arguments put
    at the end of the command line as they are.
    """

    arch: str = "x86_64"
    accel: str = AUTO
    machine: str = ""
    cpu: str = ""
    memory: int = 256
    smp: int = 1
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    firmware: Path | None = None
    drives: tuple[Drive, ...] = ()
    nics: tuple[Nic, ...] = ()
    channel: Channel = Channel.AUTO
    qemu: str = ""
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        arch(self.arch)
        if self.memory < 1:
            raise UsageError(f"a guest needs memory, and {self.memory} MiB is none", hint="memory is in MiB")
        if self.smp < 1:
            raise UsageError(f"a guest needs at least one CPU, not {self.smp}")
        if self.kernel is None and (self.initrd or self.append):
            raise UsageError("an initrd or a kernel command line was given, but no kernel")

    @property
    def qemu_binary(self) -> str:
        """The QEMU binary's name or path: the one asked for, or the architecture's."""
        return self.qemu or arch(self.arch).qemu
