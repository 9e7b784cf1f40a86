"""Drivers of virtio devices, whatever these are reached by (Virtual I/O Device 1.2, chapters 2 and 3)."""

from __future__ import annotations

from vmtest.devices.layout import octets
from vmtest.devices.models import Model, step
from vmtest.devices.models.virtio_requests import ANSWERS, OTHERS, QUEUES, REQUESTS
from vmtest.devices.models.virtqueues import WRITE, Queue

__all__ = ["Virtio"]

RESET, ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 0, 1, 2, 4, 8
RING_PACKED, VERSION_1 = 34, 32
SIZES = (1, 2, 4, 8, 16, 64, 256, 0, 3, 1024, 0x8000)
LEGACY_SIZES = (256, 256, 256, 128, 64, 8)
"""The device's own, which a driver would ask for."""
LENGTHS = (1, 4, 12, 16, 64, 512, 512, 1500, 4096)
ODD_LENGTHS = (0, 1, 3, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


class Virtio(Model):
    """The queues: a transport says how registers are written."""

    kind = ""
    legacy = False

    def begin(self) -> None:
        """Negotiate, set some queues up, and let the device go."""
        pen = self.pen
        self.packed = pen.chance(0.95 if "packed=on" in pen.name else 0.05) and not self.legacy
        self.queues: dict[int, Queue] = {}
        if pen.chance(0.9):
            self.status(RESET)
            self.status(ACKNOWLEDGE | DRIVER)
            self.features()
            self.status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        for index in range(QUEUES.get(self.kind, pen.count(1, 3))):
            self.set_up(index)
        if pen.chance(0.9):
            self.status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def features(self) -> None:
        """All that are needed, and some of the others."""
        pen = self.pen
        some = (
            pen.random.getrandbits(64)
            if pen.chance(0.4)
            else (1 << 64) - 1
            if pen.chance(0.3)
            else pen.random.getrandbits(24)
        )
        some |= 1 << VERSION_1 if pen.chance(0.9) else 0
        some = some | 1 << RING_PACKED if self.packed else some & ~(1 << RING_PACKED)
        self.accept(some)

    def set_up(self, index: int) -> None:
        """A queue with some requests in it."""
        pen = self.pen
        likely = LEGACY_SIZES if self.legacy else SIZES[:6]
        size = pen.one_of(likely) if pen.chance(0.85) else pen.one_of(SIZES)
        queue = Queue(pen, max(1, min(size, 256)), packed=self.packed, legacy=self.legacy)
        self.queues[index] = queue
        for _ in range(pen.count(0, 3)):
            self.request(queue)
        self.announce(index, size, queue)

    def request(self, queue: Queue) -> None:
        """A chain of descriptors: what the driver says, data, and room for the answer."""
        pen = self.pen
        asked = pen.one_of(REQUESTS.get(self.kind, OTHERS))
        pieces = [(pen.lay(asked), asked.size if pen.chance(0.95) else pen.one_of(ODD_LENGTHS), 0)]
        if pen.chance(0.2):  # a device reads on from one to the next
            cut = pen.count(1, asked.size)
            pieces = [(pieces[0][0], cut, 0), (pieces[0][0] + cut, asked.size - cut, 0)]
        for _ in range(pen.count(0, 3)):
            length = pen.one_of(LENGTHS) if pen.chance(0.95) else pen.one_of(ODD_LENGTHS)
            pieces.append((octets(512)(pen), length, 0 if pen.chance(0.4) else WRITE))
        if pen.chance(0.9):
            size = ANSWERS.get(self.kind, 16)
            pieces.append((pen.room(size), size if pen.chance(0.9) else pen.one_of((0, 1, 4, 8)), WRITE))
        if pen.chance(0.85):  # what is read comes first, but when it does not
            pieces.sort(key=lambda piece: piece[2])
        queue.add(pieces)

    # -- steps

    def _queue(self) -> tuple[int, Queue]:
        index = self.pen.one_of(list(self.queues))
        return index, self.queues[index]

    @step(8)
    def send(self) -> None:
        """Another request."""
        index, queue = self._queue()
        for _ in range(self.pen.count(1, 3)):
            self.request(queue)
        self.notify(index)

    @step(4)
    def ring(self) -> None:
        """A doorbell, which may be no queue's."""
        self.notify(self.pen.one_of((*self.queues, *self.queues, 0, 1, 2, 3, 7, 63, 1023)))

    @step(2)
    def jump(self) -> None:
        """The ring's index goes where it should not."""
        _, queue = self._queue()
        queue.jump()

    @step(3)
    def again(self) -> None:
        """A queue is set up anew, or is of another size, while the device runs."""
        pen = self.pen
        index = pen.one_of((*self.queues, 0, 1, 2, 3, 4))
        if pen.chance(0.5) or index not in self.queues:
            self.set_up(index)
        else:
            self.announce(index, pen.one_of(SIZES), self.queues[index], steps=pen.random.randrange(1, 16))

    @step(2)
    def restart(self) -> None:
        """A state of the device that comes out of turn."""
        self.status(self.pen.one_of((RESET, 1, 3, 4, 7, 8, 11, 15, 64, 128, 0xFF)))

    @step(1)
    def renegotiate(self) -> None:
        """Features, late."""
        self.packed = self.packed ^ self.pen.chance(0.3)
        self.features()

    @step(2)
    def odd(self) -> None:
        """Any register that sets something up."""
        self.any_register()

    @step(2)
    def configure(self) -> None:
        """The device's own registers."""
        offset, size = self.pen.count(0, 64), self.pen.one_of((1, 2, 4, 4, 8))
        self.of_device(offset & -size, self.pen.value(8 * size) if self.pen.chance(0.6) else None, size)

    # -- the transport

    def status(self, value: int) -> None:
        """Write the device's status."""
        raise NotImplementedError

    def accept(self, features: int) -> None:
        """Write the driver's features."""
        raise NotImplementedError

    def announce(self, index: int, size: int, queue: Queue, steps: int = 15) -> None:
        """Tell where a queue is; the bits of ``steps`` say which of: its size, its place, that it is enabled."""
        raise NotImplementedError

    def notify(self, index: int) -> None:
        """Ring a queue's doorbell."""
        raise NotImplementedError

    def any_register(self) -> None:
        """Write one of its registers."""
        raise NotImplementedError

    def of_device(self, offset: int, value: int | None, size: int) -> None:
        """Write a register of the device's own configuration, or read it."""
        raise NotImplementedError
