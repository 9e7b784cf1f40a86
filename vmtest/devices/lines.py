"""Operations out of the lines that say them (vmtest.devices.access): those of qtest's logs, and of others."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

from vmtest.devices.access import (
    FLUSH,
    MOST,
    RESET,
    SIZES,
    UNNAMED,
    Access,
    ClockSet,
    ClockStep,
    Csr,
    Endianness,
    Fill,
    Flush,
    In,
    Intercept,
    Load,
    LoadModule,
    Out,
    Read,
    Reset,
    Rtas,
    SetLine,
    Store,
    Write,
    encode,
)
from vmtest.errors import UsageError

__all__ = ["parse"]


def parse(line: str) -> Access:
    """The operation that a line says. Raises UsageError for one that says none, or what QEMU would not take."""
    if line.strip() in (FLUSH, RESET):
        return Flush() if line.strip() == FLUSH else Reset()
    words = line.split()
    try:
        access = _DECODE[words[0]](*words[1:])
    except (KeyError, IndexError):
        raise UsageError(
            f"{line.strip()[:80]!r} is no operation of qtest", hint=f"known: {', '.join(_DECODE)}"
        ) from None
    except (TypeError, ValueError):
        raise UsageError(f"{line.strip()[:80]!r}: its words are not those that {words[0]} takes") from None
    encode(access)
    return access


def _number(text: str) -> int:
    """As QEMU reads it: base 16 behind 0x, 8 behind 0, else 10."""
    value = int(text, 8) if re.fullmatch(r"0[0-7]+", text) else int(text, 0)
    if not -1 << 63 <= value < 1 << 64:
        raise ValueError  # QEMU ends by it
    return value


def _written(address: str, length: str, data: str) -> Store:
    if not data.startswith("0x"):
        raise ValueError
    # As QEMU does it: what is missing is zero, and what is too much is not taken.
    size = _number(length)
    if not 0 < size <= MOST:
        raise ValueError
    return Store(_number(address), bytes.fromhex(data[2:][: 2 * size].ljust(2 * size, "0")))


def _decoded(address: str, length: str, data: str) -> Store:
    size = _number(length)
    return Store(_number(address), base64.b64decode(data, validate=True)[:size].ljust(size, b"\0"))


def _of_ports(size: int) -> dict[str, Callable[..., Access]]:
    return {
        f"in{SIZES[size]}": lambda port: In(_number(port), size),
        f"out{SIZES[size]}": lambda port, value: Out(_number(port), _number(value) % (1 << 8 * size), size),
    }


def _of_memory(size: int) -> dict[str, Callable[..., Access]]:
    return {
        f"read{SIZES[size]}": lambda address: Read(_number(address), size),
        f"write{SIZES[size]}": lambda address, value: Write(_number(address), _number(value) % (1 << 8 * size), size),
    }


_DECODE: dict[str, Callable[..., Access]] = {
    **_of_ports(1),
    **_of_ports(2),
    **_of_ports(4),
    **_of_memory(1),
    **_of_memory(2),
    **_of_memory(4),
    **_of_memory(8),
    "read": lambda address, length: Load(_number(address), _number(length)),
    "b64read": lambda address, length: Load(_number(address), _number(length)),
    "write": _written,
    "b64write": _decoded,
    "memset": lambda address, length, byte: Fill(_number(address), _number(length), _number(byte) & 0xFF),
    "clock_step": lambda ns=None: ClockStep(None if ns is None else _number(ns)),
    "clock_set": lambda ns: ClockSet(_number(ns)),
    "endianness": lambda: Endianness(),
    "module_load": lambda prefix, name: LoadModule(prefix, name),
    "rtas": lambda name, *numbers: Rtas(name, *map(_number, numbers)),
    "csr": lambda what, hart, register, value: Csr(
        _number(hart), _number(register), {"get_csr": None, "set_csr": _number(value)}[what]
    ),
    "irq_intercept_in": lambda path: Intercept(path),
    "irq_intercept_out": lambda path: Intercept(path, is_out=True),
    "set_irq_in": lambda path, name, number, level: SetLine(
        path, "" if name == UNNAMED else name, _number(number), _number(level)
    ),
}
