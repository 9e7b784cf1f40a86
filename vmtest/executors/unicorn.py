"""The Unicorn library. This is the only file that imports it."""

from __future__ import annotations

import ctypes
import mmap
import threading
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from vmtest.executors import base
from vmtest.executors.unicorn_tables import MACHINES
from vmtest.executors.unicorn_x87 import X87
from vmtest.model.case import Case, Outcome, differences
from vmtest.model.isa import DATA_SIZE, PAGE, Isa

__all__ = ["Engine", "describe", "lacks"]

# UC_ERR_* of unicorn.h (2.x): how an access fails, and what cannot be decoded.
_UNMAPPED, _PROTECTED, _UNALIGNED = (6, 7, 8), (12, 13, 14), (19, 20, 21)
_INVALID, _FETCH_UNMAPPED = 10, 8
_MEM_READ_UNMAPPED = 19  # UC_MEM_*: to write and to fetch follow


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    return "" if find_spec("unicorn") else "the package unicorn is missing (pip install unicorn)"


def describe(isa: Isa, argument: str = "") -> str:
    """What it is here: the library's version."""
    return f"Unicorn {version('unicorn')}"


class Engine(base.Engine):
    """One emulator for all cases. What the library keeps of one that could be seen by the next is taken back."""

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        import unicorn
        from unicorn.unicorn_py3.unicorn import uclib

        self._lib, self._machine = uclib, MACHINES[isa.name]
        self._constants = vars(getattr(unicorn, self._machine.constants))
        self._code, self._data = mmap.mmap(-1, PAGE), mmap.mmap(-1, DATA_SIZE)
        # What ctl_remove_cache does, which takes 6 microseconds for the same.
        self._drop = unicorn.UC_CTL_IO_WRITE << 30 | 2 << 26 | unicorn.UC_CTL_TB_REMOVE_CACHE
        self._end = isa.code + PAGE
        ranges = ((isa.code, self._end), (isa.data, isa.data + DATA_SIZE))
        self._windows = [(ctypes.c_uint64(start), ctypes.c_uint64(end)) for start, end in ranges]
        told = [register.name for register in isa.registers if not register.group]
        # The library reads and writes each register where its pointer says, which is its place in a state.
        self._buffer = ctypes.create_string_buffer(isa.size + 8)
        start = ctypes.addressof(self._buffer)
        self._ids = (ctypes.c_int * len(told))(*map(self._register, told))
        self._places = (ctypes.c_void_p * len(told))(*(start + isa.places[name].start for name in told))
        self._number = len(told)
        self._x87 = X87(uclib, isa, self._register) if "st0" in isa.places else None
        self._pc = self._register(self._machine.pc)
        self._pc_value = ctypes.c_uint64()
        self._pc_pointer = ctypes.byref(self._pc_value)
        self._stopped = threading.Event()
        self._forget()
        self._make(unicorn)

    def _register(self, name: str) -> int:
        """The library's number of a register."""
        return int(self._constants[self._machine.prefix + self._machine.names.get(name, name.upper())])

    def _make(self, unicorn: Any) -> None:
        self._uc = unicorn.Uc(getattr(unicorn, self._machine.arch), getattr(unicorn, self._machine.mode))
        self._handle = self._uc._uch
        for address, memory in ((self.isa.code, self._code), (self.isa.data, self._data)):
            pointer = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            self._uc.mem_map_ptr(address, len(memory), unicorn.UC_PROT_ALL, pointer)
        for name, bits in self._machine.enable:
            self._uc.reg_write(self._register(name), self._uc.reg_read(self._register(name)) | bits)
        self._fresh = self._uc.context_save()
        self._uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_fault)
        self._uc.hook_add(unicorn.UC_HOOK_INTR, self._on_interrupt)

    def _on_fault(self, uc: Any, access: int, address: int, size: int, value: int, data: Any) -> bool:
        self._fault = (self._machine.faults[(access - _MEM_READ_UNMAPPED) % 3], address)
        return False

    def _on_interrupt(self, uc: Any, number: int, data: Any) -> None:
        self._fault = (self._machine.vectors.get(number, number), None)
        uc.emu_stop()

    def run(self, case: Case) -> Outcome:
        """See Engine."""
        lib, handle, start, before = self._lib, self._handle, case.start, case.window
        self._data[:] = before
        self._code[:] = case.code.rjust(PAGE, b"\0")
        self._uc.context_restore(self._fresh)  # also an exception that it remembers, which would make the next a double
        for window in self._windows:
            lib.uc_ctl(handle, self._drop, *window)
        ctypes.memmove(self._buffer, case.state, self.isa.size)
        lib.uc_reg_write_batch(handle, self._ids, self._places, self._number)
        x87 = self._x87 if base.uses_vectors(case) else None
        if x87:
            x87.write(handle, case.state)
        self._forget()
        begin, end_ = ctypes.c_uint64(start + self._machine.start), ctypes.c_uint64(self._end)
        status = lib.uc_emu_start(handle, begin, end_, 0, 0)
        lib.uc_reg_read_batch(handle, self._ids, self._places, self._number)
        lib.uc_reg_read(handle, self._pc, self._pc_pointer)
        end: int | None = self._pc_value.value
        if self._stopped.is_set():
            return Outcome(status="timeout")
        vector, address = self._fault
        if end == address == self._end:  # on some architectures it fetches what is behind the end
            status, vector, address = 0, None, None
        failed = status != 0 or vector is not None or address is not None
        if status == _INVALID:
            vector = self._machine.undefined
        if status in (*_UNMAPPED, *_PROTECTED, *_UNALIGNED):  # it keeps no program counter for those
            end = None
        state = self._buffer.raw[: self.isa.size]
        if x87:
            state = x87.read(handle, state)
        if status == _FETCH_UNMAPPED and self._machine.dies_of_fetch:
            import unicorn

            self._make(unicorn)
        return Outcome(
            status="exception" if failed else "ok",
            state=state,
            writes=differences(before, self._data[:]),
            end=end,
            vector=vector,
            address=address,
        )

    def _forget(self) -> None:
        self._fault = (None, None)
        self._stopped.clear()

    def stop(self) -> None:
        """See Engine."""
        self._stopped.set()
        self._lib.uc_emu_stop(self._handle)
