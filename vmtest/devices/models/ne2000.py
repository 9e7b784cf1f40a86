"""The NE2000 (National Semiconductor's DP8390D, its datasheet), and the RTL8029, which is one on PCI.

Its memory is its own: frames go through a port. QEMU's loops nothing back.
"""

from __future__ import annotations

from vmtest.devices.models import Model, step
from vmtest.devices.models.frames import MAC, frame

__all__ = ["Ne2000"]

COMMAND, START, STOP, BOUNDARY, TX_PAGE, TX_COUNT, STATUS, DMA_AT, DMA_COUNT = 0, 1, 2, 3, 4, 5, 7, 8, 10
RX_CONFIG, TX_CONFIG, DATA_CONFIG, MASK, DATA, RESET = 12, 13, 14, 15, 0x10, 0x1F
CURRENT = 7
"""Of page 1, where the address is at 1 and the groups are at 8."""
HALT, GO, SEND, READ, WRITE, NO_DMA, PAGE = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40
FIRST, LAST = 0x40, 0x80
"""Pages of 256 bytes: its memory is between."""
PLACES = (0x4000, 0x4600, 0, 0x1F, 0x20, 0x3FFF, 0x7FFE, 0x7FFF, 0x8000, 0xBFFF, 0xC000, 0xFFFF)


class Ne2000(Model):
    """A page to send from, and a ring of those that are received."""

    name = "ne2000"
    regions = ("ne2000",)

    def begin(self) -> None:
        """As a driver has it (DP8390D, 7.0: the initialization sequence)."""
        pen = self.pen
        self.registers = self.needed("ne2000")
        if pen.chance(0.3):
            pen.read(self.registers, RESET, 1)
        self._set(COMMAND, HALT | NO_DMA)
        self._set(DATA_CONFIG, pen.one_of((0x49, 0x48, 0x49, 0x4B)))
        self._set(RX_CONFIG, pen.one_of((0x04, 0x0C, 0x1C, 0x20)))
        self._set(TX_CONFIG, pen.one_of((0, 2)))
        right = (FIRST + 6, LAST, FIRST + 6)
        for register, value in zip((START, STOP, BOUNDARY), right, strict=True):
            self._set(register, value if pen.chance(0.95) else pen.value(8))
        self._set(STATUS, 0xFF)
        self._set(MASK, pen.one_of((0x3F, 0x7F, 0)))
        self._set(COMMAND, HALT | NO_DMA | PAGE)
        for index, value in enumerate(MAC):
            self._set(1 + index, value)
        self._set(CURRENT, FIRST + 7)
        self._set(COMMAND, GO | NO_DMA)

    def _set(self, register: int, value: int) -> None:
        self.pen.write(self.registers, register, value, 1)

    def _transfer(self, at: int, count: int, direction: int) -> None:
        """What the data port is to move."""
        for register, value in ((DMA_AT, at), (DMA_COUNT, count)):
            self._set(register, value & 0xFF)
            self._set(register + 1, value >> 8)
        self._set(COMMAND, GO | direction)

    @step(8)
    def send(self) -> None:
        """A frame: into its memory, by words of one size, and out."""
        pen = self.pen
        data = frame(pen, jumbo=0).data[:200]
        self._transfer(pen.one_of(PLACES[:2]) if pen.chance(0.9) else pen.one_of(PLACES), len(data), WRITE)
        size = pen.one_of((1, 2, 4, 4))
        for at in range(0, min(len(data), 14 * size), size):
            pen.write(self.registers, DATA, int.from_bytes(data[at : at + size], "little"), size)
        count = len(data) if pen.chance(0.9) else pen.one_of((0, 1, 14, 1514, 0x4000, 0xFFFF))
        self._set(TX_PAGE, FIRST if pen.chance(0.9) else pen.one_of((0, 0x3F, 0x7F, 0x80, 0xBF, 0xC0, 0xFF)))
        self._set(TX_COUNT, count & 0xFF)
        self._set(TX_COUNT + 1, count >> 8)
        self._set(COMMAND, GO | SEND | pen.one_of((NO_DMA, NO_DMA, READ, WRITE)))

    @step(6)
    def move(self) -> None:
        """To and from anywhere in its memory, with too much or too little said."""
        pen = self.pen
        direction = pen.one_of((READ, READ, WRITE, WRITE, READ | WRITE, NO_DMA))
        self._transfer(pen.one_of(PLACES), pen.one_of((0, 1, 2, 3, 6, 32, 256, 0xFFFF)), direction)
        for _ in range(pen.count(1, 12)):
            size = pen.one_of((1, 2, 2, 4))
            at = DATA + (pen.count(0, 14) if pen.chance(0.1) else 0)
            if pen.chance(0.5):
                pen.read(self.registers, at, size)
            else:
                pen.write(self.registers, at, pen.value(8 * size), size)

    @step(3)
    def control(self) -> None:
        """It stops, or goes on; another page of registers."""
        self._set(COMMAND, self.pen.one_of((HALT | NO_DMA, GO | NO_DMA, GO, SEND | GO)) | self.pen.count(0, 3) * PAGE)

    @step(5)
    def touch(self) -> None:
        """Any register of any page; a reset."""
        pen = self.pen
        register = RESET if pen.chance(0.1) else pen.count(0, 15)
        size = 1 if pen.chance(0.9) else pen.one_of((2, 4))
        if pen.chance(0.5):
            self._set(COMMAND, GO | NO_DMA | pen.count(0, 3) * PAGE)
        if pen.chance(0.5):
            pen.read(self.registers, register, size)
        else:
            pen.write(self.registers, register, pen.value(8 * size), size)
