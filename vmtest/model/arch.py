"""The architectures that guests can have: one row each."""

from __future__ import annotations

from dataclasses import dataclass

from vmtest.errors import UsageError

__all__ = ["ARCHES", "Arch", "arch"]


@dataclass(frozen=True, kw_only=True)
class Arch:
    """What must be known of an architecture to run a guest of it.

    ``name`` is the kernel's (``uname -m``); ``aliases`` are other names that people use. ``qemu`` is the binary,
    ``qemu_package`` the Debian package that has it. ``machine`` is the default machine type and ``machine_kvm``
    the properties that it needs under KVM on hosts without SMM emulation. ``cpu`` is the default model under TCG.
    ``console`` is the guest's name of the first serial port, ``console_append`` what goes on the kernel command
    line for it. ``debian`` is Debian's name of the architecture.
    ``kernel_magics`` are (offset, bytes) pairs of which a bootable kernel file that is no ELF has at least one;
    ``elf_machine`` is e_machine in an ELF's header. ``flash`` is how many MiB of flash the default machine has.
    ``kernel_file`` is where a kernel tree's ``make`` leaves it.
    """

    name: str
    qemu: str
    qemu_package: str
    machine: str
    cpu: str
    console: str
    debian: str
    kernel_magics: tuple[tuple[int, bytes], ...]
    kernel_file: str
    elf_machine: int
    aliases: tuple[str, ...] = ()
    machine_kvm: str = ""
    flash: int = 0
    baud: int = 115200

    @property
    def console_append(self) -> str:
        """What tells the kernel to use the serial console, at a speed whose FIFO time-outs do not matter."""
        return f"console={self.console},{self.baud}"


# The arm64 and riscv image headers share their first fields; an EFI-stub kernel starts with "MZ".
# Source: Documentation/arch/{arm64/booting,riscv/boot-image-header}.rst and Documentation/arch/x86/boot.rst.
_GZIP = (0, b"\x1f\x8b")

ARCHES: dict[str, Arch] = {
    row.name: row
    for row in (
        Arch(
            name="x86_64",
            qemu="qemu-system-x86_64",
            qemu_package="qemu-system-x86",
            machine="q35",
            machine_kvm="smm=off",
            cpu="max",
            console="ttyS0",
            debian="amd64",
            aliases=("amd64", "x64"),
            kernel_magics=((0x202, b"HdrS"),),
            kernel_file="arch/x86/boot/bzImage",
            elf_machine=62,
        ),
        Arch(
            name="aarch64",
            qemu="qemu-system-aarch64",
            qemu_package="qemu-system-arm",
            machine="virt",
            flash=128,
            cpu="cortex-a57",
            console="ttyAMA0",
            debian="arm64",
            aliases=("arm64",),
            kernel_magics=((0x38, b"ARM\x64"), _GZIP),
            kernel_file="arch/arm64/boot/Image",
            elf_machine=183,
        ),
        Arch(
            name="riscv64",
            qemu="qemu-system-riscv64",
            qemu_package="qemu-system-misc",
            machine="virt",
            flash=64,
            cpu="rv64",
            console="ttyS0",
            debian="riscv64",
            kernel_magics=((0x38, b"RSC\x05"), _GZIP),
            kernel_file="arch/riscv/boot/Image",
            elf_machine=243,
        ),
    )
}


def arch(name: str) -> Arch:
    """The row of that name or alias. Raises UsageError for a name that is none, listing those that are."""
    for row in ARCHES.values():
        if name == row.name or name in row.aliases:
            return row
    raise UsageError(f"unknown architecture {name!r}", hint=f"choose one of: {', '.join(ARCHES)}")
