"""What the CPU and the kernel show of virtualization. Only a hint: whether KVM works, a probe says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vmtest.host.devices import device_state

__all__ = ["Virtualization", "hypervisor", "model", "virtualization", "visible"]

NONE_VISIBLE = "none visible"


@dataclass(frozen=True, kw_only=True)
class Virtualization:
    """``extension`` is "VT-x", "AMD-V", "Arm EL2", "RISC-V H" or "none visible".

    ``hypervisor`` names what this host itself runs under: "" for bare metal as far as can be seen. ``kvm`` is the
    state of /dev/kvm in words, "" where it opens. ``notes`` are sentences for people.
    """

    extension: str
    hypervisor: str
    kvm: str
    notes: tuple[str, ...] = ()


def visible(machine: str, cpuinfo: str, *, kvm_exists: bool) -> str:
    """The extension that a /proc/cpuinfo shows on that kernel architecture (``uname -m``).

    x86: the flags vmx (Intel SDM vol. 3C, "Discovering support for VMX") and svm (AMD APM vol. 2, "SVM").
    Arm: user space cannot see EL2, but KVM makes its node only where the kernel was entered in it.
    RISC-V: the letter h among the single-letter extensions of the isa line.
    """
    flags = set(_field(cpuinfo, "flags").split())
    if "vmx" in flags:
        return "VT-x"
    if "svm" in flags:
        return "AMD-V"
    if machine in ("aarch64", "arm64") and kvm_exists:
        return "Arm EL2"
    single = _field(cpuinfo, "isa").partition("_")[0]
    return "RISC-V H" if re.fullmatch(r"rv\d+\w*h\w*", single) else NONE_VISIBLE


def hypervisor(cpuinfo: str, clues: dict[str, str]) -> str:
    """What we run under. ``clues`` are the contents of the files in CLUES, "" for those that do not exist."""
    flags = _field(cpuinfo, "flags").split()
    # x86 says it for certain: CPUID leaf 1, ECX bit 31 is reserved for hypervisors and 0 on hardware, also on the
    # bare machines of clouds, whose firmware names the cloud all the same.
    if flags and "hypervisor" not in flags:
        return ""
    for text in clues.values():
        if text.strip("\0 \n"):
            for mark, name in _MAKERS.items():
                if mark in text.lower():
                    return name
    return "a hypervisor" if flags else ""


CLUES = (
    "/sys/hypervisor/type",
    "/sys/class/dmi/id/sys_vendor",
    "/sys/class/dmi/id/product_name",
    "/proc/device-tree/hypervisor/compatible",
)
_MAKERS = {
    "kvm": "KVM",
    "qemu": "QEMU",
    "linux,dummy-virt": "QEMU",
    "vmware": "VMware",
    "virtualbox": "VirtualBox",
    "xen": "Xen",
    "microsoft corporation virtual": "Hyper-V",
    "virtual machine": "Hyper-V",
    "amazon ec2": "Amazon EC2",
    "google compute engine": "Google Compute Engine",
    "parallels": "Parallels",
    "bhyve": "bhyve",
}


def virtualization() -> Virtualization:
    """What can be seen here, without running anything."""
    state = device_state("/dev/kvm")
    cpuinfo = _read("/proc/cpuinfo")
    extension = visible(os.uname().machine, cpuinfo, kvm_exists=state.exists)
    above = hypervisor(cpuinfo, {path: _read(path) for path in CLUES})
    return Virtualization(
        extension=extension, hypervisor=above, kvm=state.why, notes=notes(extension, above, kvm=not state.why)
    )


def notes(extension: str, above: str, *, kvm: bool) -> tuple[str, ...]:
    """What the facts together mean."""
    said = []
    if above:
        said.append(
            f"this host is itself a virtual machine under {above}: KVM here is nested, and slower than on hardware"
        )
    if extension == NONE_VISIBLE and kvm:
        said.append(
            "/dev/kvm opens although the CPU shows no virtualization: a KVM in software (such as CONFIG_KVM_PVM) "
            "runs a guest's kernel mode in an instruction emulator, slower than TCG; trust the measured speeds"
        )
    elif extension == NONE_VISIBLE and above:
        said.append("its host must offer nested virtualization (such as -cpu host) before KVM can work in here")
    elif extension == NONE_VISIBLE:
        said.append("the CPU has no virtualization, or the firmware switched it off: see its setup for VT-x or SVM")
    return tuple(said)


def model() -> str:
    """The CPU's name, and its microcode's version where it has one."""
    cpuinfo = _read("/proc/cpuinfo")
    name, microcode = _field(cpuinfo, "model name") or "unknown CPU", _field(cpuinfo, "microcode")
    return f"{name}, microcode {microcode}" if microcode else name


def _field(cpuinfo: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:(.*)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
