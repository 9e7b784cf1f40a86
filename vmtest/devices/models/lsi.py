"""LSI53C895A and LSI53C810: SCRIPTS, programs in memory that the controller runs (LSI53C895A technical manual, 5)."""

from __future__ import annotations

from vmtest.devices.layout import Struct, anything, constant, flags, number, octets, pointer, zeros
from vmtest.devices.models import Model, step
from vmtest.devices.models.scsi_commands import command, pieces

__all__ = ["Lsi"]

OUT, IN, COMMAND, STATUS, MESSAGE_OUT, MESSAGE_IN = 0, 1, 2, 3, 6, 7
SELECT, WAIT_DISCONNECT, WAIT_RESELECT, CLEAR_ACK = 0x41000008, 0x48000000, 0x50000000, 0x60000040
JUMP, INTERRUPT, ON_THE_FLY = 0x80080000, 0x98080000, 0x98180000
IF_PHASE, IF_DATA, TRUE = 1 << 17, 1 << 18, 1 << 19
INDIRECT, TABLE = 1 << 29, 1 << 28
CLEAR_SIGNAL = 0x721A0000
_MESSAGES = """
    80 80 C0 C02001 C02002 C02003 802101 802202 81 08
    800103010C0F 8001020301 800106040A001F0102 8001027F01
    06 8006 C020010D 0E 800C 04 05 8001
"""
MESSAGES = tuple(bytes.fromhex(word) for word in _MESSAGES.split())
"""IDENTIFY, mostly, with a tag or without; then negotiations, aborts, and what is none (SPI-4, 16)."""

REGISTER = Struct(
    "read or write a register",  # 5.4
    *(zeros(8), number("data", 8, 0, 1, 0x80, 0xFF), number("register", 8, 0x34, 0x35, 0x5C, 0x08, 0x01, 0x10, 0x88)),
    *(number("operator", 3, *range(8)), number("opcode", 3, 5, 6, 7), constant("class", 2, 1), zeros(32)),
)
SET_OR_CLEAR = Struct(
    "set or clear",
    flags("what", 16, gap3=0, attention=10, gap2=0, acknowledge=60, gap2_=0, target=5, carry=40),
    *(zeros(11), number("opcode", 3, 3, 4), constant("class", 2, 1), zeros(32)),
)
MOVE = Struct(
    "move memory",  # 5.6
    *(number("count", 24, 4, 16, 512, 4097, 0), constant("class", 8, 0xC0)),
    *(pointer("from", 32, octets(64)), pointer("to", 32, octets(64))),
)
LOAD_OR_STORE = Struct(
    "load or store",  # 5.7
    *(number("count", 3, 1, 2, 4, 7, 0), zeros(13)),
    number("register", 8, 0x34, 0x5C, 0x10, 0x60, 0xA0, 0xC0, 0x1C, 0x0C, 0x58),
    flags("how", 8, load=50, flush=20, gap2=0, table=40, one=100, two=100, three=100),
    pointer("address", 32, octets(8), null=0.3),
)
TRANSFER = Struct(
    "transfer of control",  # 5.5
    *(anything("data", 8), number("mask", 8, 0, 0xFF, 0x7F)),
    flags("if", 8, wait=30, phase=40, data=40, true=50, fly=20, carry=40, gap1=0, relative=100),
    *(number("phase", 3, *range(8)), number("opcode", 3, 0, 0, 0, 1, 1, 2, 3, 4), constant("class", 2, 2)),
    number("offset", 32, 0, 8),
)
EXTRAS = (REGISTER, REGISTER, SET_OR_CLEAR, MOVE, LOAD_OR_STORE, LOAD_OR_STORE, TRANSFER, TRANSFER)
HIGH = number("high", 8, 0, 0, 0, 0x10, 0x15, 0x1F)
ENTRY = Struct("table entry", number("count", 24, 1), HIGH, anything("address", 32))

SCNTL0, SCNTL1, SCID, DSTAT, DSA, ISTAT = 0x00, 0x01, 0x04, 0x0C, 0x10, 0x14
DSP, DMODE, DIEN, DCNTL, SIEN0, SIEN1 = 0x2C, 0x38, 0x39, 0x3B, 0x40, 0x41
SIGNAL, ABORT, SIST0, SIST1, STIME1, SBDL = 0x20, 0x80, 0x42, 0x43, 0x49, 0x58
SETTINGS = (  # registers, and what they are set to, mostly
    *((SCNTL0, (0xC0, 0x20)), (SCNTL1, (0, 2, 0x10)), (0x02, (0, 0x80)), (SCID, (7, 0x67, 0x47))),
    *((DMODE, (0, 1, 0x10, 0x20)), (DIEN, (0, 0x7F, 0x7D)), (DCNTL, (0, 1, 4, 0x10, 0x20))),
    *((SIEN0, (0, 0x8F, 0xFF, 0x10)), (SIEN1, (0, 4, 0xFF)), (0x1A, (0, 8)), (0x21, (0, 8)), (0x22, (0, 0x20))),
    *((STIME1, (0, 0xF)), (0x4E, (0, 1)), (0x4F, (0, 0x80)), (0x56, (0, 0x80, 0xC0)), (0x57, (0, 1, 2, 6))),
)

Move = tuple[int, int]
"""An address, and how many bytes."""


class Lsi(Model):
    """A program selects a disk, and then does what the disk wants, phase after phase."""

    name = "LSI SCRIPTS"
    regions = ("lsi-mmio", "lsi-ram", "lsi-io")

    def begin(self) -> None:
        """Reset, interrupts, and a program."""
        pen = self.pen
        self.registers = self.needed(pen.one_of(("lsi-mmio", "lsi-mmio", "lsi-io")))
        self.code: list[int | str] = []
        self.labels: dict[str, int] = {}
        self.program, self.table = pen.arena[0], pen.arena[0]
        if pen.chance(0.25):
            self.reset()
        for register, values in ((SCID, (7, 7, 0x67)), (DIEN, (0x7D,)), (SIEN0, (0x8F, 0x8F, 0, 0x9F)), (SIEN1, (4,))):
            self._set(register, pen.one_of(values))
        self.run_program()
        if pen.chance(0.5):  # the first one is told of the reset, and no more
            self.run_program()

    def _set(self, register: int, value: int, size: int = 1) -> None:
        self.pen.write(self.registers, register, value, size)

    def _emit(self, *words: int | str) -> None:
        """An instruction, behind one of any kind now and then. Where a word is a label, its address comes to be."""
        if self.pen.chance(0.06):
            extra = self.pen.one_of(EXTRAS).draw(self.pen)
            self.code += [int.from_bytes(extra[at : at + 4], "little") for at in range(0, len(extra), 4)]
        self.code += words

    def _label(self, name: str) -> None:
        self.labels[name] = 4 * len(self.code)

    def _move(self, phase: int, move: Move, entry: int) -> None:
        """A block move: what it is about is told by itself, by an entry of the table, or by a word."""
        pen = self.pen
        address, size = move
        kind = pen.roll()
        if kind < 0.6:
            self._emit(phase << 24 | size & 0xFFFFFF, address)
        elif kind < 0.9:
            self._emit(TABLE | phase << 24, 8 * entry if pen.chance(0.97) else pen.value(32))
        else:
            self._emit(INDIRECT | phase << 24 | size & 0xFFFFFF, pen.lay((address & 0xFFFFFFFF).to_bytes(4, "little")))

    def _write(self) -> None:
        """The program, for another command; the table with what moves in each phase."""
        pen = self.pen
        what = command(pen)
        message = pen.one_of(MESSAGES[: pen.one_of((6, 6, 6, len(MESSAGES)))])
        moves = pieces(pen, what, 6)
        phases: dict[int, list[Move]] = {
            MESSAGE_OUT: [(pen.lay(message), len(message))],
            COMMAND: [(pen.lay(what.cdb), len(what.cdb) if pen.chance(0.97) else pen.count(0, 20))],
            OUT: moves,
            IN: moves,
            STATUS: [(pen.room(4), 1)],
            MESSAGE_IN: [(pen.room(8), pen.one_of((1, 1, 1, 1, 2, 8)))],
        }
        entries = [(phase, move) for phase, several in phases.items() for move in several]
        self.table = pen.lay(b"".join(ENTRY.draw(pen, count=size, address=at) for _, (at, size) in entries))
        self.code, self.labels = [], {}
        self._label("start")
        self._emit(SELECT | pen.one_of((*(0,) * 10, 1, 7)) << 16, "dispatch")
        self._emit(CLEAR_SIGNAL, 0)
        self._label("dispatch")
        for phase in phases:
            self._emit(JUMP | IF_PHASE | phase << 24, f"phase {phase}")
        self._emit(INTERRUPT, 2)
        for phase in phases:
            self._label(f"phase {phase}")
            for index, (of, move) in enumerate(entries):
                if of == phase:
                    self._move(phase, move, index)
                    self._emit(JUMP & ~TRUE | IF_PHASE | phase << 24, "dispatch")
            if phase == MESSAGE_IN:
                self._emit(CLEAR_ACK, 0)
                self._emit(JUMP, "got message")
            elif phase in (IN, OUT) and any(size for _, size in moves):
                self._emit(JUMP, "dispatch")
            else:  # it would go on for ever
                self._emit(INTERRUPT, phase)
        self._label("got message")
        self._emit(JUMP | IF_DATA | 4, "disconnected")
        self._emit(JUMP | IF_DATA | 0, "done")
        self._emit(JUMP, "dispatch")
        self._label("disconnected")
        self._emit(WAIT_DISCONNECT, 0)
        self._label("reselection")
        self._emit(WAIT_RESELECT, pen.one_of(("start", "dispatch", "done")))
        self._emit(JUMP, "dispatch")
        self._label("done")
        self._emit(WAIT_DISCONNECT, 0)
        self._emit(*pen.one_of(((INTERRUPT, 1), (INTERRUPT, 1), (ON_THE_FLY, 1), (JUMP, "reselection"))))
        self._emit(INTERRUPT, 3)

    @step(10)
    def run_program(self) -> None:
        """Write it, to memory or to the controller's own, and have it run."""
        pen = self.pen
        self._write()
        ram = self.needed("lsi-ram") if pen.chance(0.1) else None
        self.program = ram.address if ram else pen.room(4 * len(self.code))
        words = [self.program + self.labels[word] if isinstance(word, str) else word for word in self.code]
        if pen.chance(0.1):
            words[pen.count(0, len(words) - 1)] = pen.value(32)
        if ram:
            for at, word in enumerate(words):
                pen.write(ram, 4 * at, word)
        else:
            pen.lay(b"".join(word.to_bytes(4, "little") for word in words), at=self.program)
        if pen.chance(0.8):  # the one before may wait, or run without an end: nothing else starts then
            self._set(ISTAT, pen.one_of((SIGNAL, ABORT, ABORT)))
            self.serve()
        self._set(DSA, self.table, 4)
        self._start("start")

    def _start(self, label: str) -> None:
        self._set(DSP, self.program + self.labels[label], 4)
        if self.pen.chance(0.1):  # where it waits for this
            self._set(DCNTL, 4)

    @step(5)
    def go_on(self) -> None:
        """Somewhere in the program, as a driver does after an interrupt."""
        self.serve()
        self._start(self.pen.one_of(("dispatch", "dispatch", "reselection", "start", *self.labels)))

    @step(4)
    def serve(self) -> None:
        """Ask for what has happened, which acknowledges it."""
        for register in (ISTAT, DSTAT, SIST0, SIST1):
            self.pen.read(self.registers, register, 1)

    @step(3)
    def signal(self) -> None:
        """The program: that something is to do, or that it is to stop."""
        self._set(ISTAT, self.pen.one_of((SIGNAL, SIGNAL, ABORT, 0x10, 0x04, 0)))

    @step(1)
    def reset(self) -> None:
        """The controller, or the bus."""
        if self.pen.chance(0.4):
            self._set(ISTAT, 0x40)
            self._set(ISTAT, 0)
        else:
            self._set(SCNTL1, 0x08)
            self._set(SCNTL1, 0)

    @step(3)
    def configure(self) -> None:
        """One of the settings."""
        register, values = self.pen.one_of(SETTINGS)
        self._set(register, self.pen.one_of(values) if self.pen.chance(0.9) else self.pen.value(8))

    @step(2)
    def change(self) -> None:
        """A word of the program, or of the table."""
        pen = self.pen
        base, size = pen.arena
        at = pen.one_of((self.program + 4 * pen.count(0, len(self.code)), self.table + 4 * pen.count(0, 12)))
        if base <= at < base + size - 4:
            pen.lay(pen.value(32).to_bytes(4, "little"), at=at)

    @step(2)
    def any_register(self) -> None:
        """Whatever it is."""
        size = self.pen.one_of((1, 1, 4))
        self._set(self.pen.count(0, 0xE0) & -size, self.pen.value(8 * size), size)

    @step(3)
    def look(self) -> None:
        """What it says."""
        self.pen.read(self.registers, self.pen.one_of((SBDL, 0x0E, 0x1A, self.pen.count(0, 0xFF))), 1)
