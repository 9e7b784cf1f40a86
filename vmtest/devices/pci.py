"""PCI devices without firmware: found by asking QEMU, their BARs mapped by us.

Configuration space: PCI Local Bus Specification 3.0, chapter 6. On x86 it is reached by ports (section 3.2.2.3.2),
elsewhere by memory (ECAM: PCI Express Base Specification, section 7.2.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vmtest.devices.access import Access, In, Out, Read, Write
from vmtest.devices.session import Session
from vmtest.errors import HostError, UsageError

__all__ = ["MSI", "MSIX", "Bar", "Function", "Pci", "PciBus", "Region", "is_function"]

COMMAND, STATUS, BAR0, CAPABILITIES = 0x04, 0x06, 0x10, 0x34
MSI, MSIX = 0x05, 0x11
"""Capabilities, by their numbers."""
ENABLED = 7
"""In the command register: ports, memory, and the device as a bus master."""
_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC
_PREFETCH_LARGE = 64 << 20
_X86 = ("x86_64", "i386")


@dataclass(frozen=True, kw_only=True)
class Region:
    """What QEMU's ``query-pci`` says of a BAR: number 6 is the expansion ROM. ``size`` is in bytes."""

    number: int
    is_port: bool
    size: int
    is_wide: bool


class Function(NamedTuple):
    """Where a function's configuration space is: on bus 0, by ports, or where that bus has it in memory, ``base``.
    ``msi`` and ``msix`` are where in it these capabilities are, 0 where it has none.
    """

    slot: int
    number: int
    base: int | None = None
    msi: int = 0
    msix: int = 0

    def write(self, offset: int, value: int, size: int) -> list[Access]:
        """The operations that write there."""
        if self.base is not None:
            return [Write(self._at(offset), value, size)]
        return [self._select(offset), Out(_CONFIG_DATA + (offset & 3), value, size)]

    def read(self, offset: int, size: int) -> list[Access]:
        """The operations that read there: the last one is answered by the value."""
        if self.base is not None:
            return [Read(self._at(offset), size)]
        return [self._select(offset), In(_CONFIG_DATA + (offset & 3), size)]

    def _at(self, offset: int) -> int:
        assert self.base is not None
        return self.base + (self.slot << 15 | self.number << 12 | offset)

    def _select(self, offset: int) -> Out:
        return Out(_CONFIG_ADDRESS, 1 << 31 | self.slot << 11 | self.number << 8 | offset & 0xFC, 4)


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Where BARs can be mapped: (first, last) of ports and memory, and where ports are in memory, where they are."""

    ports: tuple[int, int]
    memory: tuple[int, int]
    wide: tuple[int, int]
    ports_at: int | None = None
    config_at: int | None = None


class Bar:
    """A BAR that is mapped; offsets are from its beginning. Reads return the value, ``read`` the bytes."""

    def __init__(self, bus: PciBus, region: Region, address: int) -> None:
        self._bus, self.region, self.address = bus, region, address

    @property
    def size(self) -> int:
        """In bytes."""
        return self.region.size

    def get(self, offset: int, size: int) -> int:
        """The value of ``size`` bytes (1, 2 or 4; 8 but for ports)."""
        return self._bus.get(self._at(offset, size), size, self.region.is_port)

    def put(self, offset: int, value: int, size: int) -> None:
        """Write ``size`` bytes."""
        self._bus.put(self._at(offset, size), value, size, self.region.is_port)

    def _at(self, offset: int, size: int) -> int:
        if not 0 <= offset <= self.size - size:
            raise UsageError(f"BAR {self.region.number} has {self.size:#x} bytes: {size} at {offset:#x} are not in it")
        return self.address + offset

    def readb(self, offset: int) -> int:
        """8 bits."""
        return self.get(offset, 1)

    def readw(self, offset: int) -> int:
        """16 bits."""
        return self.get(offset, 2)

    def readl(self, offset: int) -> int:
        """32 bits."""
        return self.get(offset, 4)

    def readq(self, offset: int) -> int:
        """64 bits."""
        return self.get(offset, 8)

    def writeb(self, offset: int, value: int) -> None:
        """8 bits."""
        self.put(offset, value, 1)

    def writew(self, offset: int, value: int) -> None:
        """16 bits."""
        self.put(offset, value, 2)

    def writel(self, offset: int, value: int) -> None:
        """32 bits."""
        self.put(offset, value, 4)

    def writeq(self, offset: int, value: int) -> None:
        """64 bits."""
        self.put(offset, value, 8)


class Pci:
    """A device function on bus 0. ``regions`` are its BARs by number, ``path`` is its place in QOM, "" where that is
    not known, ``at`` its configuration space.
    """

    def __init__(self, bus: PciBus, kind: str, path: str, slot: int, function: int, facts: Mapping[str, Any]) -> None:
        self._bus = bus
        self.kind, self.path, self.slot, self.function = kind, path, slot, function
        self.at = bus.function(slot, function)
        self.vendor, self.device = int(facts["id"]["vendor"]), int(facts["id"]["device"])
        self.regions = {region.number: region for region in map(_region, facts["regions"])}
        self._mapped: dict[int, Bar] = {}

    def __repr__(self) -> str:
        return f"{self.kind or 'device'} {self.vendor:04x}:{self.device:04x} at {self.slot:02x}.{self.function}"

    def config(self, offset: int, size: int = 4) -> int:
        """What is in its configuration space."""
        (*before, read) = self.at.read(offset, size)
        for access in before:
            self._bus.session.ask(access)
        assert isinstance(read, In | Read)
        return self._bus.session.number(read)

    def set_config(self, offset: int, value: int, size: int = 4) -> None:
        """Write to its configuration space."""
        for access in self.at.write(offset, value, size):
            self._bus.session.ask(access)

    def capabilities(self) -> Mapping[int, int]:
        """By its number each capability's place in configuration space (PCI Local Bus Specification 3.0, 6.7)."""
        found: dict[int, int] = {}
        at = self.config(CAPABILITIES, 1) & -4 if self.config(STATUS, 2) & 0x10 else 0
        while at and at not in found.values():
            found[self.config(at, 1)] = at
            at = self.config(at + 1, 1) & -4
        return found

    def enable(self) -> None:
        """Map all its BARs but the ROM, and let it be reached, and reach memory."""
        for access in self.mapping():
            self._bus.session.ask(access)

    def mapping(self) -> list[Access]:
        """The operations by which ``enable`` does that; its BARs are taken as mapped."""
        words = list[tuple[int, int, int]]()
        for region in sorted(self.regions.values(), key=lambda region: -region.size):
            if region.number < 6:
                if region.number not in self._mapped:
                    self._mapped[region.number] = Bar(self._bus, region, self._bus.place(region))
                bar = self._mapped[region.number]
                words.append((BAR0 + 4 * region.number, bar.address & 0xFFFFFFFF, 4))
                words += [(BAR0 + 4 * region.number + 4, bar.address >> 32, 4)] if region.is_wide else []
        words.append((COMMAND, ENABLED, 2))
        return [access for offset, value, size in words for access in self.at.write(offset, value, size)]

    def bar(self, number: int) -> Bar:
        """A BAR, mapped. Raises UsageError for one that it has not."""
        if number not in self.regions:
            raise UsageError(f"{self} has no BAR {number}", hint=f"it has: {', '.join(map(str, self.regions))}")
        if number not in self._mapped:
            raise UsageError(f"BAR {number} of {self} is not mapped", hint="enable() first; the ROM is never mapped")
        return self._mapped[number]


class PciBus:
    """Bus 0 of a machine. ``devices`` are all that is on it."""

    def __init__(self, session: Session) -> None:
        """Raises HostError for a machine that has no PCI bus, or one of which we do not know how to reach it."""
        self.session = session
        self._windows = _windows(session)
        self._next = {"ports": self._windows.ports[0], "memory": self._windows.memory[0], "wide": self._windows.wide[0]}
        buses = session.qmp.execute("query-pci")
        kinds = _kinds(session)
        self.devices = [
            Pci(self, *kinds.get((row["slot"], row["function"]), ("", "")), row["slot"], row["function"], row)
            for bus in buses[:1]
            for row in bus["devices"]
        ]

    def find(self, kind: str) -> Pci:
        """The device of that QEMU type. Raises UsageError where there is none."""
        for device in self.devices:
            if device.kind == kind:
                return device
        raise UsageError(f"there is no {kind} on the PCI bus", hint=f"there are: {', '.join(map(repr, self.devices))}")

    def place(self, region: Region) -> int:
        """An address for it. Raises HostError where there is no room."""
        kind = "ports" if region.is_port else "wide" if region.is_wide and region.size > _PREFETCH_LARGE else "memory"
        first = -(-self._next[kind] // region.size) * region.size
        if first + region.size - 1 > getattr(self._windows, kind)[1]:
            raise HostError(f"there is no room for a BAR of {region.size:#x} bytes")
        self._next[kind] = first + region.size
        return first

    def function(self, slot: int, number: int) -> Function:
        """Where that function's configuration space is."""
        return Function(slot, number, self._windows.config_at)

    def get(self, address: int, size: int, is_port: bool) -> int:
        """What is at an address of a BAR."""
        if not is_port:
            return self.session.number(Read(address, size))
        at = self._windows.ports_at
        return self.session.number(In(address, size) if at is None else Read(at + address, size))

    def put(self, address: int, value: int, size: int, is_port: bool) -> None:
        """Write to an address of a BAR."""
        at = self._windows.ports_at
        if not is_port:
            self.session.ask(Write(address, value, size))
        else:
            self.session.ask(Out(address, value, size) if at is None else Write(at + address, value, size))


def _region(row: Mapping[str, Any]) -> Region:
    return Region(
        number=int(row["bar"]),
        is_port=row["type"] == "io",
        size=int(row["size"]),
        is_wide=bool(row.get("mem_type_64", False)),
    )


def _kinds(session: Session) -> Mapping[tuple[int, int], tuple[str, str]]:
    """By slot and function on bus 0, the QEMU type of each device, and its path."""
    found = {}
    for path in ("/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached", "/machine"):
        for row in session.qmp.execute("qom-list", path=path):
            if not (kind := re.fullmatch(r"child<(.+)>", row["type"])):
                continue
            at = f"{path}/{row['name']}"
            # None behind a bridge.
            above = _get(session, at, "parent_bus").rpartition("/")[0] if is_function(session, at) else at
            if above != at and not is_function(session, above):
                devfn = _get(session, at, "addr")
                found[devfn >> 3, devfn & 7] = kind[1], at
    return found


def is_function(session: Session, path: str) -> bool:
    """Whether what is there in QOM is a PCI function."""
    return {"addr", "parent_bus", "romfile"} <= {prop["name"] for prop in session.qmp.execute("qom-list", path=path)}


def _get(session: Session, path: str, name: str) -> Any:
    return session.qmp.execute("qom-get", path=path, property=name)


def _windows(session: Session) -> _Windows:
    if session.qemu.arch in _X86:
        return _Windows(ports=(0xC000, 0xFEFF), memory=(0xE0000000, 0xFEBFFFFF), wide=(1 << 35, (1 << 36) - 1))
    tree = session.qmp.execute("human-monitor-command", command_line="info mtree")
    where = {
        name: (int(first, 16), int(last, 16))
        for first, last, name in re.findall(
            r"([0-9a-f]{16})-([0-9a-f]{16}) \(prio \S+, \S+\): (?:alias )?([\w-]+)", tree
        )
    }
    try:
        config, memory, ports = where["pcie-ecam"], where["pcie-mmio"], where["gpex_ioport"]
    except KeyError as error:
        raise HostError(f"this machine has no PCI bus that is known here: no {error.args[0]}") from None
    wide = where.get("pcie-mmio-high", memory)
    return _Windows(ports=(0x1000, 0xFFFF), memory=memory, wide=wide, ports_at=ports[0], config_at=config[0])
