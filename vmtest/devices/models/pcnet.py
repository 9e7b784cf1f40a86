"""AMD's PCnet-PCI II (Am79C970A's datasheet): an initialization block, and rings in one of four styles.

What is sent comes back where the mode says so.
"""

from __future__ import annotations

from vmtest.devices.layout import Struct, anything, constant, number, zeros
from vmtest.devices.models import Model, step
from vmtest.devices.models.frames import MAC, frame, pieces

__all__ = ["Pcnet"]

LENGTH = (anything("length", 12), constant("ones", 4, 15))
NARROW = Struct(
    "descriptor, 16 bits", anything("address", 24), anything("status", 8), *LENGTH, number("miscellaneous", 16, 0)
)
STATUS = (zeros(8), anything("status", 8))
WIDE = Struct(
    "descriptor, 32 bits", anything("address", 32), *LENGTH, *STATUS, number("miscellaneous", 32, 0), anything("", 32)
)
BURST = Struct(
    "descriptor, style 3", number("miscellaneous", 32, 0), *LENGTH, *STATUS, anything("address", 32), anything("", 32)
)
OWN, CHECKED, TOLD, FIRST, LAST = 0x80, 0x20, 0x10, 2, 1
"""Of a descriptor's status."""

INTERNAL, LOOPED = 0x40, 4
MODES = (INTERNAL | LOOPED, LOOPED, INTERNAL | LOOPED, LOOPED | 8, LOOPED | 0x4000, LOOPED | 0x2000, 0, LOOPED | 1, 2)
INIT_NARROW = Struct(
    "initialization block, 16 bits",
    *(anything("mode", 16), anything("address", 48), number("groups", 64, 0, (1 << 64) - 1)),
    *(anything("receive", 24), zeros(5), anything("receive length", 3)),
    *(anything("transmit", 24), zeros(5), anything("transmit length", 3)),
)
INIT_WIDE = Struct(
    "initialization block, 32 bits",
    *(anything("mode", 16), zeros(4), anything("receive length", 4), zeros(4), anything("transmit length", 4)),
    *(anything("address", 48), zeros(16), number("groups", 64, 0, (1 << 64) - 1)),
    *(anything("receive", 32), anything("transmit", 32)),
)
INIT, START, STOP, DEMAND, ENABLE, CAUSES = 1, 2, 4, 8, 0x40, 0x7F00
"""Of CSR0."""
STYLE = 20
CONTROLS = (
    *((3, 0, 0x5F00, 0x40), (4, 0x0115, 0x4915, 0x1000, 0x80, 0xFFFF), (5, 0, 1, 0x8000, 0xFFFF), (15, *MODES)),
    *((46, 0, 0xFFFF), (47, 0, 0xFFFF), (58, 0, 2, 3), (76, 0, 1, 0xFFFF, 0xFFF0), (78, 0, 1, 0xFFFF), (112, 0)),
    *((number, 0, 0xFFFF, 0x10) for number in (1, 2, 8, 12, 24, 25, 26, 28, 30, 31, 34, 36, 40, 72, 74)),
)


class Pcnet(Model):
    """It is stopped where another mode is to be, and started anew; or is not stopped."""

    name = "pcnet"
    regions = ("pcnet-mmio",)

    def begin(self) -> None:
        """A reset, a style, its block; it goes."""
        pen = self.pen
        self.registers = pen.one_of([area for area in self.areas if area.name in ("pcnet-mmio", "pcnet-io")])
        pen.read(self.registers, 0x14, 2)
        pen.read(self.registers, 0x18, 4)
        if is_wide := pen.chance(0.5):
            pen.write(self.registers, 0x10, 0)
        self.size, self.select, self.data, self.bus = (4, 0x14, 0x10, 0x1C) if is_wide else (2, 0x12, 0x10, 0x16)
        self.style = pen.one_of((0, 0, 2, 2, 3, 3, 1))
        self._set(STYLE, self.style, self.bus)
        self.buffers = [pen.room(2048, 4) for _ in range(2)]
        self.restart()

    def _set(self, register: int, value: int, data: int | None = None) -> None:
        self.pen.write(self.registers, self.select, register, self.size)
        self.pen.write(self.registers, self.data if data is None else data, value, self.size)

    def _row(self, at: int, size: int, status: int) -> bytes:
        kind = (NARROW, WIDE, WIDE, BURST)[self.style]
        return kind.draw(self.pen, address=at, length=-size, status=status)

    @step(3)
    def restart(self) -> None:
        """Both rings anew."""
        pen = self.pen
        self._set(0, STOP)
        count, sent = pen.one_of((0, 1, 2, 3, 4)), pen.one_of((1, 2, 3, 3, 4))
        self.entries, self.at, row = 1 << sent, 0, 16 if self.style else 8
        if pen.chance(0.04):
            sent = pen.one_of((0, 5, 7))
        self.ring, self.received = pen.room(row << max(4, self.entries.bit_length())), pen.room(row << 4)
        self.fill()
        given = {"receive": self.received, "receive length": count, "transmit": self.ring, "transmit length": sent}
        mode = pen.one_of(MODES[:4]) if pen.chance(0.8) else pen.one_of(MODES)
        given |= {"mode": mode | pen.chance(0.5) << 15, "address": int.from_bytes(MAC, "little")}
        block = pen.lay((INIT_WIDE if self.style else INIT_NARROW).draw(pen, **given), 4)
        self._set(1, block & 0xFFFF)
        self._set(2, block >> 16)
        self._set(0, INIT)
        self._set(0, START | ENABLE if pen.chance(0.97) else pen.value(16))

    @step(4)
    def fill(self) -> None:
        """Room for what comes."""
        pen, rows = self.pen, list[bytes]()
        small = pen.chance(0.2)
        for _ in range(16):
            at = pen.one_of(self.buffers) if pen.chance(0.97) else pen.one_of((0, self.received, 0xFFFFF0))
            size = pen.one_of((64, 128, 600, 4096, 0)) if small else 1536 if pen.chance(0.9) else pen.value(12)
            rows.append(self._row(at, size, OWN if pen.chance(0.97) else 0))
        pen.lay(b"".join(rows), at=self.received)

    @step(14)
    def send(self) -> None:
        """A frame, or several; then the demand."""
        pen = self.pen
        for _ in range(pen.one_of((1, 1, 1, 2))):
            made = frame(pen, jumbo=0.08)
            parts = pieces(pen, made.data, 4, first=made.payload)
            for index, (at, size) in enumerate(parts):
                status = OWN if pen.chance(0.98) else 0
                status |= pen.one_of((0, 0, CHECKED, TOLD))
                status |= FIRST if index == 0 and pen.chance(0.98) else 0
                status |= LAST if index == len(parts) - 1 and pen.chance(0.97) else 0
                row = self._row(at, size, status)
                pen.lay(row, at=self.ring + len(row) * self.at)
                self.at = (self.at + 1) % self.entries
        if pen.chance(0.92):
            self._set(0, DEMAND | ENABLE)

    @step(2)
    def acknowledge(self) -> None:
        """Interrupts."""
        self._set(0, self.pen.one_of((CAUSES, CAUSES, 0)) | self.pen.one_of((ENABLE, 0, DEMAND, STOP, START, 7)))

    @step(3)
    def control(self) -> None:
        """Registers that are for a stopped device, mostly; then it goes on."""
        pen = self.pen
        is_stopped = pen.chance(0.6)
        if is_stopped:
            self._set(0, STOP)
        register, *values = pen.one_of(CONTROLS)
        self._set(register, pen.one_of(values) if pen.chance(0.8) else pen.value(16))
        if pen.chance(0.2):
            self._set(pen.one_of((STYLE, STYLE, 2, 4, 9, 18)), pen.one_of((0, 1, 2, 3, 0x80, 0x9001, 0xFFFF)), self.bus)
        if is_stopped and pen.chance(0.8):
            self._set(0, pen.one_of((START, START, INIT, INIT | START)) | ENABLE)

    @step(3)
    def look(self) -> None:
        """Registers, and what is not reached by them: the address, and the other mode's places."""
        pen = self.pen
        pen.write(self.registers, self.select, pen.one_of((0, 4, 15, 58, 76, 88, 112, pen.count(0, 127))), self.size)
        for _ in range(pen.count(1, 3)):
            pen.read(self.registers, pen.one_of((self.data, self.data, self.bus)), self.size)
        if pen.chance(0.4):
            size = pen.one_of((1, 2, 4))
            at = pen.count(0, 31) & -size
            if pen.chance(0.5):
                pen.read(self.registers, at, size)
            else:
                pen.write(self.registers, at, pen.value(8 * size), size)
