"""Intel's 82574L (its datasheet), which is an 8254x and more."""

from __future__ import annotations

from vmtest.devices.models import step
from vmtest.devices.models.e1000 import CAUSES, DELAYS, E1000, EVERY, QUEUE, RADV, RDTR, RX, TADV, TAIL, TIDV, TX

__all__ = ["E1000e"]

IVAR, PSRCTL, RSRPD, TARC = 0xE4, 0x2170, 0x2C00, 0x3840
RXCSUM, RFCTL, MRQC, RETA, RSSRK = 0x5000, 0x5008, 0x5818, 0x5C00, 0x5C80


class E1000e(E1000):
    """The 82574L: two queues, receive-side scaling, descriptors that split packets, MSI-X."""

    name = "e1000e"
    region = "e1000e-mmio"
    regions = (region,)
    queues = 2
    waits = 0.0005
    loops = (0xC0, 0xC0, 0)

    @step(3)
    def features(self) -> None:
        """How packets are received: by which descriptors, into which queue, and what is checked of them."""
        pen = self.pen
        is_extended = pen.chance(0.75)
        self.is_split = pen.chance(0.5)
        ignored = pen.random.getrandbits(18) & pen.random.getrandbits(18) & 0x37CC1  # iSCSI, NFS, IPv6, ACKs, fragments
        self.set(RFCTL, ignored | is_extended << 15)
        sizes = (0x04040402, 0x04040402, 0x40402, 0x04040401, 0x404, 0x3F3F3F7F, 0x01010101, 0x02010102, 0, 0x10000)
        self.set(PSRCTL, pen.one_of(sizes))
        self.set(RXCSUM, pen.one_of((0x2300, 0x2300, 0x2000, 0x300, 0x100, 0x200, 0)))
        self.set(MRQC, pen.one_of((0x1F0001, 0x1F0001, 0x30001, 0x1C0001, 0x20001, 0x10001, 0x100001, 0)))
        for word in range(pen.count(0, 3)):
            self.set(RSSRK + 4 * word, pen.random.getrandbits(32))
            self.set(RETA + 4 * pen.count(0, 31), pen.one_of((0, 0x80808080, 0x80008000, 0xFFFFFFFF)))
        self.set(IVAR, pen.one_of((0xBA98, 0x800C_BA98, 0x888888, 0xFFFFFFFF, 0x80000000, 0xDCBA9)))
        for queue in range(2):
            self.set(TARC + QUEUE * queue, 0x403 if pen.chance(0.9) else pen.value(32))
        if pen.chance(0.3):
            for register in (RDTR, RADV, TIDV, TADV):
                self.set(register, pen.one_of(DELAYS))
        self.set(RSRPD, pen.one_of((0, 0, 100, 0xFFF)))
        if self.rx and pen.chance(0.9):
            for ring in self.rx:
                self.fill(ring)
            self.receive()

    @step(1)
    def vectors(self) -> None:
        """What messages say, and which are masked."""
        if (table := self.area("msix-table")) is not None:
            for word, value in enumerate((self.pen.address() & ~3, 0, self.pen.value(16), self.pen.count(0, 1))):
                self.pen.write(table, 16 * self.pen.count(0, 4) + 4 * word, value)

    @step(2)
    def by_ports(self) -> None:
        """Registers by an address and its data, which are ports (13.4.1)."""
        pen = self.pen
        if (ports := self.area("e1000e-io")) is not None:
            register = pen.one_of((*EVERY, TX + TAIL, RX + TAIL, 0x1FFFC, 0x20000, 0x80000, 0x100000))
            pen.write(ports, 0, register)
            if pen.chance(0.5):
                pen.read(ports, pen.one_of((0, 4, 4, 8)))
            else:
                pen.write(ports, pen.one_of((4, 4, 4, 8)), pen.one_of((0, *CAUSES, pen.value(32))))
