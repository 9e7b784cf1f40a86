"""Realtek's RTL8139C+ (its datasheet, and the RTL8139's programming guide): four descriptors in registers, or rings.

What is sent comes back where the transmitter's configuration says so.
"""

from __future__ import annotations

from vmtest.devices.layout import Struct, anything, flags, number, pointer, zeros
from vmtest.devices.models import Model, step
from vmtest.devices.models.frames import frame, pieces
from vmtest.devices.models.microwire import strokes

__all__ = ["Rtl8139"]

SENT = Struct(
    "transmit descriptor",  # C+, 9.2.1: the size of a large send's segments is where the checksums are asked for
    *(anything("length", 16), anything("flags", 16), number("tag", 16, 0, 0x0500, 0xFFFF)),
    flags("", 16, gap1=0, insert=20),
    anything("address", 64),
)
TCP_SUM, UDP_SUM, IP_SUM, LARGE, LAST, FIRST, END, OWN = (1 << bit for bit in (0, 1, 2, 11, 12, 13, 14, 15))
RECEIVED = Struct(
    "receive descriptor",  # C+, 9.2.2
    *(number("size", 13, 2048, 1536, 4096, 64, 100, 0, 0x1FFF), zeros(17)),
    *(anything("end", 1), flags("own", 1, own=95), zeros(32)),
    pointer("address", 64, lambda pen: pen.room(2048), null=0.02),
)
RING = 8

DESCRIPTOR, ADDRESS, BUFFER, COMMAND, READ_TO, MASK, PENDING = 0x10, 0x20, 0x30, 0x37, 0x38, 0x3C, 0x3E
TX_CONFIG, RX_CONFIG, TIMER, EEPROM, ALARM, POLL, PLUS, RX_RING = 0x40, 0x44, 0x48, 0x50, 0x54, 0xD9, 0xE0, 0xE4
RESET, RECEIVE, TRANSMIT = 0x10, 8, 4
BYTES = (0, 5, 8, 15, COMMAND, EEPROM, 0x51, 0x52, 0x58, 0x59, 0x5A, 0x5B, 0x5E, 0xD8, POLL, 0xEC)
WORDS = (READ_TO, 0x3A, MASK, PENDING, 0x5C, 0x60, 0x62, 0x64, 0x66, 0x68, 0x6A, 0x74, PLUS, 0xE2)
LONGS = (0, 8, *range(DESCRIPTOR, BUFFER + 1, 4), TX_CONFIG, RX_CONFIG, TIMER, 0x4C, ALARM, RX_RING, RX_RING + 4)
REGISTERS = [(offset, size) for size, several in ((1, BYTES), (2, WORDS), (4, LONGS)) for offset in several]
SUMS = (IP_SUM, IP_SUM | TCP_SUM, IP_SUM | TCP_SUM, IP_SUM | UDP_SUM, TCP_SUM, UDP_SUM, TCP_SUM | UDP_SUM | IP_SUM)


class Rtl8139(Model):
    """It is worked with as an RTL8139, or as a C+."""

    name = "rtl8139"
    regions = ("rtl8139",)

    def begin(self) -> None:
        """What is received, and where to; what is sent comes back, mostly."""
        pen = self.pen
        self.registers = pen.one_of([area for area in self.areas if area.name == "rtl8139"])
        self.is_plus = pen.chance(0.7)
        self.descriptor = 0
        if not self.is_plus or pen.chance(0.3):
            self._set(COMMAND, RESET, 1)
        if self.is_plus:
            self._set(PLUS, pen.one_of((0x43, 0x63, 0x03, 0x03, 0x02, 0x01)), 2)
            self.ring = pen.room(16 * RING, 256)
            self._set(ADDRESS, self.ring)
            self._set(ADDRESS + 4, 0)
            self.fill()
        else:
            self._set(BUFFER, pen.room(8192 + 16 + 2048, 16))
        self._set(COMMAND, RECEIVE | TRANSMIT, 1)
        self.configure()
        self._set(MASK, pen.one_of((0xFFFF, 0xC07F, 0)), 2)

    def _set(self, register: int, value: int, size: int = 4) -> None:
        self.pen.write(self.registers, register, value, size)

    @step(4)
    def fill(self) -> None:
        """A ring with room for what comes, C+."""
        pen = self.pen
        entries = pen.one_of((1, 4, 16, 16))
        rows = [RECEIVED.draw(pen, end=index == entries - 1) for index in range(entries)]
        self._set(RX_RING, pen.lay(b"".join(rows), 256))
        self._set(RX_RING + 4, 0)
        self._set(COMMAND, RECEIVE | TRANSMIT, 1)
        self.descriptor = 0

    @step(2)
    def configure(self) -> None:
        """Loopback; what is accepted, and how large the buffer is."""
        pen = self.pen
        self._set(TX_CONFIG, 0x03000700 | (0x60000 if pen.chance(0.93) else pen.one_of((0, 0x20000, 0x10000))))
        accepted = pen.one_of((0x0F, 0x0F, 0x0F, 0x0E, 0x3F, 0x0A, 0))
        self._set(RX_CONFIG, 0xE700 | accepted | pen.one_of((0, 0, 0, 0x800, 0x1000, 0x1800)) | (pen.chance(0.5) << 7))

    @step(16)
    def send(self) -> None:
        """A frame."""
        pen = self.pen
        made = frame(pen, jumbo=0.1)
        if not self.is_plus:
            at, size = pieces(pen, made.data, 1)[0]
            slot = self.descriptor if pen.chance(0.95) else pen.count(0, 3)
            self._set(ADDRESS + 4 * slot, at)
            early = pen.one_of((0, 0x80000, 0x3F0000)) | pen.chance(0.03) << 13
            self._set(DESCRIPTOR + 4 * slot, size & 0x1FFF | early)
            self.descriptor = (self.descriptor + 1) % 4
            return
        wanted = 0
        if made.is_tcp and pen.chance(0.5):
            wanted = LARGE | (pen.one_of((1, 100, 536, 1448, 1460, 0x7FF, 0)) if pen.chance(0.9) else pen.value(11))
        elif pen.chance(0.8):
            wanted = pen.one_of(SUMS)
        parts = pieces(pen, made.data, 4, first=made.payload)
        for index, (at, size) in enumerate(parts):
            said = wanted | (OWN if pen.chance(0.98) else 0) | (END if self.descriptor == RING - 1 else 0)
            said |= FIRST if index == 0 and pen.chance(0.97) else 0
            said |= LAST if index == len(parts) - 1 and pen.chance(0.97) else 0
            row = SENT.draw(pen, length=size, flags=said, address=at)
            pen.lay(row, at=self.ring + 16 * self.descriptor)
            self.descriptor = (self.descriptor + 1) % RING
        if pen.chance(0.95):
            self._set(POLL, 0x40, 1)

    @step(3)
    def taken(self) -> None:
        """What came has been read; or it is not clear how far."""
        self._set(READ_TO, self.pen.one_of((0xFFF0, 0, 0x40, 0x100, 0x600, 0x1FF0, self.pen.value(16))), 2)

    @step(2)
    def counted(self) -> None:
        """Statistics, C+: put where the driver wants them."""
        self._set(DESCRIPTOR + 4, 0)
        self._set(DESCRIPTOR, (self.pen.address() & ~0x3F) | 8)

    @step(2)
    def acknowledge(self) -> None:
        """Interrupts, and which there are."""
        self._set(self.pen.one_of((MASK, PENDING)), self.pen.one_of((0, 0xFFFF, 0x4000, 5, 0x10)), 2)

    @step(2)
    def alarm(self) -> None:
        """The timer, and when it is to interrupt."""
        for register, value in ((MASK, 0xFFFF), (TIMER, 0), (ALARM, self.pen.one_of((1, 100, 30000, 0, 0xFFFFFFFF)))):
            self._set(register, value, 2 if register == MASK else 4)

    @step(2)
    def stop_or_start(self) -> None:
        """Receiver and transmitter, or all of it anew; C+ or not."""
        pen = self.pen
        self._set(COMMAND, pen.one_of((0, RECEIVE, TRANSMIT, 0x0C, 0x0C, 0x0C, RESET, 0x1C)), 1)
        if pen.chance(0.3):
            self._set(PLUS, pen.one_of((0, 1, 2, 3, 0x43, 0xFF)), 2)

    @step(1)
    def eeprom(self) -> None:
        """Its wires, and what lets configuration be written."""
        for select, clock, data in strokes(self.pen):
            self._set(EEPROM, 0x80 | select << 3 | clock << 2 | data << 1, 1)
        self.pen.read(self.registers, EEPROM, 1)
        self._set(EEPROM, self.pen.one_of((0, 0xC0, 0xC0, 0x40)), 1)

    @step(4)
    def touch(self) -> None:
        """Any register, with any size."""
        pen = self.pen
        offset, size = pen.one_of(REGISTERS)
        size = size if pen.chance(0.9) else pen.one_of((1, 2, 4))
        if pen.chance(0.4):
            self._set(offset, pen.value(8 * size), size)
        else:
            pen.read(self.registers, offset, size)
