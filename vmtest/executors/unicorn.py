"""The Unicorn library. This is the only file that imports it."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from vmtest.executors.loops import Batch, LoopEngine, address, lacks_loops, pointers
from vmtest.executors.unicorn_tables import MACHINES
from vmtest.model.isa import DATA_SIZE, PAGE, Isa

__all__ = ["Engine", "describe", "lacks"]

_X87 = ("FPCW", "FPSW", "FPTAG", *(f"FP{number}" for number in range(8)))
_SLOT = 16
"""Bytes of each of them, in our buffer."""


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    return lacks_loops() if find_spec("unicorn") else "the package unicorn is missing (pip install unicorn)"


def describe(isa: Isa) -> str:
    """The library's version."""
    return f"Unicorn {metadata.version('unicorn')}"


class _Struct(ctypes.Structure):
    """``struct unicorn`` of loops.c, less what only that uses."""

    _fields_ = (
        ("batch", Batch),
        *pointers(
            "uc", "fresh", "restore", "ctl", "start", "write", "read", "read_one", "stop", "ids", "places", "state"
        ),
        ("number", ctypes.c_int),
        ("pc", ctypes.c_int),
        ("drop", ctypes.c_uint32),
        ("access", ctypes.c_int32 * 3),
        ("illegal", ctypes.c_int32),
        ("cut", ctypes.c_int32),
        ("vectors", ctypes.c_void_p),
        ("fixed", ctypes.c_void_p),
        ("fixed_mask", ctypes.c_uint64),
        ("fixed_value", ctypes.c_uint64),
        ("mode", ctypes.c_ulong),
        *pointers("renew", "x87_ids", "x87_places", "x87", "x87_state"),
        ("fault", ctypes.c_uint64 * 5),
    )


class Engine(LoopEngine):
    """One emulator for all cases. What the library keeps of one that could be seen by the next is taken back."""

    survives_fork = True

    loop = "unicorn_batch"

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        import unicorn
        from unicorn.unicorn_py3.unicorn import uclib

        self._unicorn, self._lib, self._machine = unicorn, uclib, MACHINES[isa.name]
        self._constants = vars(getattr(unicorn, self._machine.constants))
        self._code, self._data = mmap.mmap(-1, PAGE), mmap.mmap(-1, DATA_SIZE)
        # The library reads and writes each register where its pointer says, which is its place in a state.
        self._state = ctypes.create_string_buffer(isa.size + 8)
        start = ctypes.addressof(self._state)
        told = [register.name for register in isa.registers if not register.group]
        places = [start + isa.places[name].start for name in told]
        reset = self._machine.reset  # behind the state, and zero
        self._ids, self._places = self._pointers([*told, *reset], places + [start + isa.size] * len(reset))
        self._vectors = (ctypes.c_int32 * 256)(*(self._machine.vector(number) for number in range(256)))

        def function(name: str) -> int | None:
            return ctypes.cast(getattr(uclib, f"uc_{name}"), ctypes.c_void_p).value

        mask, value = isa.fixed.get(isa.flags, (0, 0))
        self.engine = _Struct(
            batch=self.batch(address(self._code), address(self._data)),
            restore=function("context_restore"),
            ctl=function("ctl"),
            start=function("emu_start"),
            write=function("reg_write_batch"),
            read=function("reg_read_batch"),
            read_one=function("reg_read"),
            stop=function("emu_stop"),
            ids=ctypes.addressof(self._ids),
            places=ctypes.addressof(self._places),
            state=start,
            number=len(self._ids),
            pc=self._register(self._machine.pc),
            drop=unicorn.UC_CTL_IO_WRITE << 30 | 2 << 26 | unicorn.UC_CTL_TB_REMOVE_CACHE,  # what uc_ctl is asked for
            access=self._machine.faults,
            illegal=self._machine.undefined,
            cut=self._machine.cut,
            vectors=ctypes.addressof(self._vectors),
            fixed=start + isa.places[isa.flags].start if isa.flags else None,
            fixed_mask=mask,
            fixed_value=value,
            mode=self._machine.start,
        )
        if "fcw" in isa.places:
            self._x87 = ctypes.create_string_buffer(_SLOT * len(_X87))
            slots = [ctypes.addressof(self._x87) + _SLOT * number for number in range(len(_X87))]
            self._x87_ids, self._x87_places = self._pointers(_X87, slots)
            self.engine.x87_ids = ctypes.addressof(self._x87_ids)
            self.engine.x87_places = ctypes.addressof(self._x87_places)
            self.engine.x87 = ctypes.addressof(self._x87)
            self.engine.x87_state = start + isa.places["fcw"].start
        if self._machine.dies_of_fetch:
            self._renew = self.callback(self._make)
            self.engine.renew = ctypes.cast(self._renew, ctypes.c_void_p).value
        self._make()

    def _register(self, name: str) -> int:
        """The library's number of a register."""
        return int(self._constants[self._machine.prefix + self._machine.names.get(name, name.upper())])

    def _pointers(self, names: Sequence[str], places: Sequence[int]) -> tuple[ctypes.Array[Any], ctypes.Array[Any]]:
        """The registers' numbers, and where the library is to read and write them."""
        return (
            (ctypes.c_int * len(names))(*map(self._register, names)),
            (ctypes.c_void_p * len(names))(*places),
        )

    def _make(self) -> None:
        """An emulator with the two windows, and our hooks."""
        unicorn, isa = self._unicorn, self.isa
        self._uc = unicorn.Uc(getattr(unicorn, self._machine.arch), getattr(unicorn, self._machine.mode))
        self._uc.mem_map_ptr(isa.code, PAGE, unicorn.UC_PROT_ALL, address(self._code))
        self._uc.mem_map_ptr(isa.data, DATA_SIZE, unicorn.UC_PROT_ALL, address(self._data))
        for name, bits in self._machine.enable:
            self._uc.reg_write(self._register(name), self._uc.reg_read(self._register(name)) | bits)
        self._fresh = self._uc.context_save()
        self.engine.uc, self.engine.fresh = self._uc._uch.value, self._fresh.context.value
        self._hooks = [ctypes.c_size_t(), ctypes.c_size_t()]
        for hook, kind, called in zip(
            self._hooks,
            (unicorn.UC_HOOK_MEM_INVALID, unicorn.UC_HOOK_INTR),
            (self.library.unicorn_fault, self.library.unicorn_interrupt),
            strict=True,
        ):
            everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
            pointer = ctypes.cast(called, ctypes.c_void_p)
            engine = ctypes.byref(self.engine)
            self._lib.uc_hook_add(self._uc._uch, ctypes.byref(hook), kind, pointer, engine, *everywhere)

    def stop(self) -> None:
        """See Engine."""
        # A case that ends meanwhile waits until we are done: the next one is not to be stopped in its place.
        batch = self.engine.batch
        batch.stopping = batch.stopped = 1
        self._lib.uc_emu_stop(self._uc._uch)
        batch.stopping = 0
