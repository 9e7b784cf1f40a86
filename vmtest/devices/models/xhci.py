"""xHCI (eXtensible Host Controller Interface 1.1), and the USB devices behind it."""

from __future__ import annotations

from collections.abc import Mapping

from vmtest.devices.models import Model, step
from vmtest.devices.models.usb_devices import ISOCHRONOUS, Device, Transfer
from vmtest.devices.models.usb_requests import IN
from vmtest.devices.models.xhci_rings import COMMAND, ENDPOINT, INPUT, LINK, SEGMENT, SLOT, STREAM, TRB, Ring

__all__ = ["Xhci"]

USBCMD, USBSTS, CRCR, DCBAAP, CONFIG, PORTS = 0x00, 0x04, 0x18, 0x30, 0x38, 0x400
RUN, RESET, INTERRUPTS, WRAP, PORT_RESET, POWER, STROBE = 1, 2, 4, 0x400, 1 << 4, 1 << 9, 1 << 16
IMAN, ERSTSZ, ERSTBA, ERDP = 0x20, 0x28, 0x30, 0x38
NORMAL, SETUP, DATA, STATUS, ISOCH, _, EVENT_DATA = range(1, 8)
ENABLE_SLOT, DISABLE_SLOT, ADDRESS_DEVICE, CONFIGURE_ENDPOINT, EVALUATE_CONTEXT, RESET_ENDPOINT = range(9, 15)
STOP_ENDPOINT, SET_DEQUEUE, RESET_DEVICE, FORCE_EVENT, NEGOTIATE, LATENCY, BANDWIDTH, FORCE_HEADER = range(15, 23)
OTHERS = (FORCE_EVENT, NEGOTIATE, LATENCY, BANDWIDTH, FORCE_HEADER, 23, 0, NORMAL, 34, *range(48, 64), 49, 50)
SLOTS = (1, 1, 1, 1, 2, 2, 3, 64, 65)


class Xhci(Model):
    """A device on a port, which has slot 1 as long as nothing else has taken that."""

    name = "xHCI"
    regions = ("capabilities", "operational", "runtime", "doorbell")

    def begin(self) -> None:
        """Rings, contexts, an addressed and configured device; the controller runs."""
        pen = self.pen
        _, self.operational, self.runtime, self.doorbell = map(self.needed, self.regions)
        self.ports = [area for area in self.areas if area.name.startswith("usb")]
        self.device, self.rings = Device(pen, fast=True), dict[tuple[int, int], Ring]()
        self.streams = pen.one_of((1, 1, 2, 4, 7))
        pen.write(self.operational, USBCMD, 0)
        if pen.chance(0.95):
            pen.write(self.operational, USBCMD, RESET)
        pen.write(self.operational, CONFIG, pen.one_of((8, 64, 64, 1)))
        contexts = [0, pen.room(1056, 64), pen.room(1056, 64), *(pen.address() for _ in range(6))]
        pen.write(self.operational, DCBAAP, pen.lay(b"".join(at.to_bytes(8, "little") for at in contexts), 64), 8)
        self.commands = Ring(pen, COMMAND)
        pen.write(self.operational, CRCR, self.commands.here, 8)
        for interrupter in range(pen.one_of((1, 1, 2))):
            self._events(interrupter)
        pen.write(self.operational, USBCMD, RUN | pen.one_of((INTERRUPTS, INTERRUPTS, INTERRUPTS | WRAP, 0)))
        for port in self.ports[::4]:  # the first of each speed: what is plugged in is there
            pen.write(port, 0, PORT_RESET | POWER)
        self.commands.put(ENABLE_SLOT, slot=0)
        self._do(ADDRESS_DEVICE, slot=1, parameter=self._input({0: 0}))
        self._do(CONFIGURE_ENDPOINT, slot=1, parameter=self._input(self.device.endpoints))
        for transfer in self.device.begin():
            self._send(transfer)

    # -- what steps consist of ---------------------------------------------------------------------------------------

    def _events(self, interrupter: int) -> None:
        """An event ring, of one segment."""
        pen, at = self.pen, 32 * interrupter
        size = pen.one_of((64, 64, 16, 256))
        self.events = pen.room(16 * size, 64)
        pen.write(self.runtime, ERSTSZ + at, pen.one_of((*[1] * 40, 0, 2)))
        pen.write(self.runtime, ERDP + at, self.events, 8)
        pen.write(self.runtime, ERSTBA + at, pen.lay(SEGMENT, 64, base=self.events, size=size), 8)
        pen.write(self.runtime, IMAN + at, pen.one_of((3, 3, 2, 0)))

    def _do(self, kind: int, **given: int) -> None:
        """A command, at once."""
        self.commands.put(kind, **given)
        self.pen.write(self.doorbell, 0, 0)

    def _input(self, endpoints: Mapping[int, int], **given: int) -> int:
        """An input context (6.2.5): types of endpoints by their addresses, each with a new ring."""
        pen, data, add = self.pen, bytearray(32 * 34), 1
        for address, kind in endpoints.items():
            number, streams = _number(address), self.streams if address in self.device.streams else 0
            ring = self._streams(number) if streams else self._ring(number, 0, fresh=True).here
            kind += 4 if address & IN or not kind else 0
            data[32 + 32 * number : 64 + 32 * number] = ENDPOINT.draw(pen, type=kind, streams=streams, ring=ring)
            add |= 1 << number
        ports = [(port.address - self.operational.address - PORTS) // 16 + 1 for port in self.ports[::4]] or [1]
        port = pen.one_of(ports) if pen.chance(0.97) else pen.value(8)
        data[:64] = INPUT.draw(pen, **{"drop": 0, "add": add, **given}) + SLOT.draw(pen, port=port)
        return pen.lay(bytes(data[: 32 + 32 * add.bit_length()]), 64)

    def _streams(self, number: int) -> int:
        rings = (self._ring(number, stream, fresh=True).here for stream in (1, 2, 3))
        contexts = [STREAM.draw(self.pen, cycle=1, ring=ring >> 4) for ring in rings]
        return self.pen.lay(bytes(16) + b"".join(contexts) + bytes(16 * (2 << self.streams)), 64)

    def _ring(self, number: int, stream: int, fresh: bool = False) -> Ring:
        if fresh or (number, stream) not in self.rings:
            self.rings[number, stream] = Ring(self.pen, TRB)
        return self.rings[number, stream]

    def _send(self, transfer: Transfer) -> None:
        """Have it done."""
        pen, number, pieces, stream = self.pen, _number(transfer.endpoint), transfer.pieces, 0
        kind = self.device.endpoints.get(transfer.endpoint)
        if transfer.endpoint in self.device.streams and pen.chance(0.998):
            stream = transfer.stream or pen.count(1, 3)
        ring, is_in = self._ring(number, stream), int(bool(transfer.endpoint & IN))
        if transfer.setup:
            ring.put(SETUP, parameter=transfer.setup, length=8, immediate=1, more=(2 + is_in) if pieces else 0)
        more = is_in if transfer.setup else pen.one_of((0x8000, 0x8000, 0, pen.value(16)))
        has_event = int(pen.chance(0.1))
        for index, (address, length) in enumerate(pieces):
            chain = int(index < len(pieces) - 1) | has_event
            put = DATA if transfer.setup and not index else ISOCH if kind == ISOCHRONOUS else NORMAL
            ring.put(put, parameter=address, length=length, chain=chain, immediate=0, more=more)
        if transfer.setup:
            ring.put(STATUS, length=0, chain=has_event, immediate=0, more=1 - is_in or not pieces)
        if has_event:
            ring.put(EVENT_DATA, chain=0, immediate=0)
        if pen.chance(0.97):
            pen.write(self.doorbell, 4, number | stream << 16)

    def _endpoint(self) -> tuple[int, int]:
        """One that there is, but when it is not, and a stream of it."""
        found: tuple[int, int] = self.pen.one_of(list(self.rings))
        return found if self.pen.chance(0.95) else (self.pen.count(0, 31), self.pen.count(1, 4))

    def _revive(self, number: int, stream: int, kind: int) -> None:
        """An endpoint that may have stalled goes on behind all that it was to do."""
        here = self._ring(number, stream).here if self.pen.chance(0.95) else self.pen.address()
        self._do(kind, slot=1, endpoint=number)
        self._do(SET_DEQUEUE, slot=1, endpoint=number, stream=stream, parameter=here)

    # -- steps -------------------------------------------------------------------------------------------------------

    @step(10)
    def request(self) -> None:
        """On endpoint 0."""
        if self.pen.chance(0.5):
            self._revive(1, 0, RESET_ENDPOINT)
        self._send(self.device.request())

    @step(14)
    def move(self) -> None:
        """On the others."""
        transfers = self.device.command()
        if self.pen.chance(0.4):
            for address in dict.fromkeys(transfer.endpoint for transfer in transfers):
                self._revive(_number(address), int(address in self.device.streams), RESET_ENDPOINT)
        for transfer in transfers:
            self._send(transfer)
        if self.pen.chance(0.15):  # for timers, which some transfers have, and for what disks have read
            self.pen.wait(self.pen.one_of((300_000, 1_000_000)))

    @step(6)
    def recover(self) -> None:
        """As after a stall; or a transfer is given up."""
        number, stream = self._endpoint()
        self._revive(number, stream, self.pen.one_of((RESET_ENDPOINT, RESET_ENDPOINT, STOP_ENDPOINT)))
        self.pen.write(self.doorbell, 4 * self.pen.one_of((1, 1, 1, *SLOTS)), number | stream << 16)

    @step(6)
    def command(self) -> None:
        """Any of them."""
        pen, slot, (number, stream) = self.pen, self.pen.one_of(SLOTS), self._endpoint()
        kind = pen.one_of(range(ENABLE_SLOT, FORCE_EVENT)) if pen.chance(0.7) else pen.one_of(OTHERS)
        given = {"slot": slot, "endpoint": number, "stream": stream}
        if kind == ADDRESS_DEVICE:
            given["parameter"] = self._input({0: 0})
        elif kind == CONFIGURE_ENDPOINT:
            some = {address: kind for address, kind in self.device.endpoints.items() if pen.chance(0.5)}
            given["parameter"] = self._input(some, drop=pen.one_of((0, 1 << number)))
        elif kind == EVALUATE_CONTEXT:
            given["parameter"] = self._input({}, add=pen.one_of((1, 2, 3)))
        self._do(kind, **given)

    @step(2)
    def port(self) -> None:
        """Reset one, put it to sleep, wake it."""
        link = STROBE | self.pen.one_of((0, 0, 2, 3, 3, 5, 15)) << 5
        what = self.pen.one_of((PORT_RESET, PORT_RESET, link, link, 0xFE0000, 2, 1 << 31, 0xE000000))
        self.pen.write(self.pen.one_of((*self.ports[::4], *self.ports, self.runtime)), 0, POWER | what)

    @step(3)
    def acknowledge(self) -> None:
        """Events are done with; or there is another ring for them."""
        pen, interrupter = self.pen, self.pen.one_of((0, 0, 0, 1, 15))
        if pen.chance(0.2):
            self._events(interrupter)
        pen.write(self.runtime, ERDP + 32 * interrupter, self.events + 16 * pen.one_of((0, 1, 8, 15, 63)) | 8, 8)
        pen.write(self.runtime, IMAN + 32 * interrupter, pen.one_of((3, 3, 2, 1)))
        pen.write(self.operational, USBSTS, pen.one_of((8, 0x41C)))

    @step(2)
    def stop_or_start(self) -> None:
        """The controller, or the ring of commands; its state is saved or restored."""
        if self.pen.chance(0.3):
            self.pen.write(self.operational, CRCR, self.commands.here | self.pen.one_of((0, 2, 4)), 8)
        else:
            for what in (self.pen.one_of((0, RUN, RUN | WRAP, RUN | RESET, RESET, 0x100, 0x200)), RUN | INTERRUPTS):
                self.pen.write(self.operational, USBCMD, what)

    @step(2)
    def change(self) -> None:
        """Something else where something was laid: in a transfer that runs, or a context; or a link to itself."""
        ring = self._ring(*self._endpoint())
        at = ring.base + 16 * self.pen.count(0, ring.last) if self.pen.chance(0.6) else self.pen.address()
        given = {"type": LINK, "parameter": at, "cycle": ring.cycle} if self.pen.chance(0.2) else {}
        self.pen.lay(TRB if given else self.pen.one_of((TRB, ENDPOINT, SLOT)), at=at, **given)

    @step(4)
    def any_register(self) -> None:
        """Whatever it is."""
        area = self.pen.one_of((self.operational, self.runtime, self.doorbell, self.areas[0], *self.ports[:2]))
        if self.pen.chance(0.5):
            self.pen.write(area, 4 * self.pen.count(0, 20), self.pen.value(32))
        else:
            self.pen.read(area, 4 * self.pen.count(0, 20))


def _number(address: int) -> int:
    """Of an endpoint's context, by its address (4.8.1)."""
    return 2 * (address & 15) + int(bool(address & IN)) if address & 15 else 1
