"""LSI SAS1068: Fusion-MPT messages (MPI 1.5), by the doorbell's handshake and by the queue of requests."""

from __future__ import annotations

from vmtest.devices.layout import Field, Struct, anything, constant, drawn, number, octets, pointer, zeros
from vmtest.devices.models import Model, step
from vmtest.devices.models.scsi_commands import command, pieces

__all__ = ["Mptsas"]

IO, TASK, INIT, FACTS, CONFIG, PORT_FACTS, PORT_ENABLE, EVENTS = range(8)
UNIT_RESET, IO_RESET, HANDSHAKE = 0x40, 0x41, 0x42
DOORBELL, SEQUENCE, DIAGNOSTIC, STATUS, MASK, REQUESTS, REPLIES = 0x0, 0x4, 0x8, 0x30, 0x34, 0x40, 0x44
REGISTERS = (DOORBELL, SEQUENCE, DIAGNOSTIC, 0xC, 0x10, 0x14, STATUS, MASK, REQUESTS, REPLIES, 0x48, 0x50)
KEYS = (4, 0xB, 2, 7, 0xD)

LAST, END_OF_BUFFER, SIMPLE, CHAIN, TO_DEVICE, WIDE, END = 1 << 31, 1 << 30, 1 << 28, 3 << 28, 1 << 26, 1 << 25, 1 << 24
ELEMENT = Struct("SGE", anything("flags", 32), anything("address", 32))
WIDE_ELEMENT = Struct("SGE, 64", anything("flags", 32), anything("address", 64))


def _function(code: int) -> Field:
    """What a message is: never another one by the doorbell, which has no way out then, not even a reset."""
    return drawn("function", 8, lambda pen: code)


LUN = number("lun", 64, *(0,) * 10, 0x100)
CONTEXT = number("context", 32, 1, 2, 3)
PLAIN = Struct(
    "facts, enable, or events",
    *(number("switch", 8, 0, 1), zeros(16), _function(FACTS), zeros(16), number("port", 16, *range(9)), CONTEXT),
)
INITIALISE = Struct(
    "IOCInit",
    *(number("who", 8, 4, 1, 2), zeros(16), _function(INIT), zeros(8)),
    *(number("devices", 8, 0, 8, 8, 255), number("buses", 8, 1), zeros(8), CONTEXT),
    number("reply size", 32, 128, 128, 80, 128, 80, 20, 0),
    *(constant("high", 32, 0), constant("high of sense", 32, 0), zeros(32)),
    *(number("flags of page", 32, 0), pointer("host page", 64, octets(64)), number("version", 32, 0x01050000)),
)
WHOLE = SIMPLE | LAST | END | END_OF_BUFFER
CONFIGURATION = Struct(
    "Config",
    *(number("action", 8, 0, 1, 1, 1, 2, 3, 4, 5, 6), zeros(16), _function(CONFIG), zeros(16)),
    *(number("extended type", 8, 0x10, 0x12, 0x12, 0x13, 0x13, 0x11, 0x0F), zeros(8), CONTEXT, zeros(64 + 16)),
    number("number", 8, 0, 0, 0, 1, 1, *range(11)),
    number("type", 8, 0, 1, 9, 9, 0x0F, 0x0F, 0x0F, 0x0F, 2),
    number("address", 32, 0, 1, 7, 8, 0xFFFF, 0x10000000, 0x10000007, 0x10000100, 0x20000009, 0x20000010, 0x30000000),
    number("flags", 32, WHOLE | WIDE | 256, WHOLE | 256, WHOLE | WIDE | 4, WHOLE, WHOLE | 0xFFFFFF),
    pointer("to", 64, octets(256)),
)
MANAGE = Struct(
    "SCSITaskMgmt",
    *(number("target", 8, *(0,) * 10, 1, 7, 8, 255), constant("bus", 8, 0), zeros(8), _function(TASK), zeros(8)),
    number("kind", 8, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0),
    *(zeros(16), CONTEXT, LUN, zeros(32 * 7), anything("task", 32)),
)
REQUEST = Struct(
    "SCSIIORequest",
    *MANAGE.fields[:2],
    anything("chain", 8),
    _function(IO),
    number("cdb length", 8, 6, 10, 12, 16),
    number("sense length", 8, 96, 18, 0, 255),
    *(zeros(8), number("flags", 8, 0), anything("context", 32), LUN),
    number("control", 32, 0, 1 << 24, 2 << 24, 3 << 24),
    drawn("cdb", 128, lambda pen: 0),
    anything("length", 32),
    pointer("sense", 32, octets(96)),
)
READS = {INIT: 10, FACTS: 40, CONFIG: 12, PORT_FACTS: 20, PORT_ENABLE: 10, EVENTS: 16, TASK: 1}
"""By function, how many half-words a reply has, by the doorbell."""


class Mptsas(Model):
    """All that is told is a message."""

    name = "Fusion-MPT SAS"
    regions = ("mptsas-mmio", "mptsas-io", "mptsas-diag")

    def begin(self) -> None:
        """The controller is operational, and has frames for its replies."""
        self.registers = self.needed(self.pen.one_of(("mptsas-mmio", "mptsas-mmio", "mptsas-mmio", "mptsas-io")))
        self.context, self.requests = 0, list[int]()
        self._set(MASK, self.pen.one_of((0, 0, 8, 9)))
        if self.pen.chance(0.95):
            self.initialise()
        self.free(self.pen.count(4, 16))

    def _set(self, register: int, value: int) -> None:
        self.pen.write(self.registers, register, value)

    def _handshake(self, message: bytes) -> None:
        """By the doorbell, word by word; then the reply, half-word by half-word."""
        pen = self.pen
        words = len(message) // 4 if pen.chance(0.998) else pen.one_of((1, 2, 13, 255, 0))
        self._set(DOORBELL, HANDSHAKE << 24 | words << 16)
        self._set(STATUS, 0)
        for at in range(0, 4 * min(words, 16), 4):
            self._set(DOORBELL, int.from_bytes(message[at : at + 4], "little"))
        reads = READS.get(message[3], 2) if pen.chance(0.95) else pen.count(0, 12)
        for _ in range(reads):
            pen.read(self.registers, DOORBELL)
        self._set(STATUS, 0)

    def _queue(self, message: bytes) -> None:
        """By the queue; what it does not know is a fault."""
        if self.pen.chance(0.01):
            message = message[:3] + bytes([self.pen.count(8, 64)]) + message[4:]
        self.requests.append(self.pen.lay(message, align=128))
        self._set(REQUESTS, self.requests[-1])

    @step(1)
    def initialise(self) -> None:
        """Tell it about the host."""
        self._handshake(INITIALISE.draw(self.pen))

    @step(3)
    def free(self, times: int = 2) -> None:
        """Frames for replies."""
        for _ in range(times):
            self._set(REPLIES, self.pen.room(128, 128) if self.pen.chance(0.97) else self.pen.value(32))

    @step(12)
    def request(self) -> None:
        """A SCSI command, or some at once."""
        for _ in range(self.pen.one_of((1, 1, 2, 4))):
            self._queue(self._scsi())
        if self.pen.chance(0.7):
            self.free(1)

    def _scsi(self) -> bytes:
        pen = self.pen
        what = command(pen)
        self.context = self.context + 1 & 0xFFFF
        moves = pieces(pen, what, 6)
        bits = 0 if not what.length else TO_DEVICE if what.takes else 0
        wide, direct = pen.chance(0.5), len(moves) if pen.chance(0.6) else pen.count(1, len(moves))
        size = 12 if wide else 8
        given = {"context": self.context, "cdb": int.from_bytes(what.cdb, "little"), "cdb length": len(what.cdb)}
        given |= {"length": sum(length for _, length in moves)} if pen.chance(0.97) else {}
        given |= {"control": (1 if what.takes else 2) << 24 if what.length else 0} if pen.chance(0.95) else {}
        behind = b""
        if chained := moves[direct:]:
            place = pen.lay(self._elements(chained, wide, bits, END), align=4)
            given["chain"] = (48 + size * direct) // 4 if pen.chance(0.95) else pen.value(8)
            behind = self._element(place, size * len(chained), wide, CHAIN)
        else:
            given["chain"] = 0 if pen.chance(0.97) else pen.value(8)
        return REQUEST.draw(pen, **given) + self._elements(moves[:direct], wide, bits, 0 if chained else END) + behind

    def _elements(self, moves: list[tuple[int, int]], wide: bool, bits: int, end: int) -> bytes:
        """A list of which the last one says so."""
        last = len(moves) - 1
        return b"".join(
            self._element(
                at, length, wide, bits | SIMPLE | (LAST | (end and end | END_OF_BUFFER) if index == last else 0)
            )
            for index, (at, length) in enumerate(moves)
        )

    def _element(self, address: int, length: int, wide: bool, bits: int) -> bytes:
        pen = self.pen
        bits = (bits | (WIDE if wide else 0)) if pen.chance(0.97) else pen.value(8) << 24
        return (WIDE_ELEMENT if wide else ELEMENT).draw(
            pen, flags=bits & 0xFF000000 | length & 0xFFFFFF, address=address
        )

    def _message(self) -> bytes:
        """One that is about the controller."""
        pen = self.pen
        if pen.chance(0.6):
            return CONFIGURATION.draw(pen)
        return PLAIN.draw(pen, function=pen.one_of((FACTS, PORT_FACTS, PORT_ENABLE, EVENTS)))

    @step(4)
    def ask(self) -> None:
        """By the queue: about its pages, its ports."""
        self._queue(self._message())
        self.free(1)

    @step(3)
    def ask_at_once(self) -> None:
        """By the doorbell."""
        self._handshake(self._message())

    @step(4)
    def manage(self) -> None:
        """Tasks: aborted, looked for, or all of a disk reset."""
        message = MANAGE.draw(self.pen, task=self.context - self.pen.one_of((0, 0, 1, 2, 9)))
        self.free(1)
        self._queue(message) if self.pen.chance(0.95) else self._handshake(message)

    @step(2)
    def change(self) -> None:
        """A request that it may have read, or the list behind it."""
        if self.requests:
            at = self.pen.one_of(self.requests[-4:]) + 4 * self.pen.count(0, 20)
            self.pen.lay(self.pen.value(32).to_bytes(4, "little"), at=min(at, sum(self.pen.arena) - 4))

    @step(2)
    def again(self) -> None:
        """A request that was posted, or what is none."""
        address = self.pen.one_of(self.requests) if self.requests and self.pen.chance(0.9) else self.pen.value(32)
        self._set(REQUESTS, address | self.pen.one_of((0, 0, 3)))

    @step(2)
    def reset(self) -> None:
        """The message unit, or all of it; most often it is set up again."""
        pen = self.pen
        if pen.chance(0.6):
            self._set(DOORBELL, pen.one_of((UNIT_RESET, UNIT_RESET, IO_RESET, 0x43, 0x44)) << 24)
        else:
            for key in KEYS[: pen.one_of((5, 5, 3))]:
                self._set(SEQUENCE, key)
            self._set(DIAGNOSTIC, pen.one_of((4, 4, 0x10, 0xFF)))
        if pen.chance(0.85):
            self.initialise()
            self.free(6)

    @step(4)
    def collect(self) -> None:
        """Interrupts, and replies."""
        self._set(STATUS, 0)
        for _ in range(self.pen.count(1, 6)):
            self.pen.read(self.registers, REPLIES)

    @step(1)
    def any_register(self) -> None:
        """Whatever it is, or of what is for diagnosis."""
        area = self.needed("mptsas-diag") if self.pen.chance(0.2) else self.registers
        self.pen.write(area, self.pen.one_of(REGISTERS), self.pen.value(32))

    @step(2)
    def look(self) -> None:
        """What it says."""
        area = self.needed("mptsas-diag") if self.pen.chance(0.2) else self.registers
        self.pen.read(area, self.pen.one_of(REGISTERS))
