"""What a device stands on: a drive, a network, a sound card. Each leads nowhere, and is added where it is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vmtest.devices.board import Board
from vmtest.devices.session import Session
from vmtest.errors import HostError, QmpError, UsageError
from vmtest.host import Qemu

__all__ = ["BACKENDS", "device_arguments", "properties"]

BACKENDS: Mapping[str, tuple[str, str]] = {
    "netdev": ("-netdev", "hubport,id={id},hubid=0"),
    "drive": ("-drive", "if=none,id={id},file=null-co://,file.read-zeroes=on,format=raw"),
    "audiodev": ("-audiodev", "none,id={id}"),
    "chardev": ("-chardev", "null,id={id}"),
    "rng": ("-object", "rng-builtin,id={id}"),
    "memdev": ("-object", "memory-backend-ram,id={id},size=1M"),
    "cryptodev": ("-object", "cryptodev-backend-builtin,id={id}"),
    "fsdev": ("-fsdev", "synth,id={id}"),
    "bmc": ("-device", "ipmi-bmc-sim,id={id}"),
    **dict.fromkeys(("canbus", "canbus0", "canbus1"), ("-object", "can-bus,id={id}")),
}
"""By a device's property, QEMU's arguments for what it is to be given: one that nothing gets out of."""

CONTROLLERS: Mapping[str, str] = {
    "usb-bus": "qemu-xhci",
    "SCSI": "virtio-scsi-pci",
    "virtio-serial-bus": "virtio-serial-pci",
    "sd-bus": "sdhci-pci",
    "HDA": "intel-hda",
    "ccid-bus": "usb-ccid",
    "nvme-bus": "nvme",
    "floppy-bus": "isa-fdc",
    "IndustryPack": "tpci200",
}
"""By a bus that machines have not by themselves, the device that has one."""
REQUIRED: Mapping[tuple[str, str], str] = {
    ("nvme", "serial"): "1",
    ("cxl-type3", "id"): "cxl0",
    ("virtio-9p-pci", "mount_tag"): "vmtest",
    ("pci-bridge", "chassis_nr"): "1",
}
"""By device and property, what it does not start without."""

PLACES = ("id", "bus")
"""What each device may be given, beside its properties."""

_KNOWN: dict[tuple[str, str], Mapping[str, str]] = {}
_BUSES: dict[str, Mapping[str, str]] = {}


def properties(kind: str, qemu: Qemu) -> Mapping[str, str]:
    """The properties of a device type, each with its type. Raises UsageError for one that this QEMU does not know,
    with the names that are nearest.
    """
    key = qemu.fingerprint, kind
    if key not in _KNOWN:
        with Session(Board(arguments=("-M", "none")), qemu) as session:
            try:
                rows = session.qmp.execute("device-list-properties", typename=kind)
            except QmpError:
                if session.qmp.closed:  # as where a module that it stands on is not installed
                    said = f"QEMU ends when it is asked what {kind} has"
                    raise HostError(said, evidence=session.evidence()) from None
                raise UsageError(f"{qemu.path.name} has no device {kind!r}", hint=_nearest(kind, session)) from None
            _KNOWN[key] = {row["name"]: row["type"] for row in rows}
    return _KNOWN[key]


def buses(qemu: Qemu) -> Mapping[str, str]:
    """By device type that a user can add, the bus that it hangs on; "" for none."""
    if qemu.fingerprint not in _BUSES:
        with Session(Board(arguments=("-M", "none")), qemu) as session:
            text = session.qmp.execute("human-monitor-command", command_line="info qdm")
        lines = (line for line in text.splitlines() if "no-user" not in line)
        rows = (re.match(r'name "([^"]+)"(?:, bus ([^,\s]+))?', line) for line in lines)
        _BUSES[qemu.fingerprint] = {row[1]: row[2] or "" for row in rows if row}
    return _BUSES[qemu.fingerprint]


def _nearest(kind: str, session: Session) -> str:
    from difflib import get_close_matches

    rows = session.qmp.execute("qom-list-types", implements="device", abstract=False)
    close = get_close_matches(kind, [row["name"] for row in rows], n=5, cutoff=0.5)
    return f"such as {', '.join(close)}" if close else f"{session.qemu.path.name} -device help lists them"


def device_arguments(kind: str, qemu: Qemu, number: int, given: Mapping[str, object]) -> list[str]:
    """QEMU's arguments for a device with these properties, and for what it stands on where that is not given. Names may
    have ``_`` for ``-``.
    """
    has = properties(kind, qemu)
    given = {name if name in has else name.replace("_", "-"): value for name, value in given.items()}
    if unknown := [name for name in given if name not in has and name not in PLACES]:
        raise UsageError(f"{kind} has no property {unknown[0]!r}", hint=f"it has: {', '.join(sorted(has))}")
    words, said = list[str](), dict[str, object](given)
    controller = CONTROLLERS.get(buses(qemu).get(kind, ""))
    if controller and "bus" not in given:
        words += device_arguments(controller, qemu, number + 100, {})
    said |= {name: value for (which, name), value in REQUIRED.items() if which == kind and name not in given}
    for name, (option, value) in BACKENDS.items():
        if name in has and name not in given:
            words += [option, value.format(id=f"{name}{number}")]
            said[name] = f"{name}{number}"
    options = ",".join([kind, *(f"{name}={_said(value)}" for name, value in said.items())])
    return [*words, "-device", options]


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")
