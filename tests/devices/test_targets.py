"""What QEMU is asked: which registers a device has, on which board, and what it stands on."""

from __future__ import annotations

import pytest

from vmtest.devices.target import target
from vmtest.errors import HostError, UsageError


@pytest.mark.parametrize(
    ("name", "binary", "areas"),
    [
        ("edu", "", {"BAR 0": (0x100000, False)}),
        ("ide-hd", "", {"BAR 4": (0x20, True), "BAR 5": (0x1000, False)}),  # ich9-ahci, on which it hangs
        ("usb-tablet", "", {"BAR 0": (0x4000, False)}),  # an xHCI controller, which is added
        ("scsi-hd", "", {"BAR 0": (0x40, True), "BAR 1": (0x1000, False), "BAR 4": (0x4000, False)}),
        ("nvme", "", {"BAR 0": (0x4000, False)}),  # needs a serial number
        ("isa-serial", "", {"serial": (8, True)}),
        ("e1000", "qemu-system-aarch64", {"BAR 0": (0x20000, False), "BAR 1": (0x40, True)}),
    ],
)
def test_devices(name: str, binary: str, areas: dict[str, tuple[int, bool]]) -> None:
    """A device is found by its registers, its own or its controller's, with all that it needs added."""
    found, _ = target(name, binary=binary)
    assert {area.name: (area.size, area.is_port) for area in found.areas} == areas


@pytest.mark.parametrize(
    ("name", "binary", "names"),
    [
        ("q35", "", {"ioapic", "hpet", "pit", "pci-conf-data"}),
        ("virt", "qemu-system-riscv64", {"goldfish_rtc", "serial", "virtio-mmio"}),
        ("xlnx-zcu102", "qemu-system-aarch64", {"gic_dist", "uart", "ahci"}),
    ],
)
def test_machines(name: str, binary: str, names: set[str]) -> None:
    """Of a whole machine all that answers is found, in memory and ports, and no memory."""
    found, _ = target(name, binary=binary)
    assert {area.name for area in found.areas} >= names
    assert not {area.name for area in found.areas} & {"pc.ram", "pc.bios", "io"}


def test_what_is_none() -> None:
    """What this QEMU does not know, and what has no registers, is one clear error."""
    with pytest.raises(UsageError, match="no device 'e1000x'") as raised:
        target("e1000x")
    assert "e1000e" in raised.value.hint
    with pytest.raises(UsageError, match="no registers that can be reached"):
        target("ipmi-bmc-sim")
    with pytest.raises(HostError, match="does not start"):
        target("edu", arguments=["-nonsense"])
