"""AHCI, and ATA behind it (Serial ATA AHCI 1.3.1; ATA Command Set 3)."""

from __future__ import annotations

from vmtest.devices.layout import Struct, array, constant, drawn, either, flags, number, octets, pointer, zeros
from vmtest.devices.models import Model, step

__all__ = ["Ahci"]

NOP, TRIM, READ, READ_EXT, READ_DMA_EXT, READ_NATIVE_MAX = 0x00, 0x06, 0x20, 0x24, 0x25, 0x27
READ_MULTIPLE_EXT, WRITE, WRITE_EXT, WRITE_DMA_EXT, WRITE_MULTIPLE_EXT = 0x29, 0x30, 0x34, 0x35, 0x39
VERIFY, READ_FPDMA, WRITE_FPDMA, DIAGNOSE, SPECIFY = 0x40, 0x60, 0x61, 0x90, 0x91
PACKET, IDENTIFY_PACKET, SMART, READ_MULTIPLE, WRITE_MULTIPLE, SET_MULTIPLE = 0xA0, 0xA1, 0xB0, 0xC4, 0xC5, 0xC6
READ_DMA, WRITE_DMA, STANDBY, FLUSH, IDENTIFY, SET_FEATURES = 0xC8, 0xCA, 0xE0, 0xE7, 0xEC, 0xEF
COMMANDS = (
    *(NOP, TRIM, READ, READ_EXT, READ_DMA_EXT, READ_NATIVE_MAX, READ_MULTIPLE_EXT, WRITE, WRITE_EXT, WRITE_DMA_EXT),
    *(WRITE_MULTIPLE_EXT, VERIFY, READ_FPDMA, WRITE_FPDMA, DIAGNOSE, SPECIFY, PACKET, IDENTIFY_PACKET, SMART),
    *(READ_MULTIPLE, WRITE_MULTIPLE, SET_MULTIPLE, READ_DMA, WRITE_DMA, STANDBY, FLUSH, IDENTIFY, SET_FEATURES),
)
CDBS = tuple(
    bytes([code, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0]) for code in (0x00, 0x03, 0x12, 0x25, 0x28, 0x43, 0x46, 0xBE)
)

FIS = Struct(
    "Register FIS, host to device",  # Serial ATA 3.0, 10.3.4
    constant("type", 8, 0x27),
    flags("port", 8, gap7=0, command=90),
    number("command", 8, *COMMANDS),
    number("features", 8, 0, 1, 2, 3, 0xD0, 0xD8),
    number("lba", 24, 0, 1, 0xC24F00, 0xFFFFFF),
    number("device", 8, 0, 0x40, 0xE0, 0xF0),
    number("lba high", 24, 0, 1),
    number("features high", 8, 0, 1),
    number("count", 16, 0, 1, 2, 8, 255, 256),
    zeros(8),
    flags("control", 8, gap1=0, interrupt=20, reset=8, gap4=0, high=5),
    zeros(32),
)
PRD = Struct(
    "physical region descriptor",  # AHCI 4.2.3.3
    pointer("address", 64, octets(4096), null=0.1),
    zeros(32),
    number("bytes - 1", 22, 0, 1, 2, 511, 512, 1023, 4095, 0x1FF, 0x3FFFFF),
    zeros(9),
    flags("interrupt", 1, on=20),
)
TABLE = Struct(
    "command table",
    either("fis", FIS),
    zeros(8 * (64 - FIS.size)),
    drawn("packet", 128, lambda pen: int.from_bytes(pen.one_of(CDBS), "little")),
    zeros(8 * 48),
    array("regions", PRD, 6),
)
HEADER = Struct(
    "command header",  # AHCI 4.2.2
    number("fis length", 5, 5, 2, 4),
    flags("", 11, packet=15, write=40, prefetch=20, reset=5, bist=2, clear=30),
    number("regions", 16, 0, 1, 2, 4, 6, 37),
    number("done", 32, 0),
    pointer("table", 64, TABLE, align=128),
    zeros(128),
)

GHC, PORTS, SIZE = 0x04, 0x100, 0x80
CLB, FB, IS, IE, CMD, SCTL, SERR, SACT, CI = 0x00, 0x08, 0x10, 0x14, 0x18, 0x2C, 0x30, 0x34, 0x38
START, SPIN, POWER, RECEIVE = 1, 2, 4, 16


class Ahci(Model):
    """One port is worked on at a time."""

    name = "AHCI"
    regions = ("ahci",)

    def begin(self) -> None:
        """A command list and a place for what comes back; the port runs."""
        self.registers = self.needed("ahci")
        self.port = self.pen.one_of((0, 0, 0, 1, 2, 5))
        self.list = self.pen.room(32 * HEADER.size, 1024)
        for slot in range(self.pen.count(1, 3)):
            self.pen.lay(HEADER, at=self.list + slot * HEADER.size)
        self._set(CLB, self.list)
        self._set(FB, self.pen.room(256, 256))
        self.pen.write(self.registers, GHC, self.pen.one_of((0x80000002, 0x80000000, 2)))
        self._set(CMD, START | SPIN | POWER | RECEIVE)

    def _set(self, register: int, value: int) -> None:
        self.pen.write(self.registers, PORTS + SIZE * self.port + register, value)

    @step(10)
    def issue(self) -> None:
        """Have commands done."""
        slots = self.pen.one_of((1, 1, 2, 3, 5, 0x101, 0xFFFFFFFF))
        if self.pen.chance(0.2):
            self._set(SACT, slots)
        self._set(CI, slots)

    @step(6)
    def replace(self) -> None:
        """Another command."""
        slot = self.pen.one_of((0, 0, 1, 2, 8))
        self.pen.lay(HEADER, at=self.list + slot * HEADER.size)

    @step(3)
    def stop_or_start(self) -> None:
        """The port's engines."""
        self._set(CMD, self.pen.one_of((0, START, RECEIVE, START | RECEIVE, START | SPIN | POWER | RECEIVE)))

    @step(2)
    def acknowledge(self) -> None:
        """Interrupts and errors."""
        self._set(self.pen.one_of((IS, SERR, IE)), self.pen.one_of((0, 0xFFFFFFFF)))

    @step(2)
    def reset(self) -> None:
        """The controller, or the link."""
        if self.pen.chance(0.5):
            self.pen.write(self.registers, GHC, self.pen.one_of((1, 0x80000001, 3)))
        else:
            self._set(SCTL, self.pen.one_of((0, 1, 0x301)))

    @step(2)
    def move(self) -> None:
        """The list is somewhere else."""
        self._set(self.pen.one_of((CLB, FB)), self.pen.one_of((self.list, 0, self.pen.address())))

    @step(2)
    def any_register(self) -> None:
        """Of the port, whatever it is."""
        self._set(4 * self.pen.count(0, 17), self.pen.value(32))

    @step(2)
    def look(self) -> None:
        """What it says."""
        self.pen.read(self.registers, PORTS + SIZE * self.port + 4 * self.pen.count(0, 17))
