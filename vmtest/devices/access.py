"""What is done to a device, as values, and the line that says each: that of the qtest protocol, which people read,
paste and send upstream (system/qtest.c in QEMU).

A line that QEMU cannot read ends it, which would be no finding. So what cannot be said is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from vmtest.errors import UsageError

__all__ = [
    "FLUSH",
    "MOST",
    "PORTS",
    "RESET",
    "SIZES",
    "UNNAMED",
    "UNSAID",
    "Access",
    "ClockSet",
    "ClockStep",
    "Csr",
    "Endianness",
    "Fill",
    "Flush",
    "In",
    "Intercept",
    "Load",
    "LoadModule",
    "Out",
    "Read",
    "Reset",
    "Rtas",
    "SetLine",
    "Store",
    "Write",
    "encode",
]

PORTS = 1 << 16
SIZES = {1: "b", 2: "w", 4: "l", 8: "q"}
"""Bytes of an access, and the letter for it; ports have no "q"."""
UNNAMED = "unnamed-gpio-in"
"""QEMU's word for input lines that have no name."""
MOST = 1 << 24
"""Bytes that one operation may move: QEMU makes room for them all at once."""


class In(NamedTuple):
    """Read ``size`` bytes (1, 2 or 4) from an I/O port. Answered by their value."""

    port: int
    size: int


class Out(NamedTuple):
    """Write ``size`` bytes (1, 2 or 4) to an I/O port."""

    port: int
    value: int
    size: int


class Read(NamedTuple):
    """Read ``size`` bytes (1, 2, 4 or 8) at a physical address, in one access. Answered by their value."""

    address: int
    size: int


class Write(NamedTuple):
    """Write ``size`` bytes (1, 2, 4 or 8) at a physical address, in one access."""

    address: int
    value: int
    size: int


class Load(NamedTuple):
    """Read ``length`` bytes of memory. Answered by them."""

    address: int
    length: int


class Store(NamedTuple):
    """Write bytes to memory."""

    address: int
    data: bytes


class Fill(NamedTuple):
    """Write the same byte to memory, ``length`` times."""

    address: int
    length: int
    byte: int


class ClockStep(NamedTuple):
    """Let ``ns`` nanoseconds of virtual time pass, None for up to the next timer: under the accelerator qtest alone."""

    ns: int | None = None


class ClockSet(NamedTuple):
    """Let virtual time pass until it is ``ns`` nanoseconds: under the accelerator qtest alone."""

    ns: int


class Intercept(NamedTuple):
    """Have interrupt lines of the device at a QOM path told: those that come in, or go out."""

    path: str
    is_out: bool = False


class SetLine(NamedTuple):
    """Raise or lower an input line of the device at a QOM path; ``name`` is "" for the lines that have none."""

    path: str
    name: str
    number: int
    level: int


class Endianness(NamedTuple):
    """Ask which one the target has. Answered by ``b"little"`` or ``b"big"``."""


class LoadModule(NamedTuple):
    """Have QEMU load a module of its own, such as ``("hw-", "display-qxl")``."""

    prefix: str
    name: str


class Rtas(NamedTuple):
    """Call a service of the firmware of PAPR machines (hw/ppc/spapr_rtas.c). ``arguments`` and ``results`` are
    addresses of so many words of 32 bits, big-endian, in memory. Answered by a status, 0 for success.
    """

    name: str
    number_of_arguments: int
    arguments: int
    number_of_results: int
    results: int


class Csr(NamedTuple):
    """Read a control and status register of a RISC-V hart, or with a ``value`` write it: since QEMU 10.0
    (hw/riscv/riscv_hart.c), which aborts where there is no such register. Answered by what was read.
    """

    hart: int
    register: int
    value: int | None = None


class Flush(NamedTuple):
    """Wait until all that was sent before is done, and QEMU's main loop has run: part of a reproducer that is sent as
    fast as QEMU takes it. Its line is a comment to others.
    """


class Reset(NamedTuple):
    """Press the machine's reset button, when all that was sent before is done, and wait for it. Its line is a comment
    to others.
    """


Access = (
    In | Out | Read | Write | Load | Store | Fill | ClockStep | ClockSet | Intercept | SetLine
    | Endianness | LoadModule | Rtas | Csr | Flush | Reset
)  # fmt: skip
UNSAID = Flush, Reset
"""What is no request of the protocol, and has no answer."""

FLUSH, RESET = "# flush", "# reset"


def encode(access: Access) -> bytes:
    """Its line, without a newline. Raises UsageError for what QEMU would not take."""
    return _ENCODE[type(access)](access)


def _refuse(access: Access, why: str) -> UsageError:
    return UsageError(f"{access}: {why}")


def _in(access: In) -> bytes:
    port, size = access
    if not 0 <= port < PORTS or size not in (1, 2, 4):
        raise _refuse(access, "ports are 0 to 0xffff, and sizes 1, 2 and 4")
    return f"in{SIZES[size]} {hex(port)}".encode()  # which is the fastest way


def _out(access: Out) -> bytes:
    port, value, size = access
    if not 0 <= port < PORTS or size not in (1, 2, 4) or not 0 <= value < 1 << 8 * size:
        raise _refuse(access, "ports are 0 to 0xffff, sizes 1, 2 and 4, and values of that size")
    return f"out{SIZES[size]} {hex(port)} {hex(value)}".encode()


def _read(access: Read) -> bytes:
    address, size = access
    if not 0 <= address <= _TOP or size not in SIZES:
        raise _refuse(access, "addresses have 64 bits, and sizes are 1, 2, 4 and 8")
    return f"read{SIZES[size]} {hex(address)}".encode()


def _write(access: Write) -> bytes:
    address, value, size = access
    if not 0 <= address <= _TOP or size not in SIZES or not 0 <= value < 1 << 8 * size:
        raise _refuse(access, "addresses have 64 bits, sizes are 1, 2, 4 and 8, and values of that size")
    return f"write{SIZES[size]} {hex(address)} {hex(value)}".encode()


def _load(access: Load) -> bytes:
    address, length = access
    _check(access, address, length)
    return f"read {hex(address)} {hex(length)}".encode()


def _store(access: Store) -> bytes:
    address, data = access
    _check(access, address, len(data))
    return f"write {hex(address)} {hex(len(data))} 0x{data.hex()}".encode()


def _fill(access: Fill) -> bytes:
    address, length, byte = access
    _check(access, address, length)
    if not 0 <= byte < 256:
        raise _refuse(access, "a byte has 8 bits")
    return b"memset 0x%x 0x%x 0x%x" % (address, length, byte)


def _check(access: Access, address: int, length: int) -> None:
    if not 0 < length <= MOST or not 0 <= address <= _TOP - length + 1:
        raise _refuse(access, f"it is of 1 to {MOST} bytes, and within 64 bits")


def _step(access: ClockStep) -> bytes:
    if access.ns is None:
        return b"clock_step"
    return b"clock_step %d" % _nanoseconds(access, access.ns)


def _set(access: ClockSet) -> bytes:
    return b"clock_set %d" % _nanoseconds(access, access.ns)


def _nanoseconds(access: Access, ns: int) -> int:
    if not 0 <= ns < 1 << 63:
        raise _refuse(access, "times are of 63 bits")
    return ns


def _intercept(access: Intercept) -> bytes:
    return f"irq_intercept_{'out' if access.is_out else 'in'} {_word(access, access.path)}".encode()


def _line(access: SetLine) -> bytes:
    path, name, number, level = access
    if not (0 <= number < 1 << 31 and -(1 << 31) <= level < 1 << 31):
        raise _refuse(access, "numbers and levels are of 31 bits")
    return f"set_irq_in {_word(access, path)} {_word(access, name or UNNAMED)} {number} {level}".encode()


def _module(access: LoadModule) -> bytes:
    return f"module_load {_word(access, access.prefix)} {_word(access, access.name)}".encode()


def _rtas(access: Rtas) -> bytes:
    name, given, arguments, taken, results = access
    if not (0 <= given <= _WORDS and 0 <= taken <= _WORDS and 0 <= arguments <= _TOP and 0 <= results <= _TOP):
        raise _refuse(access, f"it has up to {_WORDS} arguments and results, at addresses of 64 bits")
    return f"rtas {_word(access, name)} {given} {arguments:#x} {taken} {results:#x}".encode()


def _csr(access: Csr) -> bytes:
    hart, register, value = access
    if not (0 <= hart < 1 << 16 and 0 <= register < 1 << 12 and 0 <= (value or 0) <= _TOP):
        raise _refuse(access, "registers have numbers of 12 bits, and values of 64")
    return f"csr {'get' if value is None else 'set'}_csr {hart} {register:#x} {value or 0:#x}".encode()


def _word(access: Access, text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise _refuse(access, "names have no spaces")
    return text


_TOP = (1 << 64) - 1
_WORDS = 16
_ENCODE: dict[type, Callable[[Any], bytes]] = {
    In: _in,
    Out: _out,
    Read: _read,
    Write: _write,
    Load: _load,
    Store: _store,
    Fill: _fill,
    ClockStep: _step,
    ClockSet: _set,
    Intercept: _intercept,
    SetLine: _line,
    Endianness: lambda access: b"endianness",
    LoadModule: _module,
    Rtas: _rtas,
    Csr: _csr,
    Flush: lambda access: FLUSH.encode(),
    Reset: lambda access: RESET.encode(),
}
