"""EHCI (Enhanced Host Controller Interface 1.0), and the USB devices behind it."""

from __future__ import annotations

from collections.abc import Iterator

from vmtest.devices.layout import Pen, Struct, array
from vmtest.devices.models import Model, step
from vmtest.devices.models.usb_devices import BULK, Device, Transfer
from vmtest.devices.models.usb_requests import fields

__all__ = ["Ehci"]

USBCMD, USBSTS, USBINTR, FRINDEX, SEGMENT, PERIODIC_LIST, ASYNC_LIST, CONFIGURED = 0, 4, 8, 0xC, 0x10, 0x14, 0x18, 0x40
RUN, RESET, PERIODIC, ASYNC, DOORBELL, THRESHOLD = 1, 2, 0x10, 0x20, 0x40, 0x80000
ALL = RUN | PERIODIC | ASYNC | THRESHOLD
SUSPEND, PORT_RESET, POWER, OWNER = 0x80, 0x100, 0x1000, 0x2000
TO_HOST, SETUP = 1, 2
ENDS, IS_QH, IS_SITD, IS_FSTN = 1, 2, 4, 6
"""In the low bits of a link (3.1)."""
ACTIVE = 0x80
FRAMES = 128
"""Of the frame list, those that are laid: time enough for a sequence."""

QTD = Struct(
    "queue element transfer descriptor",  # 3.5
    *fields(next=(32, 1), alternate=(32, 1), status=(8, ACTIVE, ACTIVE, 0, 0x40, 0xC0, 0x81), pid=(2, 0, 1, 2)),
    *fields(errors=(2, 3, 0), page=(3, 0, 0, 4, 5, 7), event=(1, 0, 1), length=(15, 0, 8, 512, 0x5000, 0x5001)),
    *fields(toggle=(1, 0, 1), page_0=(32,), page_1=(32,), page_2=(32,), page_3=(32,), page_4=(32,)),
)
QH = Struct(
    "queue head",  # 3.6
    *fields(link=(32, 1), device=(7, 0), inactive=(1, 0), endpoint=(4, 1, 2), speed=(2, *[2] * 9, 0, 1)),
    *fields(control=(1, 0, 1), head=(1, 0), packet=(11, 64, 512, 512, 8, 0), split=(1, 0), reload=(4, 0, 4, 15)),
    *fields(start=(8, 0, 1, 0xFF), complete=(8, 0, 0x1C), hub=(7, 0), port=(7, 0, 1), multiplier=(2, 1, 1, 3, 0)),
    *fields(
        current=(32, 0), next=(32, 1), alternate=(32, 1), status=(8, 0, 0, ACTIVE, 0x40), token=(24, 0), gap=(160,)
    ),
)
TRANSACTION = Struct(
    "transaction",
    *fields(offset=(12, 0, 0x800, 0xFFF), page=(3, 0, 0, 1, 5, 6, 7), event=(1, 0, 1)),
    *fields(length=(12, 0, 8, 192, 1024, 3072, 0xFFF), status=(4, *[8] * 5, 0)),
)
ITD = Struct(
    "isochronous transfer descriptor",  # 3.3
    *(*fields(next=(32, 1)), array("transactions", TRANSACTION, 8)),
    *fields(device=(7, 0), gap=(1,), endpoint=(4, 1, 2), page_0=(20,), packet=(11, 192, 1024, 0), receives=(1, 0, 1)),
    *fields(page_1=(20,), multiplier=(2, 1, 1, 3, 0), gap=(10,), page_2=(20,), pages=(128,)),
)
SITD = Struct(
    "split transaction isochronous transfer descriptor",  # 3.4
    *fields(next=(32, 1), device=(7, 0), gap=(1,), endpoint=(4, 1), gap2=(4,), hub=(16, 0), masks=(32, 1)),
    *fields(status=(8, *[ACTIVE] * 3, 0), progress=(8, 0), length=(10, 192, 0, 1023), flags=(6, 0, 32)),
    *fields(page_0=(32,), page_1=(32,), back=(32, 1)),
)
FSTN = Struct("frame span traversal node", *fields(next=(32, 1), back=(32, 1)))  # 3.7


class _Queue:
    """A queue head, and descriptors up to one that is not active, which the next ones begin with."""

    def __init__(self, pen: Pen, endpoint: int) -> None:
        self.pen = pen
        self.at, self.tail = pen.room(QH.size, 32), pen.lay(bytes(QTD.size), 32)
        self.given = {"endpoint": endpoint & 15, "control": int(not endpoint), "device": 0, "status": 0, "token": 0}
        self.given |= {"current": 0, "alternate": ENDS}

    def begin(self, **given: int) -> None:
        """It goes on behind all that it was to do."""
        self.pen.lay(QH, at=self.at, **{**self.given, "next": self.tail, **given})

    def add(self, pieces: list[tuple[int, int, int]]) -> None:
        """More to do: of (PID, address, length). What is first is laid last: from then on it is seen."""
        pen, rows, at = self.pen, list(_cut(pieces)), self.tail
        places = [at, *(pen.room(QTD.size, 32) for _ in rows)]
        self.tail = pen.lay(bytes(QTD.size), at=places[-1])
        for index in reversed(range(len(rows))):
            pid, address, length = rows[index]
            following = places[index + 1] if pen.chance(0.98) else pen.one_of(places)
            given = {"next": following, "status": ACTIVE, "pid": pid, "page": 0, "length": length}
            given |= {f"page {page}": (address & ~0xFFF) + 0x1000 * page for page in range(1, 5)} | {"page 0": address}
            given |= {"toggle": int(index > 0)} if rows[0][0] == SETUP else {}
            given |= {"alternate": self.tail} if pid == TO_HOST and pen.chance(0.3) else {}
            if pen.chance(0.02):  # what is not given is drawn
                del given[pen.one_of(list(given))]
            pen.lay(QTD, at=places[index], **given)


def _cut(pieces: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """In pieces that a descriptor has room for, and no more than some."""
    for pid, address, length in pieces:
        yield pid, address, min(length, 0x4000)
        for at in range(0x4000, min(length, 0xC000), 0x4000):
            yield pid, address + at, min(length - at, 0x4000)


class Ehci(Model):
    """A device on the first port, and a queue for each of its endpoints."""

    name = "EHCI"
    regions = ("capabilities", "operational", "ports")

    def begin(self) -> None:
        """Both lists, and a device that was reset and is configured; the controller runs."""
        self.registers, self.ports = self.needed("operational"), self.needed("ports")
        self.device, self.address = Device(self.pen), self.pen.one_of((0, 0, 1, 127))
        self._lists()
        self._start()

    def _start(self) -> None:
        """From reset on."""
        pen, first = self.pen, self.queues[0].at
        if pen.chance(0.95):
            pen.write(self.registers, USBCMD, RESET)
        for register, value in ((USBINTR, pen.one_of((0x3F, 0x3F, 0))), (SEGMENT, 0), (CONFIGURED, 1), (FRINDEX, 0)):
            pen.write(self.registers, register, value)
        for register, value in ((PERIODIC_LIST, self.frames), (ASYNC_LIST, first), (USBCMD, ALL)):
            pen.write(self.registers, register, value)
        self._connect()

    def _connect(self) -> None:
        """Reset the first port, which is then enabled where the device is fast; and address and configure that."""
        for value in (POWER | PORT_RESET, POWER):
            self.pen.write(self.ports, 0, value)
        for address, setup in ((0, 0x500 | self.address << 16), (self.address, 0)):
            for queue in list(self.queues.values())[: 1 if setup else None]:
                queue.given["device"] = address
                queue.begin()
            for transfer in [Transfer(0, [], setup)] if setup else self.device.begin():
                self._send(transfer)
            self._go()

    def _lists(self) -> None:
        """A ring of queues, in which what a device is told is before its answer; and links for each frame."""
        pen = self.pen
        self.queues = {address: _Queue(pen, address) for address in (0, *sorted(self.device.endpoints))}
        ring = [queue for address, queue in self.queues.items() if self.device.endpoints.get(address, BULK) == BULK]
        for queue, following in zip(ring, (*ring[1:], ring[0]), strict=True):
            queue.given |= {"link": following.at | IS_QH, "head": int(queue is ring[0]), "start": 0}
        last = ENDS
        for queue in self.queues.values():
            if queue not in ring:
                queue.given |= {"link": last, "start": pen.one_of((1, 0xFF, 0x11))}
                last = queue.at | IS_QH
        self.isochronous = [pen.lay(ITD, 32, next=last), pen.lay(SITD, 32, next=last) | IS_SITD]
        links = [pen.one_of((last, last, ENDS, *self.isochronous)).to_bytes(4, "little") for _ in range(8)]
        self.frames = pen.lay(b"".join(links) * (FRAMES // 8), 4096)

    def _send(self, transfer: Transfer) -> None:
        """Have it done, as soon as the controller comes to it."""
        self.queues[transfer.endpoint if transfer.endpoint & 15 else 0].add(transfer.packets(self.pen))

    def _go(self, slowly: float = 0.1) -> None:
        """Have the controller look at its lists: with time, or by a doorbell, which it answers by an interrupt."""
        if not self._wait(slowly):
            self.pen.write(self.registers, USBSTS, 0x3F)
            self.pen.write(self.registers, USBCMD, ALL | DOORBELL)
            self.pen.flush()

    def _wait(self, chance: float) -> bool:
        if waits := self.pen.chance(chance):
            self.pen.wait(self.pen.one_of((500_000, 1_200_000, 3_000_000)))
        return waits

    def _queue(self) -> _Queue:
        found: _Queue = self.pen.one_of(list(self.queues.values()))
        return found

    # -- steps -------------------------------------------------------------------------------------------------------

    @step(10)
    def request(self) -> None:
        """On endpoint 0, which may have stalled."""
        if self.pen.chance(0.4):
            self.queues[0].begin()
        self._send(self.device.request())
        self._go()

    @step(14)
    def move(self) -> None:
        """On the others."""
        transfers = self.device.command()
        if self.pen.chance(0.3):
            for address in self.device.endpoints:
                self.queues[address].begin()
        for transfer in transfers:
            self._send(transfer)
            if self.pen.chance(0.3):
                self._go()
        self._go(0.3)

    @step(4)
    def unlink(self) -> None:
        """A queue from its list, or to where it should not be; and a doorbell, or none."""
        queue, other = self._queue(), self._queue()
        queue.begin(link=self.pen.one_of((*[ENDS, queue.at | IS_QH, other.at | IS_QH] * 5, self.isochronous[0])))
        self._go()

    @step(4)
    def isochronous_transfer(self) -> None:
        """In the periodic list, and all that may be in it besides."""
        pen, frame = self.pen, self.frames + 4 * self.pen.count(0, FRAMES - 8)
        following = pen.one_of((ENDS, self._queue().at | IS_QH, *self.isochronous))
        kind, type_ = pen.one_of((*[(ITD, 0), (ITD, 0), (SITD, IS_SITD)] * 4, (FSTN, IS_FSTN)))
        at = pen.lay(kind, 32, next=following, **({"device": self.address} if kind is not FSTN else {}))
        pen.lay((at | type_).to_bytes(4, "little") * 8, at=frame)
        pen.write(self.registers, FRINDEX, (frame - self.frames) * 2)
        self._go(0.8)

    @step(3)
    def port(self) -> None:
        """Reset one, put it to sleep, wake it, give it away."""
        what = self.pen.one_of((PORT_RESET, PORT_RESET, SUSPEND, SUSPEND | 0x40, 0x40, OWNER, 4, 0x2A))
        for value in (what, self.pen.one_of((0, 0, 4))):
            self.pen.write(self.ports, 4 * self.pen.one_of((0, 0, 0, 1, 5)), POWER | value)
        if self.pen.chance(0.6):
            self._connect()

    @step(4)
    def stop_or_start(self) -> None:
        """The controller, or one of the lists; or all begins again."""
        if self.pen.chance(0.4):
            return self._start()
        for value in (self.pen.one_of((0, RUN, RUN | ASYNC, RUN | PERIODIC, ALL | RESET, ALL & ~RUN, ALL | 0x8C)), ALL):
            self.pen.write(self.registers, USBCMD, value)
            self._wait(0.4)
        return None

    @step(3)
    def change(self) -> None:
        """Something else where something was laid, or a list is somewhere else."""
        if self.pen.chance(0.3):
            there = self.pen.one_of((self.frames, self.queues[0].at, 0, self.pen.address()))
            self.pen.write(self.registers, self.pen.one_of((PERIODIC_LIST, ASYNC_LIST)), there)
        else:
            queue = self._queue()
            at = self.pen.one_of((queue.at, queue.tail, self.pen.address() & ~31))
            self.pen.lay(self.pen.one_of((QTD, QH)), at=at, next=self.pen.one_of((queue.tail, at, ENDS)))
        self._go()

    @step(4)
    def any_register(self) -> None:
        """Whatever it is."""
        area = self.pen.one_of((self.registers, self.registers, self.ports, self.areas[0]))
        if self.pen.chance(0.5):
            self.pen.write(area, 4 * self.pen.count(0, 16), self.pen.value(32))
        else:
            self.pen.read(area, 4 * self.pen.count(0, 16))
