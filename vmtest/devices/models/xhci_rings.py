"""xHCI's structures in memory: transfer request blocks, the rings that they are in, and contexts (xHCI 1.1, 6)."""

from __future__ import annotations

from vmtest.devices.layout import Pen, Struct, octets, pointer
from vmtest.devices.models.usb_requests import fields

__all__ = ["COMMAND", "ENDPOINT", "INPUT", "LINK", "SEGMENT", "SLOT", "STREAM", "TRB", "Ring"]

LINK = 6

TRB = Struct(
    "transfer request block",  # 6.4.1
    pointer("parameter", 64, octets(64)),
    *fields(length=(17, 0, 1, 8, 64, 512, 0x1FFFF), left=(5, 0, 0, 1, 31), interrupter=(10, *[0] * 8, 1, 15, 16)),
    *fields(cycle=(1, 1), toggle=(1, 0), short=(1, 0, 1), snoop=(1, 0), chain=(1, 0), event=(1, 0, 1, 1)),
    *fields(immediate=(1, 0), gap=(2,), blocked=(1, 0), type=(6, *range(1, 9)), more=(16, 0, 1, 2, 3, 0x8000)),
)
COMMAND = Struct(
    "command TRB",  # 6.4.3
    pointer("parameter", 64, octets(64)),
    *fields(gap=(16,), stream=(16, *[0] * 8, 1, 2, 3), cycle=(1, 1), gap2=(8,), blocked=(1, 0)),
    *fields(type=(6, *range(9, 24)), endpoint=(5, 1, 2, 3, 4), gap=(3,), slot=(8, 1)),
)
SLOT = Struct(
    "slot context",  # 6.2.2
    *fields(route=(20, *[0] * 50, 1, 0x55555), speed=(4, 3, 3, 4, 1, 2), gap=(1,), multiple=(1, 0), hub=(1, 0, 0, 1)),
    *fields(entries=(5, 31, 1, 8, 0), latency=(16, 0, 100), port=(8, 1, 5), ports=(8, 0, 8), hub_slot=(8, 0, 1)),
    *fields(
        hub_port=(8, 0, 1), gap=(6,), interrupter=(10, *[0] * 12, 1, 15, 16), gap2=(27,), state=(5, 0), gap3=(128,)
    ),
)
ENDPOINT = Struct(
    "endpoint context",  # 6.2.3
    *fields(state=(3, 0), gap=(5,), multiple=(2, 0), streams=(5, 0), linear=(1, 1, 1, 1, 0), interval=(8, 0, 3, 6, 15)),
    *fields(gap=(9,), errors=(2, 3, 0), type=(3, *range(8)), gap2=(2,), burst=(8, 0, 0, 2, 15)),
    *fields(packet=(16, 8, 64, 512), ring=(64,), average=(16, 8, 512), gap=(112,)),
)
INPUT = Struct("input control context", *fields(drop=(32, 0), add=(32, 1, 3), gap=(192,)))  # 6.2.5.1
STREAM = Struct("stream context", *fields(cycle=(1, 1), type=(3, 1), ring=(60,), gap=(64,)))  # 6.2.4
SEGMENT = Struct("event ring segment", *fields(base=(64,), size=(16, 64, 16), gap=(48,)))  # 6.5


class Ring:
    """TRBs, the last of which leads back to the first."""

    def __init__(self, pen: Pen, kind: Struct) -> None:
        size = pen.one_of((8, 16, 16, 32))
        self.pen, self.kind, self.last = pen, kind, size - 1
        self.base = pen.lay(bytes(16 * size), 64)
        self.next, self.cycle = 0, 1

    @property
    def here(self) -> int:
        """A dequeue pointer to where the next one comes."""
        return self.base + 16 * self.next | self.cycle

    def put(self, kind: int, **given: int) -> None:
        """One more."""
        if self.next == self.last:
            there = self.base if self.pen.chance(0.95) else self.pen.address()
            toggle = int(self.pen.chance(0.97))
            self.pen.lay(TRB, at=self.here & ~1, type=LINK, parameter=there, cycle=self.cycle, toggle=toggle)
            self.next, self.cycle = 0, self.cycle ^ toggle
        given |= {"type": kind, "cycle": self.cycle}
        if self.pen.chance(0.03):  # what is not given is drawn
            del given[self.pen.one_of(list(given))]
        self.pen.lay(self.kind, at=self.here & ~1, **given)
        self.next += 1
