"""x87 registers in Unicorn, which numbers them from the first one; a state counts them from the top of the stack."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from vmtest.model.isa import Isa

__all__ = ["X87"]

_NAMES = ("FPCW", "FPSW", "FPTAG", *(f"FP{number}" for number in range(8)))
_SLOT = 16
"""Bytes of each in our buffer."""
_EMPTY = 3
"""A tag of two bits, as the library has them (Intel SDM, volume 1, section 8.1.7)."""


class X87:
    """Writes them from a state, and reads them into one."""

    def __init__(self, library: Any, isa: Isa, register: Callable[[str], int]) -> None:
        self._library = library
        self._control, self._status, self._tags = (isa.places[name] for name in ("fcw", "fsw", "ftw"))
        self._stack = [isa.places[f"st{number}"] for number in range(8)]
        self._buffer = ctypes.create_string_buffer(_SLOT * len(_NAMES))
        start = ctypes.addressof(self._buffer)
        self._ids = (ctypes.c_int * len(_NAMES))(*map(register, _NAMES))
        self._places = (ctypes.c_void_p * len(_NAMES))(*(start + _SLOT * number for number in range(len(_NAMES))))

    def write(self, handle: Any, state: bytes) -> None:
        """Set them all."""
        top, valid = _top(state[self._status]), state[self._tags.start]
        tags = sum(0 if valid >> number & 1 else _EMPTY << 2 * number for number in range(8))
        words = [state[self._control], state[self._status], tags.to_bytes(2, "little")]
        stack = [state[self._stack[(number - top) % 8]] for number in range(8)]
        self._buffer.raw = b"".join(value.ljust(_SLOT, b"\0") for value in words + stack)
        self._library.uc_reg_write_batch(handle, self._ids, self._places, len(_NAMES))

    def read(self, handle: Any, state: bytes) -> bytes:
        """The state with what they hold now."""
        self._library.uc_reg_read_batch(handle, self._ids, self._places, len(_NAMES))
        raw, found = self._buffer.raw, bytearray(state)
        control, status, tags = (raw[_SLOT * number : _SLOT * number + 2] for number in range(3))
        word, top = int.from_bytes(tags, "little"), _top(status)
        found[self._control], found[self._status] = control, status
        found[self._tags.start] = sum((word >> 2 * number & 3 != _EMPTY) << number for number in range(8))
        for number, place in enumerate(self._stack):
            at = _SLOT * (3 + (number + top) % 8)
            found[place] = raw[at : at + 10]
        return bytes(found)


def _top(status: bytes) -> int:
    return status[1] >> 3 & 7
