"""What a user says of a guest, in pyproject.toml, on the command line, in a marker or in a call; and how it adds up."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict

from vmtest.errors import UsageError
from vmtest.model.accel import AUTO, accelerator
from vmtest.model.machine import Channel

__all__ = ["BESIDE_SNAPSHOT", "DEFAULT_GUEST", "GuestSpec", "Said"]

DEFAULT_GUEST = "linux-x86_64"
BESIDE_SNAPSHOT = ("snapshot", "accel", "qemu", "hostname", "boot_timeout", "timeout", "timeout_scale")
"""What can be said of a guest that begins in a snapshot; the rest was settled when it was saved."""


class Said(TypedDict, total=False):
    """GuestSpec's fields as keyword arguments, with the types that people write."""

    image: str | None
    arch: str | None
    accel: str | None
    machine: str | None
    cpu: str | None
    memory: int | str | None
    smp: int | None
    kernel: str | Path | None
    initrd: str | Path | None
    disk: str | Path | None
    append: str | None
    trim: bool | None
    nic: str | None
    channel: Channel | str | None
    qemu: str | None
    qemu_args: Sequence[str] | None
    cold: bool | None
    snapshot: str | None
    hostname: str | None
    boot_timeout: float | None
    timeout: float | None
    timeout_scale: float | None


@dataclass(frozen=True, kw_only=True)
class GuestSpec:
    """What is asked for; None where nothing is said, so that specs can be laid over each other.

    ``image`` is the name or path of an image. ``arch`` is needed only without one. ``accel`` is "auto" or a row of
    ACCELERATORS. ``kernel``, ``initrd`` and ``disk`` replace the image's. ``append`` is added to the kernel command
    line. ``trim`` False leaves out what the image has on it only to boot faster. ``memory`` is in MiB. ``nic`` is a
    netdev back-end ("user"); by default a guest has no network. ``channel`` says how commands reach the guest.
    ``boot_timeout`` and ``timeout`` (of a command or an expect) are in seconds, before ``timeout_scale`` multiplies
    them. ``qemu_args`` are added to QEMU's command line. A guest is a clone of a template that was booted once, unless
    ``cold``; or of the named ``snapshot``. ``hostname`` gives it that name, and a machine-id of its own.
    """

    image: str | None = None
    arch: str | None = None
    accel: str | None = None
    machine: str | None = None
    cpu: str | None = None
    memory: int | None = None
    smp: int | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    disk: Path | None = None
    append: str | None = None
    trim: bool | None = None
    nic: str | None = None
    channel: Channel | None = None
    qemu: str | None = None
    qemu_args: tuple[str, ...] | None = None
    cold: bool | None = None
    snapshot: str | None = None
    hostname: str | None = None
    boot_timeout: float | None = None
    timeout: float | None = None
    timeout_scale: float | None = None

    def over(self, below: GuestSpec) -> GuestSpec:
        """This spec laid over another: what this one leaves open is taken from the one below; ``append`` adds up.

        A snapshot says all of a machine: of what lies below it only what is not about the machine remains.
        """
        if self.snapshot is not None:
            below = GuestSpec(**{name: getattr(below, name) for name in BESIDE_SNAPSHOT if name != "accel"})
        said = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if self.append and below.append:
            said["append"] = f"{below.append} {self.append}"
        return replace(below, **said)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str, base: Path | None = None) -> GuestSpec:
        """The spec that a table says. Raises UsageError that names ``where``, the key, and what is possible.

        Relative paths count from ``base``, by default the current directory.
        """
        said: dict[str, Any] = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name not in _CONVERT:
                near = difflib.get_close_matches(name, _CONVERT, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_CONVERT)}"
                raise UsageError(f"{where}: unknown key {key!r}", hint=hint)
            try:
                said[name] = None if value is None else _CONVERT[name](value)
                if isinstance(said[name], Path):
                    said[name] = (base or Path.cwd()) / said[name].expanduser()
                elif name in ("image", "qemu") and "/" in (said[name] or ""):
                    said[name] = str((base or Path.cwd()) / Path(said[name]).expanduser())
            except (TypeError, ValueError, RuntimeError):  # RuntimeError: ~nobody-of-that-name
                raise UsageError(f"{where}: {key} = {value!r} is not {_WANTED[name]}") from None
        if said.get("accel") not in (None, AUTO):
            accelerator(said["accel"])
        return cls(**said)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _host(value: object) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", _text(value)):
        raise ValueError
    return _text(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError
    number = int(value)
    if number < 1:
        raise ValueError
    return number


def _mebibytes(value: object) -> int:
    if isinstance(value, str) and value[-1:].upper() in "MG":
        return _whole(value[:-1]) * (1024 if value[-1].upper() == "G" else 1)
    return _whole(value)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _path(value: object) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise TypeError
    return Path(value)


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(_text(item) for item in value)


_KINDS: dict[Any, tuple[str, list[str]]] = {
    _text: ("a text", ["image", "arch", "accel", "machine", "cpu", "append", "nic", "qemu", "snapshot"]),
    _mebibytes: ("a size in MiB, such as 512 or '2G'", ["memory"]),
    _whole: ("a whole number of at least 1", ["smp"]),
    _path: ("a path", ["kernel", "initrd", "disk"]),
    _truth: ("true or false", ["trim", "cold"]),
    _host: ("a host name: at most 64 letters, digits, '-' and '.'", ["hostname"]),
    Channel: (f"one of {', '.join(Channel)}", ["channel"]),
    _texts: ("a list of texts", ["qemu_args"]),
    _seconds: ("a positive number", ["boot_timeout", "timeout", "timeout_scale"]),
}
_CONVERT = {name: convert for convert, (_, names) in _KINDS.items() for name in names}
_WANTED = {name: wanted for wanted, names in _KINDS.values() for name in names}
