"""LSI MegaRAID SAS (1078 and 2108): MFI, as the drivers of Linux (megaraid_sas) and FreeBSD (mfi) show it."""

from __future__ import annotations

from vmtest.devices.layout import Struct, anything, constant, flags, number, octets, pointer, zeros
from vmtest.devices.models import Model, step
from vmtest.devices.models.scsi_commands import BLOCK, Command, command, pieces

__all__ = ["Megasas"]

INIT, READ, WRITE, LD_SCSI, PD_SCSI, DCMD, ABORT, SMP, STP = range(9)
WIDE, WIDE_SENSE, IEEE = 2, 4, 0x20

SIZED = {  # those that give, or take, so much at least, or at most
    0x01010000: 2048,  # of the controller
    0x01020100: 64,  # properties
    0x01020200: 64,
    0x01040100: 20,  # log of events
    0x01040500: 268,  # wait for one
    0x01080101: 8,  # time
    0x010C0100: 64,  # BIOS
    0x010E0201: 64,  # defaults
    0x02010000: 32,  # physical disks
    0x02010100: 32,
    0x02020000: 512,
    0x03010000: 1032,  # logical disks
    0x03010100: 16,
    0x03020000: 384,
    0x04010000: 4096,  # configuration
}
SHUTDOWN, FLUSH, RESET = 0x01050000, 0x01101000, 0x08010200
OTHERS = (
    *(SHUTDOWN, SHUTDOWN, FLUSH, FLUSH, RESET, RESET, RESET, 0x0100E100, *range(0x01030000, 0x01030600, 0x100)),
    *(0x01040200, 0x01040300, 0x01040400, 0x01060000, 0x01080102, 0x010C0200, 0x010D0000, 0x010E0202, 0x02030100),
    *(0x02040100, 0x02070100, 0x02070200, 0x03030000, 0x03040000, 0x03090000, 0x04020000, 0x04030000, 0x04060100),
    *(0x04060400, 0x05010000, 0x05020000, 0x05030000, 0x05050100, 0x08000000, 0x08010100),
)

HEADER = (
    number("command", 8, INIT, READ, WRITE, LD_SCSI, PD_SCSI, DCMD, ABORT, SMP, STP),
    number("sense length", 8, 0, 18, 96, 252),
    constant("status", 8, 0xFF),
    zeros(8),
    number("target", 8, *(0,) * 8, 1, 63, 64),
    constant("lun", 8, 0),
    number("cdb length", 8, 6, 10, 12, 16, 17, 0),
    number("elements", 8, 0, 1),
    number("context", 64, 0, 1, 2, 3, (1 << 32) + 1),
    flags("flags", 16, quiet=5, wide=40, sense=30, write=30, read=30, ieee=20),
    zeros(16),
    number("length", 32, 0),
)
QUEUES = Struct(
    "queue information",
    flags("flags", 32, gap1=0, contexts=50),
    number("entries", 32, 8, 64, 64, 1000, 1000, 8, 1, 0, 1001),
    pointer("replies", 64, octets(256)),
    pointer("producer", 64, octets(8)),
    pointer("consumer", 64, octets(8)),
)
INITIALISE = Struct("init frame", *HEADER, pointer("queues", 64, QUEUES), zeros(64 + 192))
DIRECT = Struct(
    "direct command frame",
    *HEADER,
    number("opcode", 32, *SIZED, *OTHERS),
    number("mailbox", 64, 0, 0, 0, 0, 1, 0x100, 63, 64, 255),
    number("more", 32, 0, 0x10020),
)
TRANSFER = Struct(
    "read or write frame", *HEADER, pointer("sense", 64, octets(96)), number("block", 64, 0, 1, 8, 0x1FFFFF, 1 << 32)
)
PASS = Struct("SCSI frame", *HEADER, TRANSFER.fields[-2], zeros(128))
ABANDON = Struct("abort frame", *HEADER, anything("aborted", 64), anything("frame", 64), zeros(192))
ELEMENT = Struct("address and length", anything("address", 32), anything("length", 32))
WIDE_ELEMENT = Struct("address and length, 64", anything("address", 64), anything("length", 32))
IEEE_ELEMENT = Struct("address and length, IEEE", *WIDE_ELEMENT.fields, number("flags", 32, 0, 0x80000000, 0x40000000))

DOORBELL, MASK, PORT, CLEAR, PORT_LOW, PORT_HIGH = 0x20, 0x34, 0x40, 0xA0, 0xC0, 0xC4
DIAGNOSTIC, SEQUENCE = 0xF8, 0xFC
REGISTERS = (*range(0x10, 0x48, 4), 0x9C, CLEAR, 0xB0, 0xB4, PORT_LOW, PORT_HIGH, DIAGNOSTIC, SEQUENCE)
KEYS = (0, 4, 0xB, 2, 7, 0xD)


class Megasas(Model):
    """Frames lie in memory, and their addresses are written to a port."""

    name = "MegaRAID SAS"
    regions = ("megasas-mmio", "megasas-io")

    def begin(self) -> None:
        """Interrupts on, queues told."""
        pen = self.pen
        self.registers = self.needed(pen.one_of(("megasas-mmio", "megasas-mmio", "megasas-mmio", "megasas-io")))
        self.frames: list[tuple[int, int]] = []
        self._set(MASK, pen.one_of((0, 0, 0x7FFFFFFB, 0xFFFFFFFF)))
        if pen.chance(0.9):
            self.initialise()

    def _set(self, register: int, value: int) -> None:
        self.pen.write(self.registers, register, value)

    def _post(self, frame: bytes) -> None:
        """Lay it, and ring."""
        context = int.from_bytes(frame[8:16], "little")
        self.frames.append((self.pen.lay(frame, align=64), context))
        self._ring(self.frames[-1][0])

    def _ring(self, address: int) -> None:
        pen = self.pen
        value = address | pen.one_of((0, 1, 2, 0x1F))
        if pen.chance(0.3):
            self._set(PORT_HIGH, 0 if pen.chance(0.9) else pen.value(32))
            self._set(PORT_LOW, value)
        else:
            self._set(PORT, value)

    def _draw(self, what: Struct, kind: int, moves: list[tuple[int, int]], **given: int) -> bytes:
        """A frame with its list of addresses and lengths."""
        pen = self.pen
        if pen.chance(0.02):  # more than fit behind a frame
            moves = (moves * 128)[:128]
        bits = pen.one_of((0, WIDE, IEEE | WIDE, IEEE)) | pen.one_of((0, WIDE_SENSE, 8, 0x10))
        element = IEEE_ELEMENT if bits & IEEE else WIDE_ELEMENT if bits & WIDE else ELEMENT
        given |= {"command": kind, "elements": len(moves) if pen.chance(0.95) else pen.value(8), "flags": bits}
        rest = b"".join(element.draw(pen, address=address, length=length) for address, length in moves)
        return what.draw(pen, **given) + rest

    @step(2)
    def initialise(self) -> None:
        """Tell the queues."""
        self._post(INITIALISE.draw(self.pen, command=INIT))

    @step(8)
    def pass_through(self) -> None:
        """A SCSI command, to a logical or a physical disk."""
        pen = self.pen
        what = command(pen)
        moves = pieces(pen, what) if what.length or pen.chance(0.5) else [(pen.room(64), 64)]
        kind, length = (
            pen.one_of((LD_SCSI, PD_SCSI)),
            pen.one_of((*[what.length] * 8, sum(size for _, size in moves), pen.value(32))),
        )
        frame = self._draw(
            PASS, kind, moves, length=length, **({"cdb length": len(what.cdb)} if pen.chance(0.95) else {})
        )
        self._post(frame[:32] + what.cdb.ljust(16, b"\0") + frame[48:])

    @step(6)
    def transfer(self) -> None:
        """Read from a logical disk, or write to it."""
        pen = self.pen
        blocks = pen.one_of((1, 1, 2, 8, 16, 0, 0x10000, 0x800000))
        moves = pieces(pen, Command(b"", blocks * BLOCK, False, b""), 6)
        self._post(self._draw(TRANSFER, pen.one_of((READ, WRITE)), moves, length=blocks))

    @step(8)
    def direct(self) -> None:
        """A command to the controller itself."""
        pen = self.pen
        opcode = pen.one_of(tuple(SIZED)) if pen.chance(0.7) else pen.one_of(OTHERS)
        size = SIZED.get(opcode, 64) if pen.chance(0.8) else pen.one_of((0, 1, 7, 8, 11, 12, 4096, 0x10000))
        moves = [(pen.room(size), size)] if size and pen.chance(0.95) else [(pen.address(), 64)] * pen.count(0, 2)
        self._post(
            self._draw(DIRECT, DCMD, moves, opcode=opcode) if pen.chance(0.97) else self._draw(DIRECT, DCMD, moves)
        )

    @step(3)
    def abort(self) -> None:
        """Have a frame forgotten, which may be done, or none."""
        pen = self.pen
        address, context = pen.one_of(self.frames[-pen.one_of((1, 2, 4, 40)) :]) if self.frames else (pen.address(), 0)
        context = context if pen.chance(0.9) else pen.value(64)
        self._post(ABANDON.draw(pen, command=ABORT, aborted=context, frame=address))

    @step(2)
    def again(self) -> None:
        """A frame that was posted already, or none, or one that is of another kind now."""
        pen = self.pen
        address = pen.one_of(self.frames)[0] if self.frames and pen.chance(0.8) else pen.address()
        if pen.chance(0.4):
            pen.lay(bytes([pen.one_of((READ, WRITE, LD_SCSI, PD_SCSI, DCMD, ABORT, SMP, STP, 0x20))]), at=address)
        self._ring(address)

    @step(2)
    def change(self) -> None:
        """What a frame says, behind the device's back."""
        pen = self.pen
        if self.frames:
            at = pen.one_of(self.frames)[0] + 4 * pen.count(0, 18)
            pen.lay(pen.value(32).to_bytes(4, "little"), at=min(at, sum(pen.arena) - 4))

    @step(2)
    def doorbell(self) -> None:
        """All aborted, ready again, or stopped."""
        self._set(DOORBELL, self.pen.one_of((1, 2, 3, 4, 8, 0x10, 0x20, 0x40, 0x3F)))
        if self.pen.chance(0.6):
            self._set(MASK, 0)
            self.initialise()

    @step(2)
    def interrupts(self) -> None:
        """Masked, which resets it, or not, or acknowledged."""
        if self.pen.chance(0.6):
            self._set(CLEAR, self.pen.one_of((0, 1, 0xFFFFFFFF)))
        else:
            self._set(MASK, self.pen.one_of((0, 0, 0x7FFFFFFB, 0xFFFFFFFF)))

    @step(1)
    def reset(self) -> None:
        """The adapter, by a sequence of keys."""
        pen = self.pen
        for key in KEYS[: pen.one_of((6, 6, 6, 5, 2))]:
            self._set(SEQUENCE, key if pen.chance(0.98) else pen.value(8))
        self._set(DIAGNOSTIC, pen.one_of((4, 4, 0, 0xFF)))

    @step(2)
    def any_register(self) -> None:
        """Whatever it is."""
        self._set(self.pen.one_of(REGISTERS), self.pen.value(32))

    @step(2)
    def look(self) -> None:
        """What it says."""
        self.pen.read(self.registers, self.pen.one_of(REGISTERS))
