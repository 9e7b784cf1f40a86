"""What of a machine is worked on: where it is reached, and what must be done to reach it, found by asking QEMU."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmtest.devices.access import PORTS, Access
from vmtest.devices.backends import properties
from vmtest.devices.bench import Bench
from vmtest.devices.board import Board
from vmtest.devices.layout import Area
from vmtest.devices.pci import MSI, MSIX, Function, Pci, is_function
from vmtest.devices.session import Session
from vmtest.errors import HostError, QmpError, UsageError
from vmtest.host import Qemu

__all__ = ["ARENA", "Target", "regions", "target"]


ARENA = 0x40000
"""Bytes of the guest's memory in which devices are to find what is laid there for them."""
_ABOVE = 0x100000
"""Where it begins in memory, at least: below are vectors, and an x86 machine's holes."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """``begin`` are the operations that a machine that has just been started, or reset, is made ready with. ``arena``
    is memory of the guest's for descriptors and buffers: its address, and how many bytes. ``functions`` are the PCI
    functions whose configuration is worked on.
    """

    name: str
    board: Board
    areas: Sequence[Area]
    arena: tuple[int, int]
    begin: Sequence[Access] = ()
    functions: Sequence[Function] = ()


def target(
    name: str, *, binary: str = "", machine: str = "", arguments: Sequence[str] = (), accel: str = ""
) -> tuple[Target, Qemu]:
    """A device type on a machine, with properties as ``-device`` takes them, or a whole machine by its type: all that
    answers on its buses.

    A device is reached by the regions that it has in memory and ports by itself, else by those of the PCI function
    that it is, or hangs on, such as a disk on its controller. Raises UsageError for what is neither a device nor a
    machine of this QEMU, and HostError where QEMU does not start with it.
    """
    bench = Bench(binary=binary, machine=machine, arguments=arguments, accel=accel)
    if not machine and name in _machines(bench.qemu):
        bench = Bench(binary=binary, machine=name, arguments=arguments, accel=accel, memory=0)
        kind = ""
    else:
        kind, *given = (word.replace(",,", ",") for word in re.split(r"(?<!,),(?!,)", name))
        try:
            properties(kind, bench.qemu)
        except UsageError as error:
            hint = f"{error.hint}; a machine of another architecture: --qemu qemu-system-ARCH"
            raise UsageError(f"{bench.qemu.path.name} has no device and no machine {kind!r}", hint=hint) from None
        bench.add(kind, **_properties(given))
    with bench:
        paths = list(_above(bench.session, _path(bench.session, kind))) if kind else []
        functions = [device for device in _on_pci(bench) if device.path in paths or not kind]
        begin = [access for device in functions for access in device.mapping()]
        bench.run(begin)
        areas = sorted(regions(bench.session), key=lambda area: area.is_port)
        if kind:
            areas = next(filter(None, (_owned(areas, path) for path in paths)), [])
        if not areas:
            raise UsageError(
                f"{name} has no registers that can be reached: no BARs, no ports, no memory",
                hint="of PCI devices those on bus 0 are mapped, and none behind a bridge",
            )
        found = Target(
            name=name,
            board=bench.board,
            areas=areas,
            arena=_arena(bench.session),
            begin=begin,
            functions=[_with_messages(device) for device in functions],
        )
    return found, bench.qemu


def _properties(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if wrong := [word for word, (name, equals, _) in zip(words, pairs, strict=True) if not (name and equals)]:
        raise UsageError(f"{wrong[0]!r} is no property", hint="DEVICE,NAME=VALUE, as QEMU's -device has it")
    return {name: value for name, _, value in pairs}


def _on_pci(bench: Bench) -> list[Pci]:
    """The functions on the PCI bus, where there is one that is known here."""
    try:
        return [device for device in bench.bus.devices if device.regions]
    except (HostError, QmpError):
        return []


def _with_messages(device: Pci) -> Function:
    places = device.capabilities()
    return device.at._replace(msi=places.get(MSI, 0), msix=places.get(MSIX, 0))


def _owned(areas: Sequence[Area], path: str) -> list[Area]:
    return [area for area in areas if f"{area.owner}/".startswith(f"{path}/")]


def _machines(qemu: Qemu) -> set[str]:
    with Session(Board(arguments=("-M", "none")), qemu) as session:
        rows = session.qmp.execute("query-machines")
    return {name for row in rows for name in (row["name"], row.get("alias")) if name}


def _path(session: Session, kind: str) -> str:
    """Where in QOM the device is that was added."""
    for place in _CONTAINERS[:2]:
        for row in session.qmp.execute("qom-list", path=place):
            if row["type"] == f"child<{kind}>":
                return f"{place}/{row['name']}"
    raise UsageError(f"{kind} is not on this machine")


def _above(session: Session, path: str) -> Iterator[str]:
    """The device, what it hangs on, such as a disk's controller, what that hangs on, and so on, up to a PCI function:
    their paths in QOM.
    """
    while path.startswith("/machine/") and path not in _CONTAINERS:
        yield path
        if is_function(session, path):
            return  # the bridge above it is another device
        try:
            path = session.qmp.execute("qom-get", path=path, property="parent_bus").rpartition("/")[0]
        except QmpError:  # what hangs on no bus
            path = path.rpartition("/")[0]


_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached")
_REGION = re.compile(
    r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (i/o|ram)\): (.+?)(?: @[0-9a-f]{16})?( (?:owner|parent):.*)?$"
)
_OWNER = re.compile(r"(?:owner|parent):\{(?:dev|obj) (path|id)=([^}]+)\}")


def regions(session: Session) -> Iterator[Area]:
    """What answers on the buses of the first CPU: registers in memory, then ports. Memory and ROM are none."""
    for is_port, kind, area in _flat(session):
        if kind == "i/o" and area.name != "io" and (not is_port or area.address + area.size <= PORTS):
            yield area


def memory(session: Session) -> list[Area]:
    """What the guest can write to that is no register."""
    return [area for is_port, kind, area in _flat(session) if kind == "ram" and not is_port]


def _arena(session: Session) -> tuple[int, int]:
    """In the largest piece of the guest's memory."""
    if not (found := memory(session)):
        raise HostError("this machine has no memory")
    ram = max(found, key=lambda area: area.size)
    begin = max(ram.address, _ABOVE) if ram.address + ram.size >= _ABOVE + ARENA else ram.address
    begin += _ABOVE if begin == ram.address != _ABOVE and ram.size >= _ABOVE + ARENA else 0
    return begin, min(ARENA, ram.address + ram.size - begin)


def _flat(session: Session) -> Iterator[tuple[bool, str, Area]]:
    """All that is reached, in order: whether by ports, "i/o" or "ram", and where."""
    text = session.qmp.execute("human-monitor-command", command_line="info mtree -f -o")
    for view in text.split("FlatView #"):
        if not (space := re.search(r'AS "(memory|I/O)"', view)):
            continue
        for line in view.splitlines():
            if not (found := _REGION.match(line)):
                continue
            first, last, owner = int(found[1], 16), int(found[2], 16), _OWNER.search(found[5] or "")
            yield (
                space[1] == "I/O",
                found[3],
                Area(
                    name=found[4],
                    address=first,
                    size=last - first + 1,
                    is_port=space[1] == "I/O",
                    owner=_path_of(*owner.groups()) if owner else "",
                ),
            )


def _path_of(kind: str, name: str) -> str:
    """A device that was given an id is told by that alone."""
    return name if kind == "path" else f"{_CONTAINERS[0]}/{name}"
