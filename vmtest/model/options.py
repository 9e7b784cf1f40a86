"""The options by which a guest is described: one row each, read by the pytest plugin (``--vm-NAME``) and the CLI."""

from __future__ import annotations

from dataclasses import dataclass

from vmtest.model.accel import ACCELERATORS, AUTO
from vmtest.model.machine import Channel

__all__ = ["OPTIONS", "Option"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """``field`` is GuestSpec's; ``flag`` the option's name without dashes, the field's if "". An option without a value
    ``gives`` True or False.
    """

    field: str
    metavar: str
    help: str
    flag: str = ""
    gives: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "flag", self.flag or self.field.replace("_", "-"))


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
        flag="no-trim",
        gives=False,
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
    Option(
        field="cold",
        metavar="",
        help="boot each guest, instead of cloning one that was booted once and kept as a template",
        gives=True,
    ),
    Option(
        field="snapshot",
        metavar="NAME",
        help="begin in the state of this snapshot (vmtest snapshot list)",
        flag="from",
    ),
    Option(
        field="hostname", metavar="NAME", help="the guest's host name; with it a machine-id of its own, if it has any"
    ),
    Option(field="boot_timeout", metavar="SECONDS", help="how long a guest may take until it answers (120)"),
    Option(
        field="timeout", metavar="SECONDS", help="how long a command or an expect may take (60; vmtest run: no limit)"
    ),
    Option(
        field="timeout_scale", metavar="FACTOR", help="multiply all timeouts: for slow hosts (or VMTEST_TIMEOUT_SCALE)"
    ),
)
