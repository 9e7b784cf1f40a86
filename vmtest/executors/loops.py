"""Engines whose loop over the cases is C (images/_executors/loops.c), since what Python does for one takes longer than
the case itself: Python sets all up, and hands it over in a struct.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from vmtest.executors import base
from vmtest.executors.programs import lacks_program, program
from vmtest.host import host_arch
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import DATA_SIZE, PAGE, Isa

__all__ = ["Batch", "LoopEngine", "address", "lacks_loops", "pointers"]

_OUTCOME_MOST = 64
"""Bytes of an outcome beside its state and the window."""


class Batch(ctypes.Structure):
    """``struct batch``."""

    _fields_ = (
        ("progress", ctypes.c_void_p),
        ("code", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("before", ctypes.c_void_p),
        ("end", ctypes.c_ulong),
        ("data_at", ctypes.c_ulong),
        ("size", ctypes.c_ulong),
        ("stopped", ctypes.c_uint32),
        ("stopping", ctypes.c_uint32),
    )


def pointers(*names: str) -> list[tuple[str, type[ctypes.c_void_p]]]:
    """Fields of a struct that are pointers."""
    return [(name, ctypes.c_void_p) for name in names]


def address(memory: mmap.mmap, at: int = 0) -> int:
    """Where it is; as long as it is there."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory)) + at


def lacks_loops() -> str:
    """Why there are no loops here, "" where there are."""
    return lacks_program("loops", host_arch())


class LoopEngine(base.Engine):
    """A subclass fills in ``self.engine``, a Structure that begins with what ``batch()`` gives it, and says by ``loop``
    the name of the function that takes it.
    """

    engine: ctypes.Structure
    loop: str

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        self.library = ctypes.CDLL(str(program("loops", host_arch())))
        self._loop = getattr(self.library, self.loop)
        self._loop.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_void_p]
        self._loop.restype = ctypes.c_ulong
        self._before, self._nowhere, self._outcomes = (mmap.mmap(-1, size) for size in (DATA_SIZE, PAGE, PAGE))

    def batch(self, code: int, data: int) -> Batch:
        """What its struct begins with, the windows being there."""
        isa = self.isa
        return Batch(None, code, data, address(self._before), isa.code + PAGE, isa.data, isa.size, 0, 0)

    def callback(self, make: Callable[[], object]) -> Any:
        """For C to call: what is to be made anew between two cases. Where it cannot be the worker ends, and no case of
        it: Python would go on with the old one.
        """

        def called() -> None:
            try:
                make()
            except BaseException:
                traceback.print_exc()
                self._progress[: base.RUNS.size] = bytes(base.RUNS.size)
                sys.stderr.flush()
                os._exit(1)

        return ctypes.CFUNCTYPE(None)(called)

    def run(self, case: Case) -> Outcome:
        """See Engine."""
        return Outcome.unpack(self.isa, self.run_packed(case.pack(), 1, self._nowhere), 1)[0]

    def run_packed(self, data: bytes, number: int, progress: mmap.mmap) -> bytes:
        """See Engine."""
        if len(self._outcomes) < (room := number * (self.isa.size + DATA_SIZE + _OUTCOME_MOST)):
            self._outcomes = mmap.mmap(-1, room)
        self._progress = progress
        self.engine.batch.progress = address(progress)
        size = self._loop(ctypes.byref(self.engine), data, number, address(self._outcomes))
        return self._outcomes[:size]
