"""VMware's paravirtual SCSI controller, as its driver in Linux shows it (vmw_pvscsi.h)."""

from __future__ import annotations

from vmtest.devices.layout import Struct, anything, array, drawn, flags, number, octets, pointer, zeros
from vmtest.devices.models import Model, step
from vmtest.devices.models.scsi_commands import command, pieces

__all__ = ["Pvscsi"]

COMMAND, DATA, STATUS, PENDING, MASK = 0x0, 0x4, 0x8, 0x100C, 0x2010
KICK_OTHERS, DEBUG, KICK = 0x3014, 0x3018, 0x4018
REGISTERS = (COMMAND, DATA, STATUS, 0x100, 0x104, PENDING, MASK, KICK_OTHERS, DEBUG, KICK)

RESET, ISSUE, SETUP, RESET_BUS, RESET_DEVICE, ABORT, CONFIGURE, MESSAGES, UNPLUG = range(1, 10)
NO_DATA = (RESET, RESET_BUS, RESET_BUS, RESET_BUS, ISSUE, UNPLUG, 0, 10, 0xFFFFFFFF)
PAGE = 12
LIST, FROM_DEVICE, TO_DEVICE = 1, 8, 16

PLACE = Struct("page", pointer("", 64, lambda pen: pen.room(4096, 4096), align=4096, shift=PAGE, null=0.02))
RINGS = Struct(
    "PVSCSICmdDescSetupRings",
    number("requests", 32, 1, 1, 1, 2, 2, 32, 3, 33, 0),
    number("completions", 32, 1, 1, 1, 2, 2, 32, 3, 33, 0),
    anything("state", 64),
    array("request pages", PLACE, 2, 2),
    zeros(64 * 30),
    array("completion pages", PLACE, 2, 2),
    zeros(64 * 30),
)
MESSAGE_RING = Struct(
    "PVSCSICmdDescSetupMsgRing", number("pages", 32, 1, 1, 2, 16, 17, 0), zeros(32), array("of", PLACE, 16, 1)
)
DEVICE = Struct(
    "PVSCSICmdDescResetDevice", number("target", 32, *(0,) * 12, 1, 64, 65), number("lun", 64, *(0,) * 12, 0x100, 1)
)
ABANDON = Struct("PVSCSICmdDescAbortCmd", number("context", 64, 1, 2, 3), number("target", 32, 0), zeros(32))
CONFIGURATION = Struct(
    "PVSCSICmdDescConfigCmd", pointer("to", 64, octets(256)), *(anything(f"{at}", 32) for at in range(4))
)

ELEMENT = Struct("PVSCSISGElement", anything("address", 64), anything("length", 32), flags("flags", 32, chain=3))
REQUEST = Struct(
    "PVSCSIRingReqDesc",
    number("context", 64, 1),
    anything("data", 64),
    anything("length", 64),
    pointer("sense", 64, octets(96)),
    number("sense length", 32, 96, 18, 0, 255),
    flags("flags", 32, list=50, out_of_band=3, none=10, from_device=20, to_device=20),
    drawn("cdb", 128, lambda pen: 0),
    number("cdb length", 8, 6, 10, 12, 16),
    *(
        DEVICE.fields[1],
        number("tag", 8, 0x20, 0x21, 0x22),
        number("bus", 8, 0),
        number("target", 8, *(0,) * 12, 1, 64, 65),
    ),
    zeros(8 * 60),
)
STATE = (0, 4, 8, 12, 16, 20, 128, 132, 136)
"""Where the words of PVSCSIRingsState are: of requests, completions and messages, who has got how far, and the size."""


class Pvscsi(Model):
    """Commands are told word by word, requests by a ring."""

    name = "PVSCSI"
    regions = ("pvscsi-io",)

    def begin(self) -> None:
        """The rings; interrupts on."""
        self.registers = self.needed("pvscsi-io")
        self.state = self.pen.room(4096, 4096)
        self.ring, self.size, self.next, self.context = self.pen.room(4096, 4096), 32, 0, 0
        if self.pen.chance(0.95):
            self.set_up()
        if self.pen.chance(0.7):
            self._set(MASK, self.pen.one_of((0xF, 1, 5, 0)))
        if self.pen.chance(0.3):
            self.messages()

    def _set(self, register: int, value: int) -> None:
        self.pen.write(self.registers, register, value)

    def _command(self, code: int, data: bytes = b"") -> None:
        """A command with its words, which may end too soon."""
        pen = self.pen
        self._set(COMMAND, code)
        size = len(data) if pen.chance(0.95) else pen.count(0, min(len(data), 40)) & -4
        for at in range(0, size, 4):
            self._set(DATA, int.from_bytes(data[at : at + 4], "little"))
        if pen.chance(0.03):
            self._set(DATA, pen.value(32))

    @step(1)
    def set_up(self) -> None:
        """Tell the rings."""
        pen = self.pen
        if pen.chance(0.1):
            self.state = max(pen.address() & -1 << PAGE, pen.arena[0])
        data = RINGS.draw(pen, state=self.state >> PAGE)
        self.size = 32 * max(1, min(int.from_bytes(data[:4], "little"), 2))
        self.ring, self.next = int.from_bytes(data[16:24], "little") << PAGE, 0
        base, size = pen.arena
        if not base <= self.ring <= base + size - 0x2000:
            self.ring = base
        self._command(SETUP, data)

    @step(1)
    def messages(self) -> None:
        """Tell the ring for what is plugged in."""
        self._command(MESSAGES, MESSAGE_RING.draw(self.pen))

    def _request(self) -> None:
        """Another request, into the ring: of its two pages the second one may be elsewhere."""
        pen = self.pen
        what = command(pen)
        moves = pieces(pen, what, 6)
        bits = TO_DEVICE if what.takes else FROM_DEVICE
        address = moves[0][0]
        if len(moves) > 1 or pen.chance(0.3):
            bits |= LIST
            address = pen.lay(b"".join(ELEMENT.draw(pen, address=at, length=length) for at, length in moves))
        self.context = self.context + 1 if pen.chance(0.95) else pen.value(64)
        given = {"context": self.context, "cdb": int.from_bytes(what.cdb, "little"), "data": address}
        given |= {"length": sum(length for _, length in moves) if pen.chance(0.95) else pen.value(64)}
        given |= {"flags": bits} if pen.chance(0.9) else {}
        given |= {"cdb length": len(what.cdb)} if pen.chance(0.95) else {}
        pen.lay(REQUEST.draw(pen, **given), at=self.ring + 128 * (self.next % min(self.size, 32)))
        self.next = self.next + 1 & 0xFFFFFFFF

    def _produce(self, index: int) -> None:
        self.pen.lay(index.to_bytes(4, "little"), at=self.state)

    @step(10)
    def send(self) -> None:
        """Some requests."""
        for _ in range(self.pen.count(1, 4)):
            self._request()
        self._produce(self.next)
        self._set(self.pen.one_of((KICK, KICK, KICK_OTHERS)), 0)

    @step(2)
    def kick(self) -> None:
        """A doorbell, with a ring that has gone further than there is anything, or back, or too far."""
        pen = self.pen
        if pen.chance(0.3):
            self.next = self.next + pen.one_of((1, 4)) & 0xFFFFFFFF
            self._produce(self.next)
        elif pen.chance(0.3):
            self._produce(pen.one_of((self.next + 33, self.next - 1, 0, 0xFFFFFFFF)) & 0xFFFFFFFF)
        self._set(pen.one_of((KICK, KICK_OTHERS)), pen.value(32))

    @step(2)
    def change(self) -> None:
        """Words of the state that are the device's, and of requests that it has."""
        pen = self.pen
        at = self.state + pen.one_of(STATE) if pen.chance(0.5) else self.ring + 4 * pen.count(0, 127)
        pen.lay(pen.value(32).to_bytes(4, "little"), at=at)

    @step(3)
    def abort(self) -> None:
        """A request that may be in flight: of those told last."""
        context = self.context - self.pen.one_of((0, 0, 1, 2, 7))
        self._command(ABORT, ABANDON.draw(self.pen, context=context))

    @step(2)
    def reset_device(self) -> None:
        """A disk."""
        self._command(RESET_DEVICE, DEVICE.draw(self.pen))

    @step(2)
    def others(self) -> None:
        """Resets of more, and commands that it does not know, or has no use for."""
        code = self.pen.one_of((*NO_DATA, CONFIGURE))
        self._command(code, CONFIGURATION.draw(self.pen) if code == CONFIGURE else b"")
        if code == RESET and self.pen.chance(0.8):
            self.set_up()

    @step(3)
    def interrupts(self) -> None:
        """Acknowledged, or masked."""
        self._set(self.pen.one_of((PENDING, PENDING, MASK)), self.pen.one_of((0xF, 1, 4, 0, 0xFFFFFFFF)))

    @step(1)
    def any_register(self) -> None:
        """Whatever it is."""
        self._set(self.pen.one_of(REGISTERS), self.pen.value(32))

    @step(2)
    def look(self) -> None:
        """What it says."""
        self.pen.read(self.registers, self.pen.one_of(REGISTERS))
