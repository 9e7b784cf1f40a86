"""Am53C974, a 53C9x SCSI controller with a DMA engine on PCI (AMD's technical manual; NCR 53C94 data book)."""

from __future__ import annotations

from vmtest.devices.layout import Struct, array, octets, pointer
from vmtest.devices.models import Model, step
from vmtest.devices.models.scsi_commands import Command, command, pieces

__all__ = ["Esp"]

COUNT_LOW, COUNT_MIDDLE, FIFO, COMMAND, STATUS, INTERRUPT, STEP = range(7)
TARGET, CONFIG_1, CONFIG_2, CONFIG_3, CONFIG_4, COUNT_HIGH = 4, 8, 11, 12, 13, 14
"""Registers, of which each is the lowest byte of four."""

NOP, FLUSH, RESET, RESET_BUS, TRANSFER, COMPLETE, ACCEPT, PAD = 0, 1, 2, 3, 0x10, 0x11, 0x12, 0x18
SELECT, SELECT_ATN, SELECT_ATN_STOP, ENABLE, DISABLE = 0x41, 0x42, 0x43, 0x44, 0x45
COMMANDS = (
    *(NOP, FLUSH, RESET, RESET_BUS, TRANSFER, COMPLETE, ACCEPT, PAD, 0x1A, 0x1B, 0x40, 0x46),
    *(SELECT, SELECT_ATN, SELECT_ATN_STOP, ENABLE, DISABLE, 0x04, 0x20, 0x27),
)
DMA = 0x80

DMA_COMMAND, DMA_COUNT, DMA_ADDRESS, DMA_STATUS, DMA_LIST = 0x40, 0x44, 0x48, 0x54, 0x58
BUS_CONTROL = 0x70
IDLE, BLAST, ABORT, START, BY_LIST, FROM_DEVICE = 0, 1, 2, 3, 0x10, 0x80
PAGE = Struct("memory descriptor", pointer("page", 32, octets(4096), align=4096))
LIST = Struct("memory descriptor list", array("of", PAGE, 4, 1))


class Esp(Model):
    """Phase after phase is begun by a command, with data by the FIFO or by DMA."""

    name = "Am53C974"
    regions = ("esp-io",)

    def begin(self) -> None:
        """Reset and configured; a disk is chosen."""
        pen = self.pen
        self.ports = self.needed("esp-io")
        self.what = Command(bytes(6), 0, False, b"")
        if pen.chance(0.3):
            self._do(RESET)
            self._do(NOP)
        self._set(CONFIG_1, pen.one_of((7, 0x47, 0x17)))
        for register in (CONFIG_2, CONFIG_3, CONFIG_4):
            if pen.chance(0.3):
                self._set(register, pen.one_of((0, 0x40, 0x18, 0x20)))
        self.select()

    def _set(self, register: int, value: int) -> None:
        self.pen.write(self.ports, 4 * register, value, 1 if self.pen.chance(0.95) else 4)

    def _get(self, register: int) -> None:
        self.pen.read(self.ports, 4 * register, 1)

    def _do(self, code: int, is_dma: bool = False) -> None:
        self._set(COMMAND, code | (DMA if is_dma else 0))

    def _move(self, code: int, address: int, size: int, to_memory: bool) -> None:
        """A command with so much by DMA: the engine goes first, or last, or not at all."""
        pen = self.pen
        direction = FROM_DEVICE if to_memory == pen.chance(0.97) else 0
        order = pen.roll()
        if order < 0.95:
            pen.write(self.ports, DMA_COMMAND, IDLE | direction)
            pen.write(self.ports, DMA_COUNT, size if pen.chance(0.95) else pen.value(24))
            pen.write(self.ports, DMA_ADDRESS, address)
        if pen.chance(0.05):
            pen.write(self.ports, DMA_LIST, pen.lay(LIST))
            direction |= BY_LIST
        if order < 0.15:
            pen.write(self.ports, DMA_COMMAND, START | direction)
        count = size if pen.chance(0.95) else pen.value(24)
        for register, shift in ((COUNT_LOW, 0), (COUNT_MIDDLE, 8), (COUNT_HIGH, 16)):
            if register != COUNT_HIGH or count >> shift or pen.chance(0.2):
                self._set(register, count >> shift & 0xFF)
        self._do(code, is_dma=True)
        if order >= 0.15:
            pen.write(self.ports, DMA_COMMAND, START | direction)

    def _give(self, data: bytes) -> None:
        for byte in data:
            self._set(FIFO, byte)

    @step(12)
    def run_command(self) -> None:
        """All phases of a command, of which one is left out now and then."""
        pen = self.pen
        for phase in (self.select, self.transfer, self.look, self.complete):
            if pen.chance(0.93):
                phase()

    @step(3)
    def select(self) -> None:
        """A disk is selected, and told a command: with a message before it, or none, or the message alone."""
        pen = self.pen
        self.what = command(pen)
        self._set(TARGET, pen.one_of((*(0,) * 12, 1, 7)))
        if pen.chance(0.8):
            self._do(FLUSH)
        code = pen.one_of((SELECT_ATN, SELECT_ATN, SELECT_ATN, SELECT, SELECT_ATN_STOP))
        message = b"" if code == SELECT else bytes([pen.one_of((*(0x80,) * 8, 0xC0, 0x81, 0x00, pen.count(0, 255)))])
        cdb = self.what.cdb if pen.chance(0.95) else self.what.cdb[: pen.count(0, 12)] * pen.count(0, 3)
        first, second = (message, cdb) if code == SELECT_ATN_STOP else (message + cdb, b"")
        for piece, begun in ((first, code), (second, TRANSFER)):
            if piece and pen.chance(0.5):
                self._move(begun, pen.lay(piece), len(piece), to_memory=False)
            elif piece:
                self._give(piece)
                self._do(begun)
            if code == SELECT_ATN_STOP or pen.chance(0.2):
                self.look()

    @step(5)
    def transfer(self) -> None:
        """Data, in so many pieces."""
        pen = self.pen
        if not self.what.length and pen.chance(0.8):
            return
        for address, size in pieces(pen, self.what):
            if pen.chance(0.8):
                self._move(TRANSFER, address, size, to_memory=not self.what.takes)
            elif self.what.takes:
                self._give(self.what.data[:16] or bytes(pen.count(1, 16)))
                self._do(TRANSFER)
            else:
                self._do(TRANSFER)
                for _ in range(pen.count(1, 16)):
                    self._get(FIFO)
            if pen.chance(0.5):
                self.look()

    @step(3)
    def complete(self) -> None:
        """The status and a message, by the FIFO or by DMA; the message is accepted."""
        pen = self.pen
        if pen.chance(0.3):
            self._move(COMPLETE, pen.room(4), 2, to_memory=True)
        else:
            self._do(COMPLETE)
            self._get(INTERRUPT)
            self._get(FIFO)
            self._get(FIFO)
        self._do(ACCEPT)
        self._get(INTERRUPT)

    @step(3)
    def look(self) -> None:
        """What has happened, which is acknowledged by that."""
        for register in (STATUS, STEP, INTERRUPT):
            self._get(register)
        if self.pen.chance(0.3):
            self.pen.read(self.ports, DMA_STATUS)

    @step(4)
    def any_command(self) -> None:
        """Out of turn."""
        self._do(self.pen.one_of(COMMANDS) if self.pen.chance(0.95) else self.pen.value(7), is_dma=self.pen.chance(0.4))

    @step(4)
    def engine(self) -> None:
        """The DMA engine, told anything."""
        pen = self.pen
        if pen.chance(0.6):
            bits = pen.one_of((IDLE, BLAST, ABORT, ABORT, START, START)) | pen.one_of(
                (0, FROM_DEVICE, BY_LIST, 0x20, 0x40)
            )
            pen.write(self.ports, DMA_COMMAND, bits)
        else:
            pen.write(
                self.ports, pen.one_of((DMA_COUNT, DMA_ADDRESS, DMA_STATUS, DMA_LIST, BUS_CONTROL)), pen.value(32)
            )

    @step(2)
    def fifo(self) -> None:
        """More than fits, or is there."""
        for _ in range(self.pen.one_of((1, 2, 15, 16, 17, 33))):
            self._set(FIFO, self.pen.value(8)) if self.pen.chance(0.7) else self._get(FIFO)

    @step(2)
    def any_register(self) -> None:
        """Whatever it is, in whatever size."""
        size = self.pen.one_of((1, 2, 4))
        self.pen.write(self.ports, self.pen.count(0, 0x7F) & -size, self.pen.value(8 * size), size)

    @step(2)
    def any_look(self) -> None:
        """What it says."""
        size = self.pen.one_of((1, 2, 4))
        self.pen.read(self.ports, self.pen.count(0, 0x7F) & -size, size)
