"""The accelerators that QEMU can run a guest with: one row each."""

from __future__ import annotations

from dataclasses import dataclass

from vmtest.errors import UsageError

__all__ = ["ACCELERATORS", "AUTO", "Accelerator", "accelerator"]

AUTO = "auto"
"""The user leaves the choice to us: the fastest accelerator that was measured to work."""


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """How QEMU executes guest code.

    ``name`` is what ``-accel`` takes. ``host_system`` is the ``platform.system()`` on which it can exist at all,
    or None for any. ``native_only`` says that guest and host must have the same architecture. ``device`` is the
    node that must be open to us. ``properties`` are appended to ``-accel NAME``. ``cpu`` overrides the
    architecture's default CPU model; ``cpu_fallbacks`` are tried in order where QEMU fails with that.
    ``elsewhere`` is the reason given on a host of another system.
    """

    name: str
    what: str
    host_system: str | None = None
    native_only: bool = True
    device: str | None = None
    properties: tuple[str, ...] = ()
    cpu: str | None = None
    cpu_fallbacks: tuple[str, ...] = ()
    elsewhere: str = ""


ACCELERATORS: dict[str, Accelerator] = {
    row.name: row
    for row in (
        Accelerator(
            name="tcg",
            what="QEMU's own emulator: translates guest code to host code, any architecture on any host",
            native_only=False,
        ),
        Accelerator(
            name="kvm",
            what="the Linux kernel as hypervisor, on Intel VT-x, AMD-V or Arm EL2",
            host_system="Linux",
            device="/dev/kvm",
            cpu="host",
            # A KVM inside a VM (seen with CONFIG_KVM_PVM) may offer IA32_ARCH_CAPABILITIES (MSR 0x10a) and then
            # refuse the value: QEMU 7.2 aborts with "error: failed to set MSR 0x10a".
            cpu_fallbacks=("host,-arch-capabilities",),
            elsewhere="KVM is part of the Linux kernel; this host does not run Linux",
        ),
        Accelerator(
            name="hvf",
            what="Apple's Hypervisor.framework",
            host_system="Darwin",
            cpu="host",
            elsewhere="Hypervisor.framework is part of macOS; vmtest runs on Linux hosts",
        ),
        Accelerator(
            name="whpx",
            what="the Windows Hypervisor Platform",
            host_system="Windows",
            elsewhere="the Windows Hypervisor Platform is part of Windows; vmtest runs on Linux hosts",
        ),
    )
}


def accelerator(name: str) -> Accelerator:
    """The row of that name. Raises UsageError for a name that is none, listing those that are."""
    try:
        return ACCELERATORS[name]
    except KeyError:
        known = ", ".join([AUTO, *ACCELERATORS])
        raise UsageError(f"unknown accelerator {name!r}", hint=f"choose one of: {known}") from None
