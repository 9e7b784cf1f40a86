"""CPU virtualization is read from the kernel's own words, for each architecture."""

from __future__ import annotations

import pytest

from vmtest.host.cpu import hypervisor, notes, visible


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "kvm", "extension"),
    [
        ("x86_64", "flags\t\t: fpu vmx sse\n", True, "VT-x"),
        ("x86_64", "flags\t\t: fpu svm sse\n", False, "AMD-V"),
        ("x86_64", "flags\t\t: fpu hypervisor svm_lock\n", True, "none visible"),
        ("aarch64", "Features\t: fp asimd\n", True, "Arm EL2"),
        ("aarch64", "Features\t: fp asimd\n", False, "none visible"),
        ("riscv64", "isa\t\t: rv64imafdch_zicsr_zifencei\n", True, "RISC-V H"),
        ("riscv64", "isa\t\t: rv64imafdc_zihintpause\n", False, "none visible"),
        ("x86_64", "", False, "none visible"),
    ],
)
def test_the_extension_is_what_cpuinfo_shows(machine: str, cpuinfo: str, kvm: bool, extension: str) -> None:
    """Whole words only, and on Arm by KVM's node, since user space cannot see EL2."""
    assert visible(machine, cpuinfo, kvm_exists=kvm) == extension


@pytest.mark.parametrize(
    ("cpuinfo", "vendor", "name"),
    [
        ("flags : fpu hypervisor", "QEMU\n", "QEMU"),
        ("flags : fpu hypervisor", "VMware, Inc.", "VMware"),
        ("flags : fpu hypervisor", "", "a hypervisor"),
        ("flags : fpu", "Amazon EC2", ""),
        ("Features : fp", "QEMU", "QEMU"),
        ("Features : fp", "Ampere", ""),
    ],
)
def test_a_virtual_host_is_recognised(cpuinfo: str, vendor: str, name: str) -> None:
    """x86 by CPUID, whatever a cloud's bare machine calls itself; others by firmware."""
    assert hypervisor(cpuinfo, {"/sys/class/dmi/id/sys_vendor": vendor}) == name


def test_the_notes_say_what_the_facts_mean() -> None:
    """KVM without a visible extension is explained; a missing one gets the advice for hardware or for a VM."""
    assert "CONFIG_KVM_PVM" in " ".join(notes("none visible", "a hypervisor", kvm=True))
    assert "nested virtualization" in " ".join(notes("none visible", "QEMU", kvm=False))
    assert "firmware" in " ".join(notes("none visible", "", kvm=False))
    assert notes("VT-x", "", kvm=True) == ()
