"""What of a machine is worked on: where it is reached, and what must be done to reach it, found by asking QEMU."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmtest.devices.access import PORTS, Access
from vmtest.devices.bench import Bench
from vmtest.devices.pci import Pci
from vmtest.devices.session import Board, Session
from vmtest.errors import QmpError, UsageError
from vmtest.host import Qemu

__all__ = ["Area", "Target", "regions", "target"]


@dataclass(frozen=True, kw_only=True)
class Area:
    """Addresses at which a device answers: ports, or memory. ``size`` is in bytes. ``owner`` is the device's QOM path,
    "" where QEMU does not say.
    """

    name: str
    address: int
    size: int
    is_port: bool = False
    owner: str = ""


@dataclass(frozen=True, kw_only=True)
class Target:
    """``begin`` are the operations that a machine that has just been started, or reset, is made ready with."""

    name: str
    board: Board
    areas: Sequence[Area]
    begin: Sequence[Access] = ()


def target(name: str, *, binary: str = "", machine: str = "", arguments: Sequence[str] = ()) -> tuple[Target, Qemu]:
    """A device type on a machine, or a whole machine by its type: all that answers on its buses.

    A device is reached by the regions that it has in memory and ports by itself, else by the BARs of the PCI function
    that it is, or hangs on, such as a disk on its controller. Raises UsageError for what is neither a device nor a
    machine of this QEMU, and HostError where QEMU does not start with it.
    """
    bench = Bench(binary=binary, machine=machine, arguments=arguments)
    is_machine = not machine and name in _machines(bench.qemu)
    if is_machine:
        bench = Bench(binary=binary, machine=name, arguments=arguments, memory=0)
    areas, begin = list[Area](), list[Access]()
    with bench:
        if is_machine:
            areas = list(regions(bench.session))
        else:
            bench.add(name)
            areas, begin = _of_device(bench, name)
        if not areas:
            raise UsageError(f"{name} has no registers that can be reached: no BARs, no ports, no memory")
        return Target(name=name, board=bench.board, areas=areas, begin=begin), bench.qemu


def _machines(qemu: Qemu) -> set[str]:
    with Session(Board(arguments=("-M", "none")), qemu) as session:
        rows = session.qmp.execute("query-machines")
    return {name for row in rows for name in (row["name"], row.get("alias")) if name}


def _of_device(bench: Bench, kind: str) -> tuple[list[Area], list[Access]]:
    path = _path(bench.session, kind)
    own = [area for area in regions(bench.session) if f"{area.owner}/".startswith(f"{path}/")]
    device = None if own else _on_pci(bench, path)
    if device is None:
        return own, []
    begin = device.mapping()
    bars = [device.bar(number) for number in sorted(device.regions) if number < 6]
    found = [
        Area(
            name=f"BAR {bar.region.number}",
            address=bar.address,
            size=bar.size,
            is_port=bar.region.is_port,
            owner=path,
        )
        for bar in bars
    ]
    return found, begin


def _path(session: Session, kind: str) -> str:
    """Where in QOM the device is that was added."""
    for place in ("/machine/peripheral", "/machine/peripheral-anon"):
        for row in session.qmp.execute("qom-list", path=place):
            if row["type"] == f"child<{kind}>":
                return f"{place}/{row['name']}"
    raise UsageError(f"{kind} is not on this machine")


def _on_pci(bench: Bench, path: str) -> Pci | None:
    """The function that it is, or whose bus it is on; None where there is none."""
    while path.startswith("/machine/"):
        try:
            bus = bench.session.qmp.execute("qom-get", path=path, property="parent_bus")
        except QmpError:
            return None
        try:
            if devfn := _devfn(bench.session, path):
                return next(one for one in bench.bus.devices if (one.slot, one.function) == divmod(devfn, 8))
        except StopIteration:  # on another bus, behind a bridge
            pass
        path = bus.rpartition("/")[0]
    return None


def _devfn(session: Session, path: str) -> int | None:
    names = {row["name"] for row in session.qmp.execute("qom-list", path=path)}
    return session.qmp.execute("qom-get", path=path, property="addr") if "romfile" in names else None


_REGION = re.compile(r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, i/o\): (\S+)(.*)")
_OWNER = re.compile(r"(?:owner|parent):\{(?:dev|obj) (?:path|id)=([^}]+)\}")


def regions(session: Session) -> Iterator[Area]:
    """What answers on the buses of the first CPU: registers in memory, then ports. Memory and ROM are none."""
    text = session.qmp.execute("human-monitor-command", command_line="info mtree -f -o")
    for view in text.split("FlatView #"):
        if not (space := re.search(r'AS "(memory|I/O)"', view)):
            continue
        is_port = space[1] == "I/O"
        for line in view.splitlines():
            if not (found := _REGION.match(line)) or found[3] == "io":
                continue
            first, last, owner = int(found[1], 16), int(found[2], 16), _OWNER.search(found[4])
            if not is_port or last < PORTS:
                yield Area(
                    name=found[3],
                    address=first,
                    size=last - first + 1,
                    is_port=is_port,
                    owner=owner[1] if owner else "",
                )
