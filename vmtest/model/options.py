"""The options by which a guest is described: one row each, read by the pytest plugin (``--vm-NAME``) and the CLI."""

from __future__ import annotations

from dataclasses import dataclass

from vmtest.model.accel import ACCELERATORS, AUTO
from vmtest.model.machine import Channel

__all__ = ["OPTIONS", "Option"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """``field`` is GuestSpec's; ``flag`` the option's name without dashes; ``off`` says that giving it means False."""

    field: str
    metavar: str
    help: str
    off: bool = False

    @property
    def flag(self) -> str:
        """The name of the option: "timeout-scale", "no-trim"."""
        name = self.field.replace("_", "-")
        return f"no-{name}" if self.off else name


OPTIONS: tuple[Option, ...] = (
    Option(
        field="accel",
        metavar="NAME",
        help=f"accelerator: {AUTO} (the fastest that was measured to work here, the default), "
        f"{', '.join(ACCELERATORS)}; a named one is never replaced by another",
    ),
    Option(field="kernel", metavar="FILE", help="boot this kernel (bzImage, Image, vmlinux) in place of the guest's"),
    Option(field="initrd", metavar="FILE", help="boot this initramfs in place of the guest's"),
    Option(
        field="disk", metavar="FILE", help="attach this disk image (raw or qcow2); the guest's writes are discarded"
    ),
    Option(field="append", metavar="TEXT", help="add this to the kernel command line"),
    Option(
        field="trim",
        metavar="",
        help="leave out what the guest's kernel command line has only to boot faster (see image.toml)",
        off=True,
    ),
    Option(field="memory", metavar="SIZE", help="memory in MiB, or as in 2G"),
    Option(field="smp", metavar="N", help="number of CPUs"),
    Option(field="machine", metavar="TYPE", help="QEMU machine type, with properties if need be"),
    Option(field="cpu", metavar="MODEL", help="QEMU CPU model"),
    Option(field="qemu", metavar="PATH", help="QEMU binary: a path, or a name on PATH"),
    Option(field="nic", metavar="BACKEND", help="network back-end, such as user; by default a guest has no network"),
    Option(
        field="channel",
        metavar="WAY",
        help=f"how commands reach the guest: {', '.join(Channel)} (auto: the agent if there is one, else the console)",
    ),
    Option(field="boot_timeout", metavar="SECONDS", help="how long a guest may take until it answers (120)"),
    Option(
        field="timeout", metavar="SECONDS", help="how long a command or an expect may take (60; vmtest run: no limit)"
    ),
    Option(
        field="timeout_scale", metavar="FACTOR", help="multiply all timeouts: for slow hosts (or VMTEST_TIMEOUT_SCALE)"
    ),
)
