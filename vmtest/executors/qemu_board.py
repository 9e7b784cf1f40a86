"""What the machines that our runners run on have in common: memory that we share with them, and slots for cases in it.

A runner (images/_executors) takes a batch's cases from their slots, one after the other, and leaves each one's outcome
in its slot.
"""

from __future__ import annotations

import mmap
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence

from vmtest.errors import HostError
from vmtest.executors.programs import program
from vmtest.model.case import Case, Outcome, Patch, differences
from vmtest.model.isa import CODE, DATA_SIZE, PAGE, Isa

__all__ = ["SLOTS", "Board"]

SLOTS = 512
"""The most cases of a batch."""
_CODE, _HEAD, _WINDOW, _SLOT = 0x600, 0x640, PAGE, PAGE + DATA_SIZE
"""In a slot: the last 64 bytes of the page of code, what _GIVEN and _TOLD say, the data window."""
_GIVEN = struct.Struct("<QQ")  # which pages of the window are given (others are zeros), where the case begins
_TOLD = struct.Struct("<QQQQQ")  # which pages have been written to; end, vector, error code, address
_CODE_MOST = _HEAD - _CODE
_BATCH = struct.Struct("<QQ")  # how many cases, and which of them runs

_TIMEOUT, _UNSUPPORTED = 0x100, 0x101
"""What a runner tells as the vector where it is none."""


class Board(ABC):
    """One machine, which a subclass knows, with its instruction set's registers.

    ``machine`` and ``cpu`` are QEMU's names, with options; ``arguments`` are further ones, ``firmware`` is what -bios
    is given, where it is. ``state`` is the size of a state that the runner knows. ``size`` is of the machine's RAM, in
    which ``image``, ``control`` and ``slots`` are places: the runner, where it tells how far it has come, the cases.
    ``fetch_faults`` are the vectors of a fetch from where nothing is.
    """

    machine: str
    cpu: str
    arguments: tuple[str, ...] = ()
    firmware = b""
    state: int
    size: int
    image: int
    control: int
    slots: int
    fetch_faults: tuple[int, ...]

    def __init__(self, isa: Isa, memory: mmap.mmap) -> None:
        self.isa = isa
        self.memory = memory
        assert (isa.size, isa.code_most) == (self.state, _CODE_MOST), "the runner does not know these registers"

    @abstractmethod
    def set_up(self) -> None:
        """Put into memory the tables that the runner is to find, all else being zeros."""

    def set_registers(self, at: int, state: bytes) -> None:
        """Write a state into the slot there, in the form that the runner wants: usually as it is."""
        self.memory[at : at + len(state)] = state

    def registers(self, at: int) -> bytes:
        """The state that the slot there has."""
        return self.memory[at : at + self.isa.size]

    @abstractmethod
    def exception(self, vector: int, error: int, address: int) -> tuple[int | None, int | None, int | None]:
        """Vector, error code and address, each None where the exception has none."""

    @abstractmethod
    def is_beyond(self, vector: int, end: int) -> bool:
        """Whether the exception is what an executor does not run, such as a system call on x86."""

    def load(self) -> None:
        """Put into memory what the machine is to find when it starts."""
        code = _runner(self.isa)
        self.memory[self.image : self.slots] = code.ljust(self.slots - self.image, b"\0")
        self.set_up()

    def give(self, cases: Sequence[Case]) -> None:
        """Put a batch into the slots."""
        assert len(cases) <= SLOTS
        memory = self.memory
        for number, case in enumerate(cases):
            at = self.slots + _SLOT * number
            self.set_registers(at, case.state)
            pages = 0
            for place, data in case.memory:
                if data:
                    pages |= 1 << place // PAGE | 1 << (place + len(data) - 1) // PAGE
            if pages:
                memory[at + _WINDOW : at + _WINDOW + DATA_SIZE] = case.window
            code = case.code.rjust(_CODE_MOST, b"\0")
            memory[at + _CODE : at + _HEAD + _GIVEN.size] = code + _GIVEN.pack(pages, case.start)
        _BATCH.pack_into(memory, self.control, len(cases), 0)

    def progress(self) -> int:
        """Which case of the batch runs now; their number when all have run."""
        return int(_BATCH.unpack_from(self.memory, self.control)[1])

    def outcome(self, number: int, case: Case) -> Outcome:
        """What a case's slot tells after it has run."""
        at = self.slots + _SLOT * number
        pages, end, vector, error, address = _TOLD.unpack_from(self.memory, at + _HEAD)
        if vector == _TIMEOUT:
            return Outcome("timeout")
        if vector == _UNSUPPORTED or self.is_beyond(vector, end):
            return Outcome("unsupported")
        is_end = end == address == CODE + PAGE and vector in self.fetch_faults
        told = (None, None, None) if is_end else self.exception(vector, error, address)
        writes: tuple[Patch, ...] = ()
        if pages:
            before = case.window
            after = b"".join(
                self.memory[at + _WINDOW + place : at + _WINDOW + place + PAGE]
                if pages >> place // PAGE & 1
                else before[place : place + PAGE]
                for place in range(0, DATA_SIZE, PAGE)
            )
            writes = differences(before, after)
        return Outcome("ok" if is_end else "exception", self.registers(at), writes, end, *told)


def _runner(isa: Isa) -> bytes:
    """The runner's code, to be put into memory: all that can be executed of its ELF file."""
    data = program(f"runner_{isa.name}", isa.name).read_bytes()
    # Elf64_Ehdr and Elf64_Phdr of elf(5).
    start, size, number = struct.unpack_from("<32xQ14xHH", data[:58])
    for at in range(start, start + size * number, size):
        kind, flags, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind == 1 and flags & 1:  # PT_LOAD, PF_X
            return data[offset : offset + length]
    raise HostError(f"the runner for {isa.name} has no code")
