"""USB devices as their drivers see them: endpoints, requests, and transfers that belong together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vmtest.devices.layout import Pen, Struct
from vmtest.devices.models import usb_requests as usb
from vmtest.devices.models.scsi_commands import command, pieces
from vmtest.devices.models.usb_requests import IN

__all__ = ["BULK", "INTERRUPT", "ISOCHRONOUS", "Device", "Transfer"]

ISOCHRONOUS, BULK, INTERRUPT = 1, 2, 3
"""Types of endpoints, as their descriptors have them."""


class Transfer(NamedTuple):
    """What goes to an ``endpoint``, by its address, or comes from it: ``pieces`` of memory, each an address and how
    many bytes. On endpoint 0 a ``setup`` packet goes before; a ``stream`` is for endpoints that have them.
    """

    endpoint: int
    pieces: Sequence[tuple[int, int]]
    setup: int = 0
    stream: int = 0

    def packets(self, pen: Pen) -> list[tuple[int, int, int]]:
        """Whether each goes out (0), comes in (1) or sets up (2), with its address and length: all stages of it."""
        comes = int(bool(self.endpoint & IN))
        rows = [(comes, address, length) for address, length in self.pieces]
        if not self.setup:
            return rows
        return [(2, pen.lay(self.setup.to_bytes(8, "little")), 8), *rows, (1 - comes if rows else 1, 0, 0)]


def _out(pen: Pen, endpoint: int, what: Struct, **given: int) -> Transfer:
    size = what.size if pen.chance(0.95) else pen.one_of((0, 1, what.size - 1, what.size + 1, 512))
    return Transfer(endpoint, [(pen.lay(what, **given), size)])


def _room(pen: Pen, endpoint: int, *sizes: int, stream: int = 0) -> Transfer:
    size = pen.one_of(sizes) if pen.chance(0.95) else pen.one_of((0, 1, 3, 512, 4096, 0x4000))
    return Transfer(endpoint, [(pen.room(min(size, 4096) or 1), size)], stream=stream)


def _storage(pen: Pen) -> list[Transfer]:
    what = command(pen)
    given = {"length": what.length, "flags": 0 if what.takes else IN, "size": len(what.cdb)}
    if pen.chance(0.1):
        del given[pen.one_of(("length", "flags", "size"))]
    found = [_out(pen, 2, usb.CBW, cdb=int.from_bytes(what.cdb, "little"), **given)]
    if what.length or pen.chance(0.05):
        found.append(Transfer(2 if what.takes else 0x81, pieces(pen, what)))
    return [*found, _room(pen, 0x81, 13)]


def _uas(pen: Pen, tag: int = 0) -> list[Transfer]:
    """As with USB 2: the device says when it is ready for the data."""
    given = {"tag": (tag or pen.count(1, 4)) << 8}
    if pen.chance(0.2):
        return [_out(pen, 1, usb.UAS_TASK, **given), _room(pen, 0x82, 96)]
    what = command(pen)
    found = [_out(pen, 1, usb.UAS_COMMAND, cdb=int.from_bytes(what.cdb, "little"), **given), _room(pen, 0x82, 96)]
    data = [Transfer(4 if what.takes else 0x83, pieces(pen, what))] if what.length else []
    return [*found, *data, *([_room(pen, 0x82, 96)] if data and pen.chance(0.5) else [])]


def _uas_streams(pen: Pen) -> list[Transfer]:
    """As with USB 3: a stream for each command, and what it needs waits there before that is told."""
    stream = pen.count(1, 3)
    told, *rest = _uas(pen, stream)
    return [*(one._replace(stream=stream) for one in rest[:2]), told]


def _mtp(pen: Pen) -> list[Transfer]:
    """In a session, which is opened now and then."""
    opened = (
        [_out(pen, 2, usb.CONTAINER, type=1, code=0x1002, first=1), _room(pen, 0x81, 64)] if pen.chance(0.4) else []
    )
    data = [_out(pen, 2, usb.DATA_CONTAINER)] if pen.chance(0.15) else []
    return [*opened, _out(pen, 2, usb.CONTAINER), *data, *[_room(pen, 0x81, 512, 64, 4096)] * pen.count(1, 2)]


def _network(pen: Pen) -> list[Transfer]:
    return [_out(pen, 2, usb.FRAME), _room(pen, 0x82, 1514, 64), _room(pen, 0x81, 16, 8)]


def _card(pen: Pen) -> list[Transfer]:
    return [_out(pen, 3, usb.MESSAGE), _room(pen, 0x82, 64, 271), _room(pen, 0x81, 4)]


class _Kind(NamedTuple):
    """Its ``endpoints`` by their addresses, each with its type; the requests of its class; a command over the others;
    what its requests bring; which endpoints have streams. ``names`` are those of QEMU's devices of this kind.
    """

    names: str
    endpoints: Mapping[int, int]
    requests: Sequence[Struct]
    command: Callable[[Pen], list[Transfer]]
    data: Struct | None = None
    streams: frozenset[int] = frozenset()


KINDS = (
    _Kind("kbd|mouse|tablet|wacom-tablet", {0x81: INTERRUPT}, usb.HID, lambda pen: [_room(pen, 0x81, 8, 6, 4, 64)]),
    *[_Kind("storage|bot", {0x81: BULK, 2: BULK}, usb.STORAGE, _storage)] * 2,
    _Kind("hub", {0x81: INTERRUPT}, usb.HUB, lambda pen: [_room(pen, 0x81, 1, 2)]),
    _Kind("audio", {1: ISOCHRONOUS}, usb.AUDIO, lambda pen: [_room(pen, 1, 192, 192, 96, 576)] * pen.count(1, 4)),
    _Kind("mtp", {0x81: BULK, 2: BULK, 0x83: INTERRUPT}, usb.MTP, _mtp),
    _Kind("net", {0x81: INTERRUPT, 0x82: BULK, 2: BULK}, usb.NETWORK, _network, usb.RNDIS),
    _Kind(
        "serial|braille",
        {0x81: BULK, 2: BULK},
        usb.SERIAL,
        lambda pen: [_room(pen, 2, 1, 64, 200), _room(pen, 0x81, 64, 2)],
    ),
    _Kind("ccid", {0x81: INTERRUPT, 0x82: BULK, 3: BULK}, usb.CARD, _card),
)
USB2 = _Kind("uas", {1: BULK, 0x82: BULK, 0x83: BULK, 4: BULK}, usb.STORAGE, _uas)
USB3 = _Kind(USB2.names, USB2.endpoints, usb.STORAGE, _uas_streams, streams=frozenset({0x82, 0x83, 4}))


class Device:
    """What is behind the controller: what is worked on, where that has a name of USB, and else one of two kinds at a
    time; ``fast`` where it has streams, as USB 3.
    """

    def __init__(self, pen: Pen, fast: bool = False) -> None:
        self.pen = pen
        kinds = (*KINDS, USB3 if fast else USB2)
        named = [kind for kind in kinds if re.match(rf"usb-({kind.names})\b", pen.name)]
        if named and pen.chance(0.95):
            kinds = (named[0],)
        self.kinds = pen.one_of(kinds), pen.one_of(kinds)
        self.endpoints = {address: kind for one in self.kinds for address, kind in one.endpoints.items()}
        self.streams = self.kinds[0].streams | self.kinds[1].streams
        if fast and pen.chance(0.02):
            self.streams |= self.endpoints.keys()

    def request(self, what: Struct | None = None, **given: int) -> Transfer:
        """A control request, with the room that it says it has, but when it has not."""
        pen, kind = self.pen, self.pen.one_of(self.kinds)
        data = (what or pen.one_of(usb.STANDARD if pen.chance(0.5) else kind.requests)).draw(pen, **given)
        length = int.from_bytes(data[6:], "little")
        address = pen.room(max(1, min(length, 4096)))
        if length and not data[0] & IN:
            pen.lay(kind.data or pen.random.randbytes(min(length, 16)), at=address)
        if pen.chance(0.05):  # that it is too little is rare: nothing else would be found
            length = pen.one_of((0, 1, length // 2) if pen.chance(0.03) else (length + 1, 2 * length))
        return Transfer(data[0] & IN, [(address, length)] if length else [], int.from_bytes(data, "little"))

    def begin(self) -> list[Transfer]:
        """What a driver asks first."""
        value = 2 if usb.NETWORK in (kind.requests for kind in self.kinds) and self.pen.chance(0.5) else 1
        found = [self.request(usb.CONFIGURE, value=value)] if self.pen.chance(0.97) else []
        return found + [self.request(usb.SELECT, value=1, index=1)] * (ISOCHRONOUS in self.endpoints.values())

    def command(self) -> list[Transfer]:
        """What one of the classes has for its endpoints; now and then one is left out, or is in another order."""
        found: list[Transfer] = self.pen.one_of(self.kinds).command(self.pen)
        if self.pen.chance(0.05):
            del found[self.pen.count(0, len(found) - 1)]
        if self.pen.chance(0.05):
            self.pen.random.shuffle(found)
        return found
