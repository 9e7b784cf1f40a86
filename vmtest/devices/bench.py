"""A machine on a bench: no CPU runs, and its devices are programmed by hand, one access after another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from vmtest.closing import Closing
from vmtest.devices.access import Access, ClockStep, In, Load, Out, Read, Store, Write
from vmtest.devices.backends import device_arguments
from vmtest.devices.board import Board
from vmtest.devices.pci import Pci, PciBus
from vmtest.devices.session import Done, Session
from vmtest.errors import UsageError
from vmtest.host import find_emulator

__all__ = ["Bench"]

AUDIO = (8, 2)
"""The version from which on ``-audio none`` is silence for what is on board."""
BINARY, MACHINE = "qemu-system-x86_64", "q35"


class Bench(Closing):
    """A machine that starts when it is first used; use it as a context manager.

    ``arguments`` are QEMU's own, beside the machine type. What ends QEMU is raised as QemuDied, with its words.
    """

    def __init__(
        self, *, binary: str = "", machine: str = "", arguments: Sequence[str] = (), accel: str = "", memory: int = 64
    ) -> None:
        """``memory`` is the guest's, in MiB; 0 for what the machine has by itself. Raises HostError where there is no
        such QEMU.
        """
        self.qemu = find_emulator(binary or BINARY)
        kind = machine or (MACHINE if self.qemu.arch in ("x86_64", "i386") else "virt")
        size = ["-m", f"{memory}M"] if memory else []
        # What is on board may play: newer versions start such machines with an audio device alone.
        given = not machine or self.qemu.version < AUDIO or any(word.startswith("-audio") for word in arguments)
        self._arguments = ["-M", kind, *size, "-nodefaults", *([] if given else ["-audio", "none"]), *arguments]
        self._accel = accel
        self._devices = 0
        self._started: Session | None = None

    def add(self, kind: str, /, **properties: object) -> None:
        """Have the machine begin with such a device; what it stands on and was not given is added. ``_`` in names is
        ``-``. Raises UsageError where it has begun already, and for what this QEMU does not know.
        """
        if self._started is not None:
            raise UsageError(f"the machine runs: {kind} cannot be added any more", hint="add() what it has first")
        self._arguments += device_arguments(kind, self.qemu, self._devices, properties)
        self._devices += 1

    @property
    def board(self) -> Board:
        """The machine, as it is now."""
        return Board(arguments=tuple(self._arguments), accel=self._accel)

    @property
    def is_running(self) -> bool:
        """Whether it has begun."""
        return self._started is not None

    @property
    def session(self) -> Session:
        """What runs. Raises HostError with QEMU's own words where it does not start."""
        if self._started is None:
            self._started = Session(self.board, self.qemu)
        return self._started

    @cached_property
    def bus(self) -> PciBus:
        """Its PCI bus."""
        return PciBus(self.session)

    def pci(self, kind: str, **properties: object) -> Pci:
        """The PCI device of that type, which is added where the machine does not run yet."""
        if self._started is None:
            self.add(kind, **properties)
        return self.bus.find(kind)

    def run(self, accesses: Sequence[Access], *, lockstep: bool = False) -> Done:
        """Many operations at once; see Session.run. That QEMU ends by them is told and not raised."""
        return self.session.run(accesses, lockstep=lockstep)

    def step(self, ns: int | None = None) -> None:
        """Let time pass for the machine's timers: so many nanoseconds, or up to the next timer. Where the build has no
        accelerator qtest it is real time: at most 1 s, and 0.2 s for the next timer.
        """
        if ns is not None and not 0 <= ns < 1 << 63:
            raise UsageError(f"step({ns}): time goes on by 0 ns to {2**63 - 1:,} ns")
        self.session.ask(ClockStep(ns))

    def inb(self, port: int) -> int:
        """8 bits of a port."""
        return self.session.number(In(port, 1))

    def inw(self, port: int) -> int:
        """16 bits of ports."""
        return self.session.number(In(port, 2))

    def inl(self, port: int) -> int:
        """32 bits of ports."""
        return self.session.number(In(port, 4))

    def outb(self, port: int, value: int) -> None:
        """8 bits to a port."""
        self.session.ask(Out(port, value, 1))

    def outw(self, port: int, value: int) -> None:
        """16 bits to ports."""
        self.session.ask(Out(port, value, 2))

    def outl(self, port: int, value: int) -> None:
        """32 bits to ports."""
        self.session.ask(Out(port, value, 4))

    def readl(self, address: int) -> int:
        """32 bits at a physical address."""
        return self.session.number(Read(address, 4))

    def writel(self, address: int, value: int) -> None:
        """32 bits to a physical address."""
        self.session.ask(Write(address, value, 4))

    def load(self, address: int, length: int) -> bytes:
        """Bytes of memory."""
        data = self.session.ask(Load(address, length))
        assert isinstance(data, bytes)
        return data

    def store(self, address: int, data: bytes) -> None:
        """Bytes to memory."""
        self.session.ask(Store(address, data))

    def close(self) -> None:
        """End it; a second time does nothing."""
        if self._started is not None:
            self._started.close()
