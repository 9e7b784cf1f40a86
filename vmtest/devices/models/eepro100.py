"""Intel's 8255x (its Open Source Software Developer Manual): command blocks, and frame descriptors.

QEMU's loops nothing back: its receiver is told what there is, and gets nothing.
"""

from __future__ import annotations

from vmtest.devices.layout import Struct, anything, constant, flags, number, octets, pointer, zeros
from vmtest.devices.models import Model, step
from vmtest.devices.models.frames import GROUP, MAC, frame, pieces
from vmtest.devices.models.microwire import strokes

__all__ = ["Eepro100"]

NOP, ADDRESS, CONFIGURE, GROUPS, TRANSMIT, LOAD, DUMP, DIAGNOSE = range(8)
BLOCK = Struct(
    "command block",  # 6.4.2
    *(zeros(16), anything("command", 3), anything("flexible", 1)),
    *(flags("", 9, nc=3, gap4=0, delayed=10), flags("told", 1, on=50), anything("suspend", 1), anything("end", 1)),
    anything("link", 32),
)
BUFFER = Struct(
    "transmit buffer descriptor",  # 6.4.2.5.1
    *(anything("address", 32), anything("bytes", 16), anything("end", 16)),
)
CONFIGURATION = Struct(
    "configure",  # 6.4.2.3
    *(number("bytes", 8, 22, 8, 0x3F), number("fifo", 8, 8, 0), zeros(32)),
    flags("statistics", 8, late=10, direct=50, tno=50, cause=50, standard=60, counters=60, overruns=10, bad=20),
    *(flags("short", 8, short=50, retries=50), number("gaps", 56, 0x2E000100)),
    *(flags("accepted", 8, all=30, gap5=0, two=50), number("flow", 32, 0xF23F0040)),
    *(flags("several", 8, gap6=0, several=50), flags("groups", 8, gap3=0, all=50), zeros(16)),
)
FRAME = Struct(
    "receive frame descriptor",  # 6.4.3.1
    *(zeros(16), number("", 3, 0), flags("", 13, simple=5, header=5, gap9=0, suspend=20, end=50)),
    *(pointer("link", 32, octets(1600)), constant("reserved", 32, 0xFFFFFFFF)),
    *(zeros(16), number("size", 16, 1518, 0x3FFF, 64, 0)),
)
STATUS, ACKNOWLEDGE, COMMAND, MASK, POINTER, PORT, EEPROM, MDI, GENERAL = 0, 1, 2, 3, 4, 8, 0xE, 0x10, 0x1C
START, RESUME, COUNTERS, SHOW, BASE, SHOW_AND_CLEAR, STATIC = 0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0xA0
RX_START, RX_RESUME, RX_ABORT, RX_SIZE, RX_BASE = 1, 2, 4, 5, 6
COMMANDS = (*6 * (TRANSMIT,), *2 * (ADDRESS, CONFIGURE, GROUPS), NOP, LOAD, DUMP, DIAGNOSE)


class Eepro100(Model):
    """All of the family that QEMU has: i82550 to i82801."""

    name = "eepro100"
    regions = ("eepro100-mmio",)

    def begin(self) -> None:
        """Bases of 0, statistics, a receiver that is ready."""
        pen = self.pen
        self.registers = pen.one_of([area for area in self.areas if area.name in ("eepro100-mmio", "eepro100-io")])
        if pen.chance(0.3):
            self._set(PORT, 0)
        self.base = 0 if pen.chance(0.85) else pen.address() & ~0xF
        self._command(BASE, self.base)
        self._command(RX_BASE, 0)
        self._command(COUNTERS, pen.room(96))
        self._set(MASK, pen.one_of((0, 0, 1, 0xFC)), 1)
        self.commands()
        self.receive()

    def _set(self, register: int, value: int, size: int = 4) -> None:
        self.pen.write(self.registers, register, value, size)

    def _command(self, command: int, address: int | None = None) -> None:
        """A command of either unit, for which the pointer is set before; both bytes of it, or only that."""
        if address is not None:
            self._set(POINTER, address)
        if self.pen.chance(0.7):
            self._set(COMMAND, command, 1)
        else:
            self._set(COMMAND, command | self.pen.one_of((0, 0x100)), 2)

    @step(12)
    def commands(self) -> None:
        """A list of commands; the unit is started, or goes on where the last of them was."""
        pen = self.pen
        bodies = [self._body() for _ in range(pen.one_of((1, 1, 2, 3, 4)))]
        places = [pen.room(8 + len(data)) for _, _, data in bodies]
        for index, (command, flexible, data) in enumerate(bodies):
            is_last = index == len(bodies) - 1
            link = pen.one_of(places) if is_last or pen.chance(0.04) else places[index + 1]
            ends = {"end": 0, "suspend": 0}
            if is_last and pen.chance(0.95):
                ends = {"end": 1, "suspend": 0} if pen.chance(0.5) else {"end": 0, "suspend": 1}
            head = BLOCK.draw(pen, command=command, flexible=flexible, link=link - self.base, **ends)
            pen.lay(head + data, at=places[index])
        if pen.chance(0.95):
            self._command(START, places[0] - self.base)

    def _body(self) -> tuple[int, int, bytes]:
        """A command, whether it is in flexible mode, and what it is followed by."""
        pen = self.pen
        command = pen.one_of(COMMANDS)
        if command == ADDRESS:
            return command, 0, pen.one_of((MAC, MAC, GROUP, pen.random.randbytes(6))) + bytes(2)
        if command == CONFIGURE:
            return command, 0, CONFIGURATION.draw(pen)
        if command == GROUPS:
            several = [pen.one_of((GROUP, b"\x33\x33\0\0\0\1", MAC)) for _ in range(pen.count(0, 4))]
            size = 6 * len(several) if pen.chance(0.93) else pen.one_of((1, 5, 7, 0x3FFF, 0xFFFF))
            return command, 0, size.to_bytes(2, "little") + b"".join(several)
        if command != TRANSMIT:
            return command, 0, bytes(pen.one_of((0, 8, 256)))
        made = frame(pen, jumbo=0.08)
        if pen.chance(0.4):  # the frame follows
            array, count, size, rest = 0xFFFFFFFF, 0, len(made.data), made.data
            size = size if pen.chance(0.95) else pen.one_of((0, 2600, 2601, 0x3FFF))
        else:
            parts = pieces(pen, made.data, 6, first=made.payload)
            last = len(parts) - 1
            rows = [BUFFER.draw(pen, address=at, bytes=size, end=n == last) for n, (at, size) in enumerate(parts)]
            extended = pen.one_of((0, 0, 2))  # of the descriptors so many are in the block itself
            array, count = pen.lay(b"".join(rows[extended:]) or bytes(8)), len(rows)
            count = count if pen.chance(0.9) else pen.value(8)
            size, rest = 0 if pen.chance(0.9) else pen.one_of((1, 60, 2600)), b"".join(rows[:extended])
        head = array.to_bytes(4, "little") + (size & 0x3FFF | pen.chance(0.9) << 15).to_bytes(2, "little")
        return command, array != 0xFFFFFFFF, head + bytes([pen.one_of((1, 8, 0xE0)), count]) + rest

    @step(3)
    def unit(self) -> None:
        """What is no list: it goes on, counts, or is told another base."""
        pen = self.pen
        command = pen.one_of((RESUME, RESUME, SHOW, SHOW_AND_CLEAR, COUNTERS, BASE, STATIC, 0x30, START))
        address = None
        if command in (COUNTERS, BASE, START):
            self.base = address = pen.one_of((0, 0, pen.address())) if command == BASE else self.base
            address = pen.address() if command != BASE else address
        self._command(command, address)

    @step(3)
    def receive(self) -> None:
        """The receiver's list, and its commands."""
        pen = self.pen
        rows = [pen.lay(FRAME) for _ in range(pen.count(1, 3))]
        command = pen.one_of((RX_START, RX_START, RX_RESUME, RX_ABORT, RX_SIZE, RX_BASE, 7))
        self._command(command, pen.one_of((*rows, 0)))

    @step(2)
    def port(self) -> None:
        """A reset, or a test, whose result has its place (6.3.3)."""
        pen = self.pen
        self._set(PORT, pen.one_of((0, 1, 1, 2, 3)) | pen.one_of((0, pen.address() & ~0xF)))

    @step(2)
    def phy(self) -> None:
        """Its registers (6.3.6)."""
        pen = self.pen
        operation, phy = pen.one_of((1, 1, 2, 2, 0, 3)), pen.one_of((1, 1, 1, 0, 31))
        register = pen.count(0, 7) if pen.chance(0.9) else pen.count(0, 31)
        value = pen.one_of((0, 0x1000, 0x3000, 0x8000, 0x0200, pen.value(16)))
        value |= operation << 26 | phy << 21 | register << 16
        self._set(MDI, value | pen.chance(0.4) << 29)
        pen.read(self.registers, MDI)

    @step(1)
    def eeprom(self) -> None:
        """Its wires (6.3.4)."""
        for select, clock, data in strokes(self.pen, self.pen.one_of((6, 6, 8))):
            self._set(EEPROM, clock | select << 1 | data << 2, self.pen.one_of((1, 2)))
        self.pen.read(self.registers, EEPROM, 2)

    @step(2)
    def acknowledge(self) -> None:
        """Interrupts; ask for one; which are told."""
        register, *values = self.pen.one_of(((ACKNOWLEDGE, 0xFF, 0xFC, 0), (MASK, 0, 1, 2, 0xFF)))
        self._set(register, self.pen.one_of(values), 1)

    @step(3)
    def touch(self) -> None:
        """Any register, with any size."""
        pen = self.pen
        size = pen.one_of((1, 2, 4))
        offset = pen.one_of((STATUS, COMMAND, EEPROM, MDI, 0x14, 0x18, 0x1B, GENERAL, 0x1D, 0x20, pen.count(0, 63)))
        if pen.chance(0.4):
            self._set(offset, pen.value(8 * size), size)
        else:
            pen.read(self.registers, offset, size)
