"""UHCI (Universal Host Controller Interface 1.1), and the USB devices behind it."""

from __future__ import annotations

from collections.abc import Iterator

from vmtest.devices.layout import Pen, Struct
from vmtest.devices.models import Model, step
from vmtest.devices.models.usb_devices import ISOCHRONOUS, Device, Transfer
from vmtest.devices.models.usb_requests import fields

__all__ = ["Uhci"]

USBCMD, USBSTS, USBINTR, FRNUM, FRAME_LIST, SOFMOD, PORT = 0, 2, 4, 6, 8, 0xC, 0x10
RUN, RESET, GLOBAL_RESET, SUSPEND, RESUME, CONFIGURED = 1, 2, 4, 8, 0x10, 0xC0
ENABLED, PORT_RESET, PORT_SUSPEND, DETECT = 4, 0x200, 0x1000, 0x40
PIDS = 0xE1, 0x69, 0x2D
"""Out, in, setup."""
ENDS, IS_QH, DEPTH_FIRST = 1, 2, 4
"""In the low bits of a link (3.1)."""
ACTIVE = 0x80
FRAMES = 128
"""Of the frame list, those that are laid: time enough for a sequence."""

TD = Struct(
    "transfer descriptor",  # 3.2
    *fields(
        link=(32, ENDS), actual=(11, 0, 0x7FF), gap=(5,), status=(8, ACTIVE, ACTIVE, 0, 0x40, 0xC0), event=(1, 0, 1)
    ),
    *fields(isochronous=(1, 0), slow=(1, 0, 1), errors=(2, 3, 0, 1), short=(1, 0, 1), gap2=(2,)),
    *fields(pid=(8, *PIDS), device=(7, 0, 1), endpoint=(4, 0, 1, 2), toggle=(1, 0, 1), gap3=(1,)),
    *fields(most=(11, 7, 63, 0x7FF, 0x4FF, 0), buffer=(32,)),
)
QH = Struct("queue head", *fields(link=(32, ENDS), element=(32, ENDS), gap=(64,)))  # 3.3


class _Queue:
    """A queue head, and descriptors up to one that is not active, which the next ones begin with."""

    def __init__(self, pen: Pen, endpoint: int) -> None:
        self.pen, self.endpoint, self.device, self.link = pen, endpoint & 15, 0, ENDS
        self.at, self.tail = pen.room(QH.size), pen.lay(bytes(TD.size))
        self.toggle = 0

    def begin(self, **given: int) -> None:
        """It goes on behind all that it was to do."""
        self.pen.lay(QH, at=self.at, **{"link": self.link, "element": self.tail, **given})

    def add(self, pieces: list[tuple[int, int, int]], **more: int) -> None:
        """More to do: of (PID, address, length). What is first is laid last: from then on it is seen."""
        pen, rows, at = self.pen, list(_cut(pieces, self.pen.one_of((8, 64, 64, 512, 1280)))), self.tail
        places = [at, *(pen.room(TD.size) for _ in rows)]
        self.tail = pen.lay(bytes(TD.size), at=places[-1])
        deep = DEPTH_FIRST if pen.chance(0.9) else 0
        for index in reversed(range(len(rows))):
            pid, address, length = rows[index]
            following = places[index + 1] if pen.chance(0.98) else pen.one_of(places)
            given = {
                "link": following | deep,
                "status": ACTIVE,
                "pid": PIDS[pid],
                "device": self.device,
                "buffer": address,
            }
            given |= {"endpoint": self.endpoint, "most": length - 1, "isochronous": 0, "errors": 3, **more}
            if pen.chance(0.02):  # what is not given is drawn
                del given[pen.one_of(list(given))]
            pen.lay(TD, at=places[index], **given)


def _cut(pieces: list[tuple[int, int, int]], size: int) -> Iterator[tuple[int, int, int]]:
    """In packets, and no more than some."""
    for pid, address, length in pieces:
        yield pid, address, min(length, size)
        for at in range(size, min(length, 12 * size), size):
            yield pid, address + at, min(length - at, size)


class Uhci(Model):
    """A device on the first port, and a queue for each of its endpoints."""

    name = "UHCI"
    regions = ("uhci",)

    def begin(self) -> None:
        """Queues that every frame has, and a device that was reset and is configured; the controller runs."""
        pen = self.pen
        self.registers = self.needed("uhci")
        self.device, self.address = Device(pen), pen.one_of((0, 0, 1, 127))
        # In a frame, what a device is told is before its answer.
        self.queues = {address: _Queue(pen, address) for address in (0, *sorted(self.device.endpoints))}
        last = pen.one_of((ENDS, ENDS, self.queues[0].at | IS_QH))
        for queue in reversed(self.queues.values()):
            queue.link, last = last, queue.at | IS_QH
        self.first = last
        links = [pen.one_of((last, last, last, ENDS)).to_bytes(4, "little") for _ in range(8)]
        self.frames = pen.lay(b"".join(links) * (FRAMES // 8), 4096)
        self._start()

    def _set(self, register: int, value: int, size: int = 2) -> None:
        self.pen.write(self.registers, register, value, size)

    def _start(self) -> None:
        """From reset on."""
        if self.pen.chance(0.95):
            self._set(USBCMD, self.pen.one_of((RESET, RESET, GLOBAL_RESET)))
        self._set(USBCMD, 0)
        self._set(USBINTR, self.pen.one_of((0xF, 0xF, 0)))
        self._set(FRNUM, 0)
        self._set(FRAME_LIST, self.frames, 4)
        self._set(USBCMD, RUN | CONFIGURED)
        self._connect()

    def _connect(self) -> None:
        """Reset the first port, and address and configure the device there."""
        for value in (PORT_RESET, 0, ENABLED):
            self._set(PORT, value)
        for address, setup in ((0, 0x500 | self.address << 16), (self.address, 0)):
            for queue in list(self.queues.values())[: 1 if setup else None]:
                queue.device = address
                queue.begin()
            if address != self.address or not setup:
                for transfer in [Transfer(0, [], setup)] if setup else self.device.begin():
                    self._send(transfer)
                self._wait(1.0 if setup else 0.5)

    def _send(self, transfer: Transfer) -> None:
        """Have it done, as soon as the controller comes to it."""
        queue = self.queues[transfer.endpoint if transfer.endpoint & 15 else 0]
        is_isochronous = self.device.endpoints.get(transfer.endpoint) == ISOCHRONOUS
        queue.add(transfer.packets(self.pen), isochronous=int(is_isochronous))

    def _wait(self, chance: float) -> None:
        """For some frames, of a millisecond each."""
        if self.pen.chance(chance):
            self.pen.wait(self.pen.one_of((1_200_000, 1_200_000, 3_000_000)))

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
        self._wait(0.5)

    @step(14)
    def move(self) -> None:
        """On the others."""
        transfers = self.device.command()
        if self.pen.chance(0.3):
            for address in self.device.endpoints:
                self.queues[address].begin()
        for transfer in transfers:
            self._send(transfer)
        self._wait(0.5)

    @step(4)
    def unlink(self) -> None:
        """A queue from its list, or to where it should not be."""
        queue, other = self._queue(), self._queue()
        queue.begin(link=self.pen.one_of((ENDS, queue.at | IS_QH, other.at | IS_QH, queue.at)))
        self._wait(0.5)

    @step(4)
    def frame(self) -> None:
        """Something else in one: a descriptor of its own, or a queue, or nothing."""
        pen, at = self.pen, self.frames + 4 * self.pen.count(0, FRAMES - 8)
        given = {"device": self.address, "isochronous": pen.count(0, 1), "link": pen.one_of((self.first, ENDS))}
        link = pen.one_of(
            (ENDS, self._queue().at | IS_QH, self._queue().at, pen.lay(TD, **given), pen.lay(TD, **given))
        )
        pen.lay(link.to_bytes(4, "little") * 8, at=at)
        self._wait(0.7)

    @step(3)
    def port(self) -> None:
        """Reset one, put it to sleep, wake it."""
        port = PORT + self.pen.one_of((0, 0, 0, 2))
        self._set(port, self.pen.one_of((PORT_RESET, ENABLED, ENABLED | PORT_SUSPEND, ENABLED | DETECT, 0, 0xA)))
        self._wait(0.3)
        self._set(port, ENABLED)
        if self.pen.chance(0.5):
            self._connect()

    @step(4)
    def stop_or_start(self) -> None:
        """The controller; it is put to sleep, or woken; or all begins again."""
        if self.pen.chance(0.4):
            return self._start()
        for value in (
            self.pen.one_of((0, 0, RUN, SUSPEND | RUN, RESUME | RUN, RESET | RUN, GLOBAL_RESET)),
            RUN | CONFIGURED,
        ):
            self._set(USBCMD, value)
            self._wait(0.4)
        return None

    @step(3)
    def change(self) -> None:
        """Something else where something was laid, or the list is somewhere else."""
        if self.pen.chance(0.2):
            self._set(FRAME_LIST, self.pen.one_of((self.frames, 0, self.pen.address())), 4)
        else:
            queue = self._queue()
            at = self.pen.one_of((queue.at, queue.tail, self.pen.address() & ~15))
            self.pen.lay(self.pen.one_of((TD, QH)), at=at, link=self.pen.one_of((queue.tail, at, at | IS_QH, ENDS)))
        self._wait(0.5)

    @step(2)
    def acknowledge(self) -> None:
        """Interrupts; or a frame is skipped."""
        self._set(*self.pen.one_of(((USBSTS, 0x3F), (USBSTS, 1), (USBINTR, 0xF), (FRNUM, self.pen.value(11)))))

    @step(3)
    def any_register(self) -> None:
        """Whatever it is."""
        size = self.pen.one_of((1, 2, 2, 4))
        if self.pen.chance(0.5):
            self._set(self.pen.count(0, 31) & -size, self.pen.value(8 * size), size)
        else:
            self.pen.read(self.registers, self.pen.count(0, 31) & -size, size)
