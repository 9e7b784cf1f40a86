"""The Unicorn library. This is the only file that imports it."""

from __future__ import annotations

import ctypes
import mmap
import threading
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from vmtest.executors import base
from vmtest.model.case import Case, Outcome, differences
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE, Isa

__all__ = ["Engine", "describe", "lacks"]

# UC_ERR_* of unicorn.h (2.x): how an access fails, and what cannot be decoded.
_UNMAPPED, _PROTECTED, _UNALIGNED = (6, 7, 8), (12, 13, 14), (19, 20, 21)
_INVALID, _EXCEPTION = 10, 22
# Vectors of the Intel SDM, volume 3, table 6-1. Others are of the instruction set's own numbering.
_UNDEFINED, _PAGE_FAULT = 6, 14

_ARCHES = {
    "x86_64": ("UC_ARCH_X86", ("UC_MODE_64",), "x86_const", "UC_X86_REG_", {"rflags": "EFLAGS"}, "RIP"),
    "aarch64": ("UC_ARCH_ARM64", ("UC_MODE_ARM",), "arm64_const", "UC_ARM64_REG_", {}, "PC"),
    "riscv64": ("UC_ARCH_RISCV", ("UC_MODE_RISCV64",), "riscv_const", "UC_RISCV_REG_", {}, "PC"),
}


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
        from unicorn.unicorn_py3.unicorn import Uc, uclib

        arch, modes, constants, prefix, names, pc = _ARCHES[isa.name]
        const = getattr(unicorn, constants)
        self._lib = uclib
        self._uc = Uc(getattr(unicorn, arch), sum(getattr(unicorn, mode) for mode in modes))
        self._handle = self._uc._uch
        self._code, self._data = mmap.mmap(-1, PAGE), mmap.mmap(-1, DATA_SIZE)
        for address, memory in ((CODE, self._code), (DATA, self._data)):
            pointer = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            self._uc.mem_map_ptr(address, len(memory), unicorn.UC_PROT_ALL, pointer)
        self._enable(unicorn)
        # What ctl_remove_cache does, which takes 6 microseconds for the same.
        self._drop = unicorn.UC_CTL_IO_WRITE << 30 | 2 << 26 | unicorn.UC_CTL_TB_REMOVE_CACHE
        ranges = ((CODE, CODE + PAGE), (DATA, DATA + DATA_SIZE))
        self._windows = [(ctypes.c_uint64(start), ctypes.c_uint64(end)) for start, end in ranges]
        told = [register for register in isa.registers if not register.group]
        numbers = [getattr(const, prefix + names.get(r.name, r.name.upper())) for r in told]
        self._ids = (ctypes.c_int * len(numbers))(*numbers)
        # The library reads and writes each register where its pointer says, which is its place in a state.
        self._buffer = ctypes.create_string_buffer(isa.size + 8)
        start = ctypes.addressof(self._buffer)
        self._places = (ctypes.c_void_p * len(numbers))(*(start + isa.places[r.name].start for r in told))
        self._number = len(numbers)
        self._pc = getattr(const, prefix + pc)
        self._pc_value = ctypes.c_uint64()
        self._pc_pointer = ctypes.byref(self._pc_value)
        self._fault: tuple[int | None, int | None] = (None, None)
        self._stopped = threading.Event()
        self._fresh = self._uc.context_save()
        self._uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_fault)
        self._uc.hook_add(unicorn.UC_HOOK_INTR, self._on_interrupt)

    def _enable(self, unicorn: Any) -> None:
        """Floating point and vectors, which are off after a reset."""
        if self.isa.name == "aarch64":
            self._uc.reg_write(unicorn.arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20)
        elif self.isa.name == "riscv64":
            status = self._uc.reg_read(unicorn.riscv_const.UC_RISCV_REG_MSTATUS)
            self._uc.reg_write(unicorn.riscv_const.UC_RISCV_REG_MSTATUS, status | 3 << 13)

    def _on_fault(self, uc: Any, access: int, address: int, size: int, value: int, data: Any) -> bool:
        self._fault = (_PAGE_FAULT if self.isa.name == "x86_64" else None, address)
        return False

    def _on_interrupt(self, uc: Any, number: int, data: Any) -> None:
        self._fault = (number, None)
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
        self._forget()
        status = lib.uc_emu_start(handle, ctypes.c_uint64(start), ctypes.c_uint64(CODE + PAGE), 0, 0)
        lib.uc_reg_read_batch(handle, self._ids, self._places, self._number)
        lib.uc_reg_read(handle, self._pc, self._pc_pointer)
        end: int | None = self._pc_value.value
        if self._stopped.is_set():
            return Outcome(status="timeout")
        vector, address = self._fault
        if end == address == CODE + PAGE:  # on some architectures it fetches what is behind the end
            status, vector, address = 0, None, None
        failed = status != 0 or vector is not None or address is not None
        if status == _INVALID:
            vector = _UNDEFINED if self.isa.name == "x86_64" else None
        if status in (*_UNMAPPED, *_PROTECTED, *_UNALIGNED):  # it keeps no program counter for those
            end = None
        return Outcome(
            status="exception" if failed else "ok",
            state=self._buffer.raw[: self.isa.size],
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
