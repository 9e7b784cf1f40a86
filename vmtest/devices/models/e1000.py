"""Intel's gigabit controllers: the 8254x (PCI/PCI-X Family Software Developer's Manual) and the 82574L (its datasheet).

What is sent comes back where the PHY, or the MAC of the 82574L, loops it: nothing else brings packets in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vmtest.devices.layout import Struct, anything, constant, number
from vmtest.devices.models import Model, step
from vmtest.devices.models.frames import BROADCAST, GROUP, MAC, Frame, frame, pieces
from vmtest.devices.models.microwire import strokes

__all__ = ["E1000"]

SPECIAL = number("special", 16, 0, 5, 0x2005, 0xFFFF)
LEGACY = Struct(
    "legacy transmit descriptor",  # 8254x, 3.3.3
    *(anything("address", 64), anything("length", 16)),
    number("checksum offset", 8, 0, 16, 50, 255),
    *(anything("command", 8), number("status", 8, 0, 0x0F)),
    *(number("checksum start", 8, 0, 14, 34, 255), SPECIAL),
)
DATA = Struct(
    "TCP/IP data descriptor",  # 3.3.7
    *(anything("address", 64), anything("length", 20), constant("type", 4, 1)),
    *(anything("command", 8), number("status", 8, 0, 0x10)),
    *(number("options", 8, 0, 1, 2, 3, 3, 3), SPECIAL),
)
CONTEXT = Struct(
    "TCP/IP context descriptor",  # 3.3.6
    *(anything("network", 8), anything("network checksum", 8), anything("network end", 16)),
    *(anything("transport", 8), anything("transport checksum", 8), number("transport end", 16, 0, 0, 0, 1500)),
    *(anything("payload", 20), constant("type", 4, 0), anything("command", 8)),
    *(number("status", 8, 0), anything("header", 8)),
    number("segment", 16, 1460, 1448, 536, 100, 88, 4, 1, 0, 9000, 0xFFFF),
)
TCP_KIND, IPV4_KIND, SEGMENT, SNAP, EXTENDED = 1, 2, 4, 16, 0x20

CTRL, STATUS, EECD, EERD, CTRL_EXT, MDIC, VET = 0x00, 0x08, 0x10, 0x14, 0x18, 0x20, 0x38
ICR, ITR, ICS, IMS, IMC, EIAC, IAM, EITR, RCTL, TCTL = 0xC0, 0xC4, 0xC8, 0xD0, 0xD8, 0xDC, 0xE0, 0xE8, 0x100, 0x400
EEWR, RDTR, RADV, TIDV, TADV, MTA, RA, VFTA = 0x102C, 0x2820, 0x282C, 0x3820, 0x382C, 0x5200, 0x5400, 0x5600
LOW, HIGH, LENGTH, HEAD, TAIL, RX, TX, QUEUE = 0x00, 0x04, 0x08, 0x10, 0x18, 0x2800, 0x3800, 0x100

DELAYS = (0, 1, 8, 0xFFFF, 0x80000000, 0x80000008)
CAUSES = (0, 1, 2, 4, 0x10, 0x40, 0x80, 0x9D, 0x8000, 0x1F00000, 0x1000000, 0xFFFFFFFF, 0xFFFFFFFF)
BUFFERS = (0, 0, 0, 0x10000, 0x20000, 0x30000, 0x2010000, 0x2020000, 0x2030000, 0x8000000)
CONTROLS = (
    *((register, *CAUSES) for register in (ICR, ICS, ICS, IMS, IMC, EIAC, IAM)),
    *((register, *DELAYS) for register in (ITR, RDTR, RDTR, RADV, TIDV, TIDV, TADV, *range(EITR, EITR + 20, 4))),
    (CTRL, 0x41, 0x40000041, 0x40000041, 0x4000041, 0x80000041, 0x1B41, 0x1941, 0x18000041, 4),
    *2 * ((CTRL_EXT, 0, 0, 0x80, 0x8000, 0x1000000, 0x8000000, 0x8000000, 0x80000000, 0xD9000000, 0xFFFFFFFF),),
    *2 * ((TCTL, 0x4010A, 0x4010A, 0, 0x40108),),
    *((STATUS, 0, 0x400), (VET, 0x8100, 0x8100, 0x88A8, 0x0800, 0)),
)
EVERY = (0x00, 0x08, 0x10, 0x14, 0x18, 0x20, 0xC0, 0xC0, 0xC8, 0xD0, 0xE8, 0x100, 0x1010, 0x5B50, 0x5B54)


@dataclass
class _Ring:
    registers: int
    base: int
    entries: int
    tail: int = 0


class E1000(Model):
    """The 82540EM, 82544GC, 82545EM; what another has more is its ``features``."""

    name = "e1000"
    region: ClassVar[str] = "e1000-mmio"
    regions = (region,)
    queues: ClassVar[int] = 1
    loops: ClassVar[Sequence[int]] = (0,)
    waits: ClassVar[float] = 0.002  # a second: so long the 8254x receives nothing when its receiver was told to go

    def begin(self) -> None:
        """Rings, filters, timers; then the receiver and the transmitter go."""
        pen = self.pen
        self.registers = self.needed(self.region)
        self.rx, self.tx = list[_Ring](), list[_Ring]()
        self.is_split = False
        if pen.chance(0.15):
            self.set(CTRL, pen.one_of((0x4000000, 0x4000040, 0x80000040)))
        self.set(CTRL, 0x41 | (pen.chance(0.5) << 30))
        self.set(RCTL, 0)
        self.filters()
        self.features()
        self.buffers = [pen.room(pen.one_of((2048, 4096)), pen.one_of((1, 16, 2048))) for _ in range(3)]
        for queue in range(self.queues):
            entries = pen.one_of((8, 16, 16, 24, 32, 64))
            self.rx.append(_Ring(RX + QUEUE * queue, pen.room(16 * entries, 128), entries))
            self.tx.append(_Ring(TX + QUEUE * queue, pen.room(16 * 16, 128), 16))
        for ring in (*self.rx, *self.tx):
            for offset, value in ((LOW, ring.base), (HIGH, 0), (LENGTH, 16 * ring.entries), (HEAD, 0), (TAIL, 0)):
                self.set(ring.registers + offset, value)
        self.set(IMS, pen.one_of((0x1F782D7, 0x9D, 0xFFFFFFFF, 0)))
        if pen.chance(0.95):
            self.phy(0, 0x4140)
        self.receive()
        for ring in self.rx:
            self.fill(ring)
        self.set(TCTL, 0x4010A if pen.chance(0.95) else pen.value(32))
        if pen.chance(self.waits):
            if pen.chance(0.3):
                self.phy(0, 0x1340)  # the link is negotiated anew, which takes half of it
            pen.wait(1_000_000_000)
            self.phy(0, 0x4140)
            for _ in range(pen.count(16, 48)):
                pen.one_of((self.send, self.send, self.send, self.fill))()

    def set(self, register: int, value: int) -> None:
        """A register of 32 bits."""
        self.pen.write(self.registers, register, value)

    def features(self) -> None:
        """What only one of them has."""

    @step(2)
    def fill(self, ring: _Ring | None = None) -> None:
        """Receive descriptors all over a ring: those that split packets have four addresses and nothing else."""
        pen, words = self.pen, list[int]()
        ring = ring or pen.one_of(self.rx)
        for index in range(2 * ring.entries):
            at = pen.one_of(self.buffers)
            if pen.chance(0.04):  # none, the ring itself, the device itself, nothing at all
                to_self = self.registers.address + pen.one_of((TX + TAIL, RX + TAIL, RCTL, ICS, 0))
                at = pen.one_of((0, at + 1, ring.base, to_self, 1 << 40))
            words.append(at if self.is_split or index % 2 == 0 else 0)
        pen.lay(b"".join(at.to_bytes(8, "little") for at in words), at=ring.base)
        self.set(ring.registers + HEAD, 0)
        last = ring.entries - 2 if pen.chance(0.9) else pen.count(0, ring.entries)
        self.set(ring.registers + TAIL, self._even(last))

    def _even(self, index: int) -> int:
        """A split descriptor is two: QEMU 7.2 does not end where an odd one is the last. So that is left to chance."""
        return index if self.pen.chance(0.02) else index & ~1

    @step(3)
    def receive(self) -> None:
        """The receiver's control (13.4.22): it goes on, mostly."""
        pen = self.pen
        value = 2 | pen.one_of(BUFFERS) | (pen.chance(0.5) << 26) | pen.count(0, 3) << 8 | pen.one_of(self.loops)
        for bit, often in ((2, 0.5), (3, 0.5), (4, 0.4), (5, 0.7), (15, 0.9), (18, 0.15), (19, 0.1)):
            value |= pen.chance(often) << bit
        value |= self.is_split << 10
        self.set(RCTL, pen.value(32) if pen.chance(0.03) else value & ~2 if pen.chance(0.05) else value)

    @step(16)
    def send(self) -> None:
        """A frame, by descriptors of one kind; mostly its doorbell, too."""
        pen = self.pen
        made = frame(pen, jumbo=0.12)
        parts = pieces(pen, made.data, 5, first=made.payload)
        rows, kind, command = list[bytes](), LEGACY, pen.chance(0.25) << 6 | pen.chance(0.3) << 7 | 0xA
        if pen.chance(0.7):
            segment = SEGMENT if (made.is_tcp and pen.chance(0.5)) or pen.chance(0.05) else 0
            kind, command = DATA, command | EXTENDED | segment
            if segment or pen.chance(0.6):
                rows.append(self.context(made, segment))
        for at, size in parts:
            rows.append(kind.draw(pen, address=at, length=size, command=command))
        if pen.chance(0.97):  # the packet's end
            rows[-1] = kind.draw(pen, address=parts[-1][0], length=parts[-1][1], command=command | 1)
        ring = pen.one_of(self.tx)
        for row in rows:
            pen.lay(row, at=ring.base + 16 * ring.tail)
            ring.tail = (ring.tail + 1) % ring.entries
        if pen.chance(0.93):
            self.set(ring.registers + TAIL, ring.tail)

    def context(self, made: Frame, segment: int) -> bytes:
        """Where the headers are that checksums and segments are made of."""
        pen = self.pen
        given = {"network": made.network, "network checksum": made.network + 10, "transport": made.transport}
        given |= {"network end": made.transport - 1 if made.is_ipv6 or pen.chance(0.8) else 0, "header": made.payload}
        given["transport checksum"] = made.transport + (16 if made.is_tcp else 6)
        given["payload"] = max(0, len(made.data) - made.payload)
        if pen.chance(0.12):
            name = pen.one_of(tuple(given))
            given[name] = pen.one_of((0, 1, 13, 14, 0xFF, 0xFFFF, 0xFFFFF, given[name] + 1, given[name] - 1))
        command = segment | 8 | EXTENDED | (TCP_KIND if made.is_tcp else 0) | (0 if made.is_ipv6 else IPV4_KIND)
        return CONTEXT.draw(pen, command=command | (SNAP if pen.chance(0.05) else 0), **given)

    @step(2)
    def rings(self) -> None:
        """Where a ring is, how long, and what is next in it."""
        pen = self.pen
        ring = pen.one_of((*self.rx, *self.tx, *self.tx))
        right = {LOW: ring.base, HIGH: 0, LENGTH: 16 * ring.entries, HEAD: ring.tail, TAIL: ring.tail}
        register = pen.one_of((LOW, LENGTH, LENGTH, HEAD, HEAD, TAIL, TAIL, TAIL))
        wrong = pen.one_of((0, 1, 16, 128, 0xFFFF, 0xFFF80, ring.base, pen.address(), ring.entries - pen.count(-1, 1)))
        value = right[register] if pen.chance(0.5) else wrong
        self.set(ring.registers + register, self._even(value) if ring in self.rx else value)

    @step(2)
    def filters(self) -> None:
        """Addresses and VLANs that are received."""
        pen = self.pen
        for index in range(pen.count(0, 2)):
            address = MAC if index == 0 and pen.chance(0.8) else pen.one_of((GROUP, BROADCAST, bytes(6)))
            self.set(RA + 8 * index, int.from_bytes(address[:4], "little"))
            self.set(RA + 8 * index + 4, int.from_bytes(address[4:], "little") | (pen.chance(0.9) << 31))
        table, last = pen.one_of(((MTA, 127), (VFTA, 0), (VFTA, 127)))
        self.set(table + 4 * pen.count(0, last), pen.one_of((0xFFFFFFFF, 0, 0x22, pen.value(32))))

    def phy(self, register: int, value: int | None, number: int = 1) -> None:
        """A register of the PHY's (13.4.6): a value is written, None has it read."""
        operation = 2 << 26 if value is None else 1 << 26
        self.set(MDIC, operation | number << 21 | register << 16 | (value or 0) | (self.pen.chance(0.3) << 29))

    @step(3)
    def management(self) -> None:
        """The PHY and the EEPROM (13.4.3, 13.4.4), which has wires, too."""
        pen, kind = self.pen, self.pen.roll()
        if kind < 0.3:
            self.phy(pen.count(0, 31), None, pen.one_of((1, 1, 1, 1, 0, 2, 31)))
        elif kind < 0.45:
            self.phy(0, pen.one_of((0x4140, 0x4140, 0x4140, 0x5140, 0x1340, 0x8140, 0x0140)))
        elif kind < 0.6:
            values = (0, 2, 3, 5, 6, 0xFF, 0x400, pen.value(16))
            self.phy(pen.one_of((4, 20, 22, 22, 25, 29, pen.count(1, 31))), pen.one_of(values))
        elif kind < 0.85:
            address = pen.one_of((0, 1, 3, 0x3F, 0x40, 0xFF))
            self.set(pen.one_of((EERD, EERD, EEWR)), 1 | address << pen.one_of((2, 8)) | pen.value(16) << 16)
        else:
            for select, clock, data in strokes(pen):
                self.set(EECD, 0x40 | clock | select << 1 | data << 2)

    @step(6)
    def control(self) -> None:
        """Interrupts, and how long they wait; resets, the link's speed, modes; the transmitter stops, or goes on."""
        register, *values = self.pen.one_of(CONTROLS)
        self.set(register, self.pen.one_of(values))

    @step(5)
    def touch(self) -> None:
        """Any register. Statistics, and causes, are cleared by reading."""
        pen = self.pen
        if pen.chance(0.4):
            within = pen.one_of(((0, 0x400), (0x2000, 0x4000), (0x5000, 0x6000), (0, self.registers.size)))
            self.set(pen.count(*within) & ~3, pen.value(32))
        else:
            any_one = 4 * pen.count(0, 0x1800)
            pen.read(self.registers, pen.one_of((ICR, *EVERY, *EVERY, 0x4000 + 4 * pen.count(0, 0x4F), any_one)))
