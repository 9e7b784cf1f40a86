"""SD host controllers, and a card behind one (SD Host Controller 3.00; Physical Layer 3.01 for the card's commands)."""

from __future__ import annotations

from typing import NamedTuple

from vmtest.devices.layout import Struct, flags, number, zeros
from vmtest.devices.models import Model, step

__all__ = ["Sdhci"]

DMA_ADDRESS, BLOCKS, ARGUMENT, MODE, PORT, CONTROL, POWER, GAP = 0x00, 0x04, 0x08, 0x0C, 0x20, 0x28, 0x29, 0x2A
CLOCK, RESET, STATUS, ENABLED, SIGNALLED, FORCED, TABLE = 0x2C, 0x2F, 0x30, 0x34, 0x38, 0x50, 0x58
SINGLE, ADMA1, ADMA2, ADMA2_WIDE = 0, 1, 2, 3
ADDRESS = 0x4567 << 16  # the card's, when it has been asked for one after its reset
NONE, LONG, SHORT, BUSY = 0, 1, 2, 3


class Command(NamedTuple):
    """What a card is told: ``size`` is of its data, by blocks, 0 for none; an application's comes behind CMD55."""

    code: int
    response: int = SHORT
    arguments: tuple[int, ...] = (0,)
    size: int = 0
    reads: bool = True
    is_application: bool = False


PLACES = (0, 0, 512, 1024, 8, 0x3FFFFE00, 0x40000000, 0xFFFFFFFF)
"""Of a card of 1 GiB in bytes; a larger one counts in blocks."""
GO_IDLE, POWER_UP = Command(0, NONE), Command(41, arguments=(0x40FF8000, 0x00FF8000), is_application=True)
INQUIRY, VOLTAGES = Command(41, is_application=True), Command(8, arguments=(0x1AA,))
IDENTITY, ASK_ADDRESS = Command(2, LONG), Command(3)
SELECT, BLOCK_LENGTH = Command(7, BUSY, (ADDRESS,)), Command(16, arguments=(512, 512, 16, 64, 4, 1, 0, 513, 2048))
STOP, FROM_TO = Command(12, BUSY), (32, 33)
ERASE = (*(Command(code, arguments=(0, 0, 8, 512, 1024)) for code in FROM_TO), Command(38, BUSY))
REGISTERS = Command(9, LONG, (ADDRESS,)), Command(10, LONG, (ADDRESS,))
COMMANDS = (  # Physical Layer, 4.7.4
    *(GO_IDLE, VOLTAGES, IDENTITY, ASK_ADDRESS, STOP, STOP, POWER_UP),
    *(Command(7, BUSY, (ADDRESS, 0)), *[BLOCK_LENGTH] * 3, *REGISTERS),
    *(Command(code, arguments=(ADDRESS, 0)) for code in (13, 55)),
    *ERASE,
    *(Command(code, BUSY, PLACES) for code in (28, 29, 38)),
    *(Command(23, arguments=(1, 2, 8, 0, 0xFFFF)), Command(4, NONE), Command(15, NONE, (0, 0, 0, ADDRESS))),
    *(Command(code) for code in (1, 5, 11, 14, 20, 21, 31, 34, 39, 40, 41, 52, 53, 57, 58, 59, 60, 63)),
    *(Command(code, arguments=(0, 2, 1), is_application=True) for code in (6, 23, 42, 41, 43, 45, 49)),
)
SEVERAL, LOCKING, SMALL = (18, 25), 42, ((19, SHORT, (0,), 64), (30, SHORT, PLACES, 4))
TRANSFERS = (
    *[Command(code, SHORT, PLACES, 512, code < 20) for code in (17, 18, 24, 25)] * 4,
    *(Command(6, SHORT, (0x00FFFFF1, 0x80FFFFF1, 0x80FFFFFF, 0), 64), *(Command(*some) for some in SMALL)),
    *(Command(56, arguments=(1,), size=512), Command(56, size=512, reads=False), Command(20, BUSY, (0,), 512, False)),
    *(Command(code, size=16, reads=False) for code in (26, 27)),
    Command(LOCKING, size=512, reads=False),
    *(Command(code, size=size, is_application=True) for code, size in ((13, 64), (22, 4), (51, 8), (18, 512))),
    Command(25, SHORT, PLACES, 512, reads=False, is_application=True),
)

ISSUED = Struct(
    "transfer mode and command",  # 2.2.5, 2.2.6
    *(number("dma", 1, 0), flags("", 1, counted=85), number("auto", 2, 0, 0, 1, 2), number("reads", 1, 0)),
    *(number("several", 1, 0), zeros(10), number("response", 2, SHORT), zeros(1), flags("", 2, crc=50, index=50)),
    *(number("data", 1, 0), number("kind", 2, 0), number("index", 6, 0), zeros(2)),
)
BITS = flags("", 1, valid=97), number("end", 1, 0), flags("", 1, interrupt=20), zeros(1)
NEW = Struct(
    "ADMA2 descriptor",  # 1.13.4, of 32 bits: one of 64 has a wider address
    *(*BITS, number("act", 2, 2, 2, 2, 2, 0, 1), zeros(10)),
    *(number("length", 16, 512, 512, 512, 64, 64, 16, 16, 1024, 4096, 8, 8, 1, 511, 0), number("address", 32, 0)),
)
OLD = Struct("ADMA1 descriptor", *BITS, number("act", 2, 2), zeros(6), number("page", 20, 0, 1, 0x200))  # 1.13.3
MEDDLING: tuple[tuple[int, ...], ...] = (  # a register, its bytes, and what is likely there
    (DMA_ADDRESS, 4),
    *((BLOCKS, 2, 512, 0, 1, 4, 0x7200, 0x1001, 0xFFF), (BLOCKS + 2, 2, 0, 1, 2, 200)),
    *((MODE, 2, 0, 0x33, 0x23, 0x13, 0x3B, 0x32), (CONTROL, 1, 0, 8, 16, 24), (GAP, 1, 1, 2, 3)),
    *((POWER, 1, 0, 0x0F), (CLOCK, 2, 0, 1, 7), (TABLE, 4), (TABLE + 4, 4, 0, 1), (STATUS, 4, 0xFFFFFFFF, 2)),
    *((ENABLED, 4, 0, 0xFFFFFFFF, 0x10), (SIGNALLED, 4, 0, 0xFFFFFFFF), (FORCED, 4, 0xFFFFFFFF, 0x10001)),
    (0x3E, 2, 8, 0x80, 0x4000, 0),
)
LOCK = Struct("lock", flags("", 8, set=40, clear=20, lock=30, erase=20), number("length", 8, 4, 1, 0, 16), zeros(112))


class Sdhci(Model):
    """A driver that has its card do one thing at a time, and does not always wait for the end of it."""

    name = "SD host controller"
    regions = ("sdhci",)

    def begin(self) -> None:
        """The host controller, and the card in the state in which it moves data."""
        self.registers = self.needed("sdhci")
        self.pool = [self.pen.room(4096, 4096) for _ in range(12)]
        self.block, self.is_reading, self.address = 512, True, ADDRESS
        if self.pen.chance(0.97):
            self.set_up()

    def set_up(self) -> None:
        """From the beginning (3.2 to 3.6)."""
        pen = self.pen
        pen.write(self.registers, RESET, 1, 1)
        for register, value in ((ENABLED, 0xFFFFFFFF), (SIGNALLED, pen.one_of((0, 0xFFFFFFFF)))):
            pen.write(self.registers, register, value if pen.chance(0.95) else pen.value(32))
        pen.write(self.registers, POWER, 0x0F, 1)
        pen.write(self.registers, CLOCK, 0x0007 | pen.one_of((0, 0x8000)), 2)
        self.block = 512
        asked, told = (INQUIRY,) if pen.chance(0.1) else (), REGISTERS if pen.chance(0.2) else ()
        for command in (GO_IDLE, VOLTAGES, *asked, POWER_UP, IDENTITY, ASK_ADDRESS, *told, SELECT):
            if pen.chance(0.99):
                self.issue(command, odd=0.005)

    def issue(self, command: Command, *, dma: bool = False, several: bool = False, odd: float = 0.05) -> None:
        """Have the card do it."""
        pen = self.pen
        if command.is_application and pen.chance(0.97):
            self.issue(Command(55, arguments=(ADDRESS,)), odd=odd)
        argument = pen.one_of(command.arguments)
        if pen.chance(odd):  # a whole card takes QEMU seconds to erase
            argument = pen.value(16 if command.code in FROM_TO else 32)
        if command.code in (GO_IDLE.code, ASK_ADDRESS.code):
            self.address = ADDRESS if command.code else 0
        argument = self.address if argument == ADDRESS else argument
        pen.write(self.registers, ARGUMENT, argument)
        if command.code == BLOCK_LENGTH.code and 0 < argument <= 512:
            self.block = argument
        given = {"index": command.code, "response": command.response, "data": command.size > 0, "dma": dma}
        given |= {"reads": command.reads, "several": several, "kind": 3 if command is STOP else 0}
        value = int.from_bytes(ISSUED.draw(pen, **given), "little")
        if pen.chance(0.7):
            pen.write(self.registers, MODE, value)
        else:
            pen.write(self.registers, MODE, value, 2)
            pen.write(self.registers, MODE + 2, value >> 16, 2)

    def _page(self) -> int:
        if self.pen.chance(0.02):  # the controller is to move data to itself, and from itself
            return self.registers.address + int(self.pen.one_of((0, MODE, PORT, CONTROL)))
        return int(self.pen.one_of(self.pool)) + int(self.pen.one_of((0, 0, 0, 0, 4, 0xE00, 0xFFC, 1)))

    def table(self, width: int, total: int, depth: int = 0) -> int:
        """Descriptors for so much data; the last one may lead to more of them."""
        pen, rows = self.pen, list[bytes]()
        at = pen.room(16 * 6, 8)
        for left in reversed(range(pen.count(1, 4))):
            given = {"address": self._page()}
            if width != ADMA1 and pen.chance(0.6):
                given["length"] = total
            if not left and depth < 2 and pen.chance(0.3):
                given |= {"act": 3, "address": self.table(width, total, depth + 1) if pen.chance(0.9) else at}
            elif not left and pen.chance(0.9):
                given |= {"end": 1}
            if width == ADMA1:
                rows.append(OLD.draw(pen, page=given.pop("address") >> 12, **given))
            else:
                rows.append(NEW.draw(pen, **given) + bytes(4 if width == ADMA2_WIDE else 0))
        return pen.lay(b"".join(rows), at=at)

    # -- steps -------------------------------------------------------------------------------------------------------

    @step(12)
    def transfer(self) -> None:
        """Move data: by the port, or by one of the controller's ways to do it itself."""
        pen, command = self.pen, self.pen.one_of(TRANSFERS)
        way = pen.one_of((None, None, SINGLE, SINGLE, ADMA1, ADMA2, ADMA2, ADMA2_WIDE))
        if command.size == 512 and pen.chance(0.7 if way is None else 0.2):
            self.issue(BLOCK_LENGTH._replace(arguments=(4, 16, 16, 64) if way is None else BLOCK_LENGTH.arguments))
        size = self.block if command.size == 512 else command.size
        several = (command.code in SEVERAL) ^ pen.chance(0.03)
        count = pen.one_of((1, 2, 3, 8, 8, 32, 0, 200)) if several else 1
        told = size if pen.chance(0.9) else pen.one_of((0, 1, 3, size + 1, 512, 2048, 0xFFF))
        told |= count << 16 | pen.one_of((0, 0, 0, 7, 1, 3)) << 12
        for half, bytes_of_it in ((0, 4),) if pen.chance(0.5) else ((0, 2), (2, 2)):
            pen.write(self.registers, BLOCKS + half, told >> 8 * half, bytes_of_it)
        pen.write(self.registers, CONTROL, (way or 0) << 3 | pen.one_of((0, 2, 6)), 1)
        if way == SINGLE:
            page = self._page()
            pen.write(self.registers, DMA_ADDRESS, pen.lay(LOCK, at=page) if command.code == LOCKING else page)
        elif way:
            pen.write(self.registers, TABLE, self.table(way, size * min(count, 32)))
            pen.write(self.registers, TABLE + 4, 0 if pen.chance(0.97) else pen.value(32))
        self.is_reading = command.reads
        self.issue(command, dma=way is not None, several=several)
        if way is None:
            self._move(min(size * count // 4 + 1, 34) if pen.chance(0.5) else pen.count(0, 8))
        elif pen.chance(0.7):
            pen.flush()
        if pen.chance(0.5):
            self.issue(STOP)
        if pen.chance(0.8):
            pen.write(self.registers, STATUS, 0xFFFFFFFF)

    def _move(self, times: int) -> None:
        size = self.pen.one_of((4, 4, 4, 2, 1))
        for at in range(0, times * size, size):  # narrow ones go from one to the next
            if self.is_reading:
                self.pen.read(self.registers, PORT + at % 4, size)
            else:
                self.pen.write(self.registers, PORT + at % 4, self.pen.value(8 * size), size)

    @step(10)
    def command(self) -> None:
        """Anything else that a card knows, or does not; erasing takes three commands (4.3.5)."""
        several = ERASE if self.pen.chance(0.2) else [self.pen.one_of(COMMANDS) for _ in range(self.pen.count(1, 3))]
        for command in several:
            self.issue(command)

    @step(6)
    def meddle(self) -> None:
        """A register that a transfer goes by changes in the midst of it."""
        register, size, *values = self.pen.one_of(MEDDLING)
        value = self.pen.one_of(values) if values and self.pen.chance(0.8) else self.pen.value(8 * size)
        self.pen.write(self.registers, register, value, size)

    @step(8)
    def go_on(self) -> None:
        """Wait; or move on at a boundary, at a gap that was asked for, or by the port, now and then the other way."""
        kind = self.pen.roll()
        if kind < 0.2:
            self.pen.flush()
        elif kind < 0.45:
            self.pen.write(self.registers, DMA_ADDRESS, self._page())
        elif kind < 0.55:
            self.pen.write(self.registers, GAP, self.pen.one_of((1, 2, 2, 3, 5, 0)), 1)
        else:
            self.is_reading ^= self.pen.chance(0.2)
            self._move(self.pen.count(1, 6))

    @step(5)
    def stop(self) -> None:
        """The card's transfer, or the controller's, or all of it."""
        kind = self.pen.roll()
        if kind < 0.4:
            self.issue(STOP)
        elif kind < 0.7:
            self.pen.write(self.registers, RESET, self.pen.one_of((2, 4, 6, 1)), 1)
        else:
            self.set_up()

    @step(4)
    def any_register(self) -> None:
        """Whatever it is."""
        size = self.pen.one_of((1, 2, 4))
        at = self.pen.count(0, 0x100 // size - 1) * size
        if self.pen.chance(0.5):
            self.pen.read(self.registers, at, size)
        else:
            self.pen.write(self.registers, at, self.pen.value(8 * size), size)
