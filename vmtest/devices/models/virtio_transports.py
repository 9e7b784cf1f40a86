"""What virtio devices are reached by: PCI, and memory (Virtual I/O Device 1.2, chapter 4)."""

from __future__ import annotations

from typing import ClassVar

from vmtest.devices.models.virtio import Virtio
from vmtest.devices.models.virtio_requests import REQUESTS
from vmtest.devices.models.virtqueues import Queue

__all__ = ["VirtioLegacy", "VirtioMmio", "VirtioPci"]


class VirtioPci(Virtio):
    """Modern PCI (4.1.4)."""

    name = "virtio on PCI"
    regions = ("virtio-pci-common.*", "virtio-pci-notify.*")
    _REGISTERS: ClassVar = {
        **dict.fromkeys((0x00, 0x08, 0x0C, *range(0x20, 0x38, 4)), 4),
        **dict.fromkeys((0x10, 0x16, 0x18, 0x1A, 0x1C), 2),
        0x14: 1,
    }

    def begin(self) -> None:
        """See Virtio."""
        self.common, self.bell = self.needed("virtio-pci-common.*"), self.needed("virtio-pci-notify.*")
        self.kind = self.common.name.removeprefix("virtio-pci-common-virtio-").removesuffix("-device")
        super().begin()

    def status(self, value: int) -> None:
        """See Virtio."""
        self.pen.write(self.common, 0x14, value, 1)

    def accept(self, features: int) -> None:
        """See Virtio."""
        for half in (0, 1):
            self.pen.write(self.common, 8, half)
            self.pen.write(self.common, 0xC, features >> 32 * half)

    def announce(self, index: int, size: int, queue: Queue, steps: int = 15) -> None:
        """See Virtio."""
        pen = self.pen
        pen.write(self.common, 0x16, index, 2)
        if steps & 1:
            pen.write(self.common, 0x18, size, 2)
        if steps & 2:
            for at, address in ((0x20, queue.table), (0x28, queue.available), (0x30, queue.used)):
                pen.write(self.common, at, address)
                pen.write(self.common, at + 4, address >> 32)
        if steps & 4:
            pen.write(self.common, 0x1C, 1, 2)
        if steps & 8 and pen.chance(0.2):
            pen.write(self.common, 0x1A, pen.one_of((0, 1, 0xFFFF)), 2)

    def notify(self, index: int) -> None:
        """See Virtio."""
        self.pen.write(self.bell, 4 * index, index, 2)

    def any_register(self) -> None:
        """See Virtio."""
        offset = self.pen.one_of(tuple(self._REGISTERS))
        size = self._REGISTERS[offset]
        self.pen.write(self.common, offset, self.pen.value(8 * size), size)

    def of_device(self, offset: int, value: int | None, size: int) -> None:
        """See Virtio."""
        if area := self.area("virtio-pci-device.*"):
            self.pen.read(area, offset, size) if value is None else self.pen.write(area, offset, value, size)


class VirtioLegacy(Virtio):
    """Legacy PCI, by ports (4.1.4.10)."""

    name = "virtio on PCI, legacy"
    regions = ("virtio-pci",)
    legacy = True
    _REGISTERS: ClassVar = {4: 4, 8: 4, 0xE: 2, 0x10: 2, 0x12: 1, 0x13: 1, 0x14: 2, 0x16: 2}

    def begin(self) -> None:
        """See Virtio."""
        self.ports = self.needed("virtio-pci")
        named = self.area("virtio-pci-common.*")
        self.kind = named.name.removeprefix("virtio-pci-common-virtio-") if named else ""
        super().begin()

    def status(self, value: int) -> None:
        """See Virtio."""
        self.pen.write(self.ports, 0x12, value, 1)

    def accept(self, features: int) -> None:
        """See Virtio."""
        self.pen.write(self.ports, 4, features)

    def announce(self, index: int, size: int, queue: Queue, steps: int = 15) -> None:
        """See Virtio: the size is the device's, and all is behind the table."""
        self.pen.write(self.ports, 0xE, index, 2)
        self.pen.write(self.ports, 8, queue.table >> 12 if steps & 2 else self.pen.one_of((0, 1, 0x38380000)))

    def notify(self, index: int) -> None:
        """See Virtio."""
        self.pen.write(self.ports, 0x10, index, 2)

    def any_register(self) -> None:
        """See Virtio."""
        offset = self.pen.one_of(tuple(self._REGISTERS))
        size = self._REGISTERS[offset]
        self.pen.write(self.ports, offset, self.pen.value(8 * size), size)

    def of_device(self, offset: int, value: int | None, size: int) -> None:
        """See Virtio."""
        at, size = 0x14 + offset, min(size, 4)
        self.pen.read(self.ports, at, size) if value is None else self.pen.write(self.ports, at, value, size)


class VirtioMmio(Virtio):
    """In memory (4.2.2)."""

    name = "virtio in memory"
    regions = ("virtio-mmio",)
    _REGISTERS: ClassVar = (
        0x14,
        0x20,
        0x24,
        0x28,
        0x30,
        0x38,
        0x3C,
        0x40,
        0x44,
        0x50,
        0x64,
        0x70,
        0x80,
        0x84,
        0x90,
        0x94,
        0xA0,
        0xA4,
    )

    def begin(self) -> None:
        """See Virtio."""
        self.registers = self.needed("virtio-mmio")
        self.legacy = self.pen.chance(0.7)
        named = self.pen.name.removeprefix("virtio-").partition("-")[0]
        self.kind = named if named in REQUESTS else self.pen.one_of(tuple(REQUESTS))
        super().begin()

    def status(self, value: int) -> None:
        """See Virtio."""
        self.pen.write(self.registers, 0x70, value)

    def accept(self, features: int) -> None:
        """See Virtio."""
        for half in (0, 1):
            self.pen.write(self.registers, 0x24, half)
            self.pen.write(self.registers, 0x20, features >> 32 * half)

    def announce(self, index: int, size: int, queue: Queue, steps: int = 15) -> None:
        """See Virtio."""
        pen = self.pen
        pen.write(self.registers, 0x30, index)
        if steps & 1:
            pen.write(self.registers, 0x38, size)
        if self.legacy:  # what QEMU has by default: one page number
            pen.write(self.registers, 0x28, 4096)
            pen.write(self.registers, 0x3C, pen.one_of((4096, 4096, 4, 0, 3)))
            pen.write(self.registers, 0x40, queue.table >> 12)
            return
        if steps & 2:
            for at, address in ((0x80, queue.table), (0x90, queue.available), (0xA0, queue.used)):
                pen.write(self.registers, at, address)
                pen.write(self.registers, at + 4, address >> 32)
        if steps & 4:
            pen.write(self.registers, 0x44, 1)

    def notify(self, index: int) -> None:
        """See Virtio."""
        self.pen.write(self.registers, 0x50, index)

    def any_register(self) -> None:
        """See Virtio."""
        self.pen.write(self.registers, self.pen.one_of(self._REGISTERS), self.pen.value(32))

    def of_device(self, offset: int, value: int | None, size: int) -> None:
        """See Virtio."""
        self.pen.read(self.registers, 0x100 + offset, size) if value is None else self.pen.write(
            self.registers, 0x100 + offset, value, size
        )
