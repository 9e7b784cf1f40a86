"""What QEMU is asked: which registers a device has, on which board, and what it stands on."""

from __future__ import annotations

import pytest

from vmtest.devices.survey import survey
from vmtest.devices.target import ARENA, target
from vmtest.errors import HostError, UsageError


@pytest.mark.parametrize(
    ("name", "binary", "areas"),
    [
        ("edu", "", {"edu-mmio": (0x100000, False)}),
        ("ide-hd", "", {"ahci": (0x1000, False), "ahci-idp": (0x20, True)}),  # of ich9-ahci, on which it hangs
        ("sd-card", "", {"sdhci": (0x100, False)}),  # on a controller, which is added
        ("scsi-hd,bus=hba.0", "", {"pvscsi-io": (0x8000, False)}),  # on the one that is named
        ("nvme", "", {"nvme": (0x2000, False), "msix-table": (0x410, False), "msix-pba": (0x10, False)}),
        ("isa-serial", "", {"serial": (8, True)}),
        ("e1000", "qemu-system-aarch64", {"e1000-mmio": (0x20000, False), "e1000-io": (0x40, False)}),
        ("virtio-blk-device", "qemu-system-aarch64", {"virtio-mmio": (0x200, False)}),
    ],
)
def test_devices(name: str, binary: str, areas: dict[str, tuple[int, bool]]) -> None:
    """A device is found by its registers, its own or its controller's, with all that it needs added."""
    found, _ = target(name, binary=binary, arguments=("-device", "pvscsi,id=hba") if "hba" in name else ())
    assert {area.name: (area.size, area.is_port) for area in found.areas} == areas
    base, size = found.arena
    assert size == ARENA
    assert base % 0x100000 == 0


def test_messages() -> None:
    """Where a PCI function has capabilities for messages is known; a machine type has all its functions."""
    found, _ = target("e1000e")
    (function,) = found.functions
    assert (function.msi, function.msix) == (0xD0, 0xA0)
    assert len(target("q35")[0].functions) >= 2


def test_survey() -> None:
    """Each device type is fuzzable, with what is known of it, or is not, with the reason."""
    rows = {row.kind: row for row in survey("virtio-*-pci")} | {row.kind: row for row in survey("*ic")}
    assert rows["virtio-net-pci"].models == ["virtio on PCI", "virtio on PCI, legacy"]
    assert rows["virtio-net-pci"].registers > 0x4000
    assert "evdev property is required" in rows["virtio-input-host-pci"].why
    assert "part of a machine" in rows["ioapic"].why
    with pytest.raises(UsageError, match="no device 'nothing"):
        list(survey("nothing-*"))


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
    with pytest.raises(UsageError, match="no device and no machine 'e1000x'") as raised:
        target("e1000x")
    assert "e1000e" in raised.value.hint
    with pytest.raises(UsageError, match="no registers that can be reached"):
        target("ipmi-bmc-sim")
    with pytest.raises(HostError, match="does not start"):
        target("edu", arguments=["-nonsense"])
    bridge = ("-device", "pci-bridge,id=b,chassis_nr=1")
    with pytest.raises(UsageError, match="no registers that can be reached") as raised:
        target("e1000,bus=b", arguments=bridge)  # and not the bridge's
    assert "behind a bridge" in raised.value.hint
    with pytest.raises(UsageError, match="is no property"):
        target("edu,dma")
