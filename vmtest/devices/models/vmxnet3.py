"""VMware's vmxnet3 (the interface as its Linux driver has it, vmxnet3_defs.h): an area that is shared, and queues.

QEMU's loops nothing back: it receives nothing.
"""

from __future__ import annotations

from vmtest.devices.layout import Field, Pen, Struct, anything, constant, drawn, flags, number, pointer, zeros
from vmtest.devices.models import Model, step
from vmtest.devices.models.frames import GROUP, frame, pieces

__all__ = ["Vmxnet3"]


def _interrupt(name: str) -> Field:
    """Of 25. QEMU 7.2 ends where it is another, so it is that seldom."""
    return drawn(name, 8, lambda pen: pen.one_of((0, 0, 1, 24)) if pen.chance(0.9998) else 25)


def _groups(pen: Pen) -> int:
    return pen.lay(6 * GROUP)


SHARED = Struct(
    "Vmxnet3_DriverShared",
    *(constant("magic", 32, 0xBABEFEE1), zeros(32), number("version", 32, 0x01000000), flags("system", 32, b=50, l=50)),
    *(number("revision", 32, 1), number("upt", 32, 1), flags("features", 64, checksums=50, rss=20, vlan=50, large=50)),
    *(anything("", 64), anything("queues", 64), zeros(32), anything("queue bytes", 32)),
    constant("mtu", 32, 1500),
    *(number("fragments", 16, 0, 1, 4, 17), anything("tx", 8), anything("rx", 8), zeros(128)),
    *(flags("mask", 8, automatic=50), number("interrupts", 8, 1, 2, 25), _interrupt("event"), zeros(200)),
    *(flags("disabled", 32, all=30), zeros(64)),
    flags("mode", 32, ucast=80, mcast=60, bcast=80, all=30, any=30),
    *(number("group bytes", 16, 0, 6, 12, 36, 7, 0xFFFF), zeros(16), pointer("groups", 64, _groups)),
    drawn("vlans", 4096, lambda pen: pen.one_of((0, (1 << 4096) - 1, 0x22, pen.random.getrandbits(64)))),
    *(drawn(name, 128, lambda pen: pen.lay(bytes(64)) << 64 | 64 << 32 | 1) for name in ("rss", "power", "plugin")),
    *(anything("events", 32), zeros(160)),
)
QUEUE = Struct(
    "Vmxnet3_TxQueueDesc, Vmxnet3_RxQueueDesc",  # of the latter, data is its second ring
    *(zeros(128), anything("ring", 64), anything("data", 64), anything("completed", 64), zeros(128)),
    *(anything("entries", 32), anything("data entries", 32), anything("completed entries", 32), zeros(32)),
    *(_interrupt("interrupt"), zeros(56), zeros(64 + 640 + 704)),
)
SENT = Struct(
    "Vmxnet3_TxDesc",
    *(anything("address", 64), anything("length", 14), anything("generation", 1), zeros(1)),
    *(flags("kind", 2, kind=2, more=2), anything("size or offset", 14), anything("header", 10)),
    *(anything("offload", 2), anything("end", 1), flags("told", 2, completed=80, more=2), flags("insert", 1, vlan=20)),
    number("tag", 16, 0, 5, 0x2005, 0xFFFF),
)
RECEIVED = Struct(
    "Vmxnet3_RxDesc",
    *(drawn("address", 64, Pen.address), number("length", 14, 1536, 0, 0x3FFF), flags("body", 2, body=30)),
    *(zeros(15), constant("generation", 1, 1), zeros(32)),
)
PLAIN, CHECKSUM, SEGMENTS = 0, 2, 3
LOW, HIGH, COMMAND, MAC_LOW, MAC_HIGH, CAUSE, EVENTS = 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x40
MASKS, SEND, ROOM, MORE_ROOM = 0, 0x600, 0x800, 0xA00
SETS, GETS = range(0xCAFE0000, 0xCAFE000C), range(0xF00D0000, 0xF00D000A)
ACTIVATE, QUIESCE, RESET = SETS[:3]
SIZES = (8, 16, 32, 32, 64)


class Vmxnet3(Model):
    """Queues are as many as the area says; two of them are worked with."""

    name = "vmxnet3"
    regions = ("vmxnet3-b0", "vmxnet3-b1")

    def begin(self) -> None:
        """Have it active."""
        self.doors, self.registers = self.needed("vmxnet3-b0"), self.needed("vmxnet3-b1")
        self.activate()

    def _set(self, register: int, value: int) -> None:
        self.pen.write(self.registers, register, value, 4 if self.pen.chance(0.97) else 8)

    @step(3)
    def activate(self) -> None:
        """Another area, with other queues, mostly after a reset."""
        pen = self.pen
        if pen.chance(0.9):
            self._set(COMMAND, RESET if pen.chance(0.7) else QUIESCE)
        sent, received = pen.one_of((1, 1, 2, 3, 8)), pen.one_of((1, 1, 2, 8))
        self.entries, rows = pen.one_of(SIZES), list[bytes]()
        self.rings = [pen.room(16 * self.entries, 512) for _ in range(min(sent, 2))]
        self.ends, self.generations = [0, 0], [1, 1]
        for ring in self.rings:
            pen.lay(bytes(16 * self.entries), at=ring)
        done = pen.room(16 * 64, 512)
        for ring in self.rings:
            entries = self.entries if pen.chance(0.97) else pen.one_of((0, 1, 4096, 4097, 0xFFFFFFFF))
            rows.append(self._queue(ring, 0, done, entries, 0))
        rows += rows[-1:] * (sent - len(rows))
        ring = pen.lay(b"".join(RECEIVED.draw(pen) for _ in range(4)) * 2, 512)
        rows += [self._queue(ring, ring, done, 8, 8)] * received
        tx, rx = (sent, received) if pen.chance(0.97) else (pen.one_of((0, 9, 255)), pen.one_of((0, 1, 9, 255)))
        table = pen.lay(b"".join(rows), 128)
        self.shared = pen.lay(SHARED, 8, queues=table, tx=tx, rx=rx, **{"queue bytes": 256 * len(rows)})
        self._set(LOW, self.shared)
        self._set(HIGH, 0)
        self._set(COMMAND, ACTIVATE)
        self.pen.read(self.registers, COMMAND)
        for line in range(pen.count(0, 3)):
            self.pen.write(self.doors, MASKS + 8 * line, 0)

    def _queue(self, ring: int, data: int, done: int, entries: int, more: int) -> bytes:
        completed = self.pen.one_of((entries, 64, 8, 1, 0)) if self.pen.chance(0.2) else 64
        given = {"data entries": more, "completed entries": completed}
        return QUEUE.draw(self.pen, ring=ring, data=data, completed=done, entries=entries, **given)

    @step(16)
    def send(self) -> None:
        """Frames, of which the headers are told where a checksum or segments are to be made."""
        pen = self.pen
        queue = pen.count(0, len(self.rings) - 1)
        for _ in range(pen.one_of((1, 1, 1, 2))):
            made = frame(pen, jumbo=0.08)
            offload, size, header = PLAIN, 0, 0
            if (made.is_tcp and pen.chance(0.5)) or pen.chance(0.03):
                offload, header = SEGMENTS, made.payload
                size = pen.one_of((1460, 1448, 536, 100, 8, 1, 0)) if pen.chance(0.9) else pen.value(14)
            elif made.payload > made.transport and pen.chance(0.6):
                offload, header = CHECKSUM, made.transport
                size = made.transport + (16 if made.is_tcp else 6) if pen.chance(0.9) else pen.value(14)
            if pen.chance(0.04):  # 1 is reserved: QEMU 7.2 ends by it
                offload, header = pen.one_of((0, 2, 3)) if pen.chance(0.997) else 1, pen.value(10)
            parts = pieces(pen, made.data, 6, first=made.payload)
            for index, (at, length) in enumerate(parts):
                is_end = index == len(parts) - 1 and pen.chance(0.97)
                given = {"size or offset": size, "generation": self.generations[queue], "length": length}
                row = SENT.draw(pen, address=at, header=header, offload=offload, end=is_end, **given)
                pen.lay(row, at=self.rings[queue] + 16 * self.ends[queue])
                self.ends[queue] += 1
                if self.ends[queue] == self.entries:
                    self.ends[queue], self.generations[queue] = 0, 1 - self.generations[queue]
        if pen.chance(0.95):
            self.pen.write(self.doors, SEND + 8 * queue, self.ends[queue])

    @step(4)
    def change(self) -> None:
        """The area, and the command that has it read; or a command that asks."""
        pen = self.pen
        if pen.chance(0.5):
            part = pen.one_of((8 + 16, 8 + 72 + 40, 8 + 72 + 40 + 4, 8 + 72 + 40 + 8, 8 + 72 + 40 + 16))
            pen.lay(pen.one_of((0, 1, 0xFFFF, 6, 0x1F, pen.address())).to_bytes(4, "little"), at=self.shared + part)
        self._set(COMMAND, pen.one_of((*SETS[3:], *GETS)) if pen.chance(0.9) else pen.value(32))
        if pen.chance(0.5):
            pen.read(self.registers, COMMAND)

    @step(2)
    def stop(self) -> None:
        """The device is not active any more; what is sent is not looked at."""
        self._set(*self.pen.one_of(((COMMAND, QUIESCE), (COMMAND, RESET), (LOW, 0), (HIGH, 0), (COMMAND, ACTIVATE))))
        if self.pen.chance(0.7):
            self.activate()

    @step(3)
    def doorbells(self) -> None:
        """Of queues that there are, or are not; masks of interrupts."""
        pen = self.pen
        door = pen.one_of((SEND + 8 * pen.count(0, 8), ROOM, ROOM + 8, MORE_ROOM, MASKS + 8 * pen.count(0, 25)))
        pen.write(self.doors, door, pen.one_of((0, 1, 8, 0xFFFFFFFF)))

    @step(3)
    def touch(self) -> None:
        """Events, the address, causes; any register."""
        pen = self.pen
        register = pen.one_of((0, 8, MAC_LOW, MAC_HIGH, CAUSE, EVENTS, EVENTS, pen.count(0, 0x50)))
        if pen.chance(0.5):
            self._set(register, pen.one_of((0, 1, 0x12005452, 0xFFFFFFFF, pen.value(32))))
        else:
            pen.read(pen.one_of((self.registers, self.registers, self.doors)), register)
