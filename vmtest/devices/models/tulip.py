"""DEC's 21143 (its Hardware Reference Manual): lists of descriptors, in a ring or chained.

What is sent comes back in its operating modes 1 and 2.
"""

from __future__ import annotations

from vmtest.devices.layout import Pen, Struct, anything, constant, flags, number, zeros
from vmtest.devices.models import Model, step
from vmtest.devices.models.frames import BROADCAST, GROUP, MAC, frame, pieces
from vmtest.devices.models.microwire import strokes

__all__ = ["Tulip"]

SENT = Struct(
    "transmit descriptor",  # 4.2.2
    *(zeros(31), flags("own", 1, own=97), anything("first bytes", 11), anything("second bytes", 11)),
    *(anything("control", 10), anything("first", 32), anything("second", 32)),
)
RECEIVED = Struct(
    "receive descriptor",  # 4.2.1
    *(zeros(31), flags("own", 1, own=95), constant("first bytes", 11, 2047)),
    number("second bytes", 11, 0, 1024, 2047, 5),
    *(anything("control", 10), anything("first", 32), anything("second", 32)),
)
CHAINED, END, SETUP, FIRST, LAST, TOLD = (1 << bit for bit in (2, 3, 5, 7, 8, 9))
MODE, POLL, DEMAND, RX_LIST, TX_LIST, STATUS, OPERATION, MASK, SERIAL = (8 * n for n in (0, 1, 2, 3, 4, 5, 6, 7, 9))
RECEIVE, TRANSMIT, LOOPED, PROMISCUOUS = 2, 0x2000, 0x400, 0x40
BIG_ENDIAN, GAP = 0x100000, 4
"""Of MODE: descriptors' byte order; a word between two of them."""
POKED = ((POLL, 0, 1), (DEMAND, 1), (STATUS, 0x1FFFF, 0, 0x45), (MASK, 0, 0x1FFFF, 0xFFFFFFFF))


def _addresses(pen: Pen) -> bytes:
    """A setup frame (4.2.3): sixteen addresses, in the low halves of three words each."""
    several = [pen.one_of((MAC, MAC, BROADCAST, GROUP, bytes(6))) for _ in range(16)]
    return b"".join(one[at : at + 2] + bytes(2) for one in several for at in (0, 2, 4))


class Tulip(Model):
    """The list of what is sent is a new one each time, or goes on; that of what is received is new now and then."""

    name = "tulip"
    regions = ("tulip-mem",)

    def begin(self) -> None:
        """Both lists; it goes."""
        pen = self.pen
        self.registers = pen.one_of([area for area in self.areas if area.name in ("tulip-mem", "tulip-io")])
        if pen.chance(0.4):
            self._set(MODE, 1)
        self.mode = pen.one_of((0, 0, 0, BIG_ENDIAN, 4 * GAP, BIG_ENDIAN | 4 * GAP))
        self._set(MODE, self.mode)
        self._set(MASK, pen.one_of((0x1FFFF, 0x1FFFF, 0x18045, 0)))
        self.buffers = [pen.room(2048, 4) for _ in range(3)]
        self.fill()
        self._set(OPERATION, RECEIVE | TRANSMIT | LOOPED | PROMISCUOUS)
        self.send()

    def _set(self, register: int, value: int) -> None:
        self.pen.write(self.registers, register, value)

    def _lay(self, rows: list[bytes]) -> int:
        """Descriptors one behind the other, as the mode says."""
        if self.mode & BIG_ENDIAN:
            rows = [b"".join(row[at : at + 4][::-1] for at in range(0, len(row), 4)) for row in rows]
        return self.pen.lay(b"".join(row + bytes(self.mode & 0x7C) for row in rows), 16)

    @step(4)
    def fill(self) -> None:
        """Room for what comes: a ring, or a chain. QEMU 7.2 receives no more, even when it was reset, where a frame
        was not taken whole: so descriptors that do not hold one are many.
        """
        pen = self.pen
        if pen.chance(0.1):
            sizes = {"first bytes": pen.one_of((64, 128, 1024, 0)), "second bytes": pen.one_of((64, 65, 128, 1000))}
            rows = 64 * [RECEIVED.draw(pen, own=1, first=self.buffers[0], second=self.buffers[1], control=0, **sizes)]
        else:
            rows = [self._room(pen.address() if pen.chance(0.05) else 0) for _ in range(pen.one_of((1, 4, 8, 8)))]
        rows.append(RECEIVED.draw(pen, own=0) if pen.chance(0.3) else self._room(0, END))
        self._set(RX_LIST, self._lay(rows))
        if pen.chance(0.3):
            self._set(DEMAND, 1)

    def _room(self, following: int, control: int = 0) -> bytes:
        """For a frame."""
        pen = self.pen
        first, second = pen.one_of(self.buffers), following or pen.one_of(self.buffers)
        if pen.chance(0.05):
            first = pen.one_of((0, pen.address(), self.registers.address, 0xFFFFFFF0))
        return RECEIVED.draw(pen, control=CHAINED if following else control, first=first, second=second)

    @step(14)
    def send(self) -> None:
        """Frames, or the addresses that are received; behind them is a descriptor that is not the device's."""
        pen, rows = self.pen, list[bytes]()
        for _ in range(pen.one_of((1, 1, 2, 3))):
            if pen.chance(0.12):
                given = {"first bytes": 192 if pen.chance(0.95) else pen.value(11), "second bytes": 0}
                rows.append(SENT.draw(pen, first=pen.lay(_addresses(pen)), second=0, control=SETUP | TOLD, **given))
            else:
                rows += self._frame()
        end = SENT.draw(pen, own=0)
        if pen.chance(0.1):  # back to its beginning
            end = SENT.draw(pen, control=END, own=1, **{"first bytes": 0, "second bytes": 0})
        self._set(TX_LIST, self._lay([*rows, end]))
        if pen.chance(0.3):
            self._set(POLL, 1)

    def _frame(self) -> list[bytes]:
        pen = self.pen
        made = frame(pen, jumbo=0.05)
        parts = pieces(pen, made.data, 6, first=made.payload)
        each = 2 if pen.chance(0.7) else 1
        pairs = [(*parts[index : index + each], (0, 0))[:2] for index in range(0, len(parts), each)]
        rows = []
        for index, ((first, first_size), (second, second_size)) in enumerate(pairs):
            control = (FIRST if index == 0 and pen.chance(0.96) else 0) | (TOLD if pen.chance(0.7) else 0)
            control |= LAST if index == len(pairs) - 1 and pen.chance(0.96) else 0
            given = {"first bytes": first_size, "second bytes": second_size, "control": control}
            rows.append(SENT.draw(pen, first=first, second=second, **given))
        return rows

    @step(4)
    def operate(self) -> None:
        """It goes on, or stops; what is looped and accepted."""
        pen = self.pen
        value = pen.one_of((RECEIVE | TRANSMIT,) * 5 + (RECEIVE, TRANSMIT, 0))
        value |= pen.one_of((LOOPED, LOOPED, LOOPED, 2 * LOOPED, 3 * LOOPED, 0))
        value |= pen.one_of((PROMISCUOUS, PROMISCUOUS, 0, 0x80, 0x10, 0x40000000, 5))
        self._set(OPERATION, value)

    @step(2)
    def reset(self) -> None:
        """It, or only its mode: descriptors are read otherwise."""
        self.mode = self.pen.one_of((self.mode, self.mode, 0, BIG_ENDIAN, 4 * GAP, 31 * GAP))
        self._set(MODE, self.mode | self.pen.chance(0.4))
        self._set(MODE, self.mode)

    @step(3)
    def poll(self) -> None:
        """Have the lists looked at; acknowledge interrupts."""
        pen = self.pen
        register, *values = pen.one_of(POKED)
        self._set(register, pen.one_of(values))

    @step(1)
    def eeprom(self) -> None:
        """Its wires."""
        for select, clock, data in strokes(self.pen):
            self._set(SERIAL, 0x4800 | select | clock << 1 | data << 2)
        self.pen.read(self.registers, SERIAL)

    @step(1)
    def phy(self) -> None:
        """The wires of the PHY's management: where, and what is written or read (IEEE 802.3, 22.2.4.5)."""
        pen = self.pen
        operation, phy = pen.one_of((6, 6, 5, 5, 0)), pen.one_of((1, 1, 1, 0, 31))
        word = operation << 28 | phy << 23 | pen.count(0, 31) << 18 | 2 << 16 | pen.value(16)
        word, bits = word | 0xFFFFFFFF << 32, pen.one_of((64, 64, 48, 33))
        for bit in range(63, 63 - bits, -1):
            value = (word >> bit & 1) << 17 | (0x40000 if operation == 6 and bit < 16 else 0)
            self._set(SERIAL, value)
            self._set(SERIAL, value | 0x10000)
        pen.read(self.registers, SERIAL)

    @step(3)
    def touch(self) -> None:
        """Any register."""
        pen = self.pen
        offset = 8 * pen.count(0, 15) if pen.chance(0.9) else pen.count(0, 124)
        if pen.chance(0.4):
            self._set(offset, pen.value(32))
        else:
            pen.read(self.registers, offset)
