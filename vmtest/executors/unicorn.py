"""The Unicorn library. This is the only file that imports it."""

from __future__ import annotations

import ctypes
import mmap
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from vmtest.executors.loops import Batch, LoopEngine, address, lacks_loops, pointers
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE, Isa

__all__ = ["Engine", "describe", "lacks"]

# What an access that fails and what is no instruction are, where the library says so by its error, and what its hook's
# numbers are. x86: Intel SDM, volume 3, table 6-1. On Arm the library tells QEMU's own (EXCP_UDEF, EXCP_SWI, EXCP_BKPT:
# QEMU 5.0, target/arm/cpu.h), which are here exception classes (ESR_EL1.EC: Arm ARM, DDI 0487, D17.2.37). On RISC-V
# they are the architecture's, and its error is for ebreak.
_NONE = -1
_VECTORS: dict[str, tuple[int, int, dict[int, int]]] = {
    "x86_64": (14, 6, {number: number for number in range(256)}),
    "aarch64": (_NONE, 0x00, {1: 0x00, 2: 0x15, 7: 0x3C}),
    "riscv64": (_NONE, _NONE, {number: number for number in range(256)}),
}
_ARCHES = {
    "x86_64": ("UC_ARCH_X86", ("UC_MODE_64",), "x86_const", "UC_X86_REG_", {"rflags": "EFLAGS"}, "RIP"),
    "aarch64": ("UC_ARCH_ARM64", ("UC_MODE_ARM",), "arm64_const", "UC_ARM64_REG_", {}, "PC"),
    "riscv64": ("UC_ARCH_RISCV", ("UC_MODE_RISCV64",), "riscv_const", "UC_RISCV_REG_", {}, "PC"),
}


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
        ("access", ctypes.c_int32),
        ("illegal", ctypes.c_int32),
        ("cut", ctypes.c_int32),
        ("vectors", ctypes.c_void_p),
        ("fixed", ctypes.c_void_p),
        ("fixed_mask", ctypes.c_uint64),
        ("fixed_value", ctypes.c_uint64),
        ("fault", ctypes.c_uint64 * 5),
    )


class Engine(LoopEngine):
    """One emulator for all cases. What the library keeps of one that could be seen by the next is taken back."""

    survives_fork = True

    loop = "unicorn_batch"

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        import unicorn
        from unicorn.unicorn_py3.unicorn import Uc, uclib

        arch, modes, constants, prefix, names, pc = _ARCHES[isa.name]
        const = getattr(unicorn, constants)
        self._uc = Uc(getattr(unicorn, arch), sum(getattr(unicorn, mode) for mode in modes))
        self._code, self._data = mmap.mmap(-1, PAGE), mmap.mmap(-1, DATA_SIZE)
        self._uc.mem_map_ptr(CODE, PAGE, unicorn.UC_PROT_ALL, address(self._code))
        self._uc.mem_map_ptr(DATA, DATA_SIZE, unicorn.UC_PROT_ALL, address(self._data))
        self._enable(unicorn)
        told = [register for register in isa.registers if not register.group]
        numbers = [getattr(const, prefix + names.get(r.name, r.name.upper())) for r in told]
        # The library reads and writes each register where its pointer says, which is its place in a state.
        self._state = ctypes.create_string_buffer(isa.size + 8)
        start = ctypes.addressof(self._state)
        places = [start + isa.places[register.name].start for register in told]
        if isa.name == "riscv64":  # the flags of floating point, which no context holds: behind the state, and zero
            numbers.append(const.UC_RISCV_REG_FFLAGS)
            places.append(start + isa.size)
        self._ids = (ctypes.c_int * len(numbers))(*numbers)
        self._places = (ctypes.c_void_p * len(numbers))(*places)
        self._fresh = self._uc.context_save()
        self._stop = uclib.uc_emu_stop

        mask, value = isa.fixed.get(isa.flags, (0, 0))
        access, illegal, vectors = _VECTORS[isa.name]
        self._vectors = (ctypes.c_int32 * 256)(*(vectors.get(number, _NONE) for number in range(256)))

        def function(name: str) -> int | None:
            return ctypes.cast(getattr(uclib, f"uc_{name}"), ctypes.c_void_p).value

        self.engine = _Struct(
            batch=self.batch(address(self._code), address(self._data)),
            uc=self._uc._uch.value,
            fresh=self._fresh.context.value,
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
            number=len(numbers),
            pc=getattr(const, prefix + pc),
            drop=unicorn.UC_CTL_IO_WRITE << 30 | 2 << 26 | unicorn.UC_CTL_TB_REMOVE_CACHE,  # what uc_ctl is asked for
            access=access,
            illegal=illegal,
            cut=12 if isa.name.startswith("x86") else 0,
            vectors=ctypes.addressof(self._vectors),
            fixed=start + isa.places[isa.flags].start if isa.flags else None,
            fixed_mask=mask,
            fixed_value=value,
        )
        self._hooks = [ctypes.c_size_t(), ctypes.c_size_t()]
        for hook, kind, name in zip(
            self._hooks,
            (unicorn.UC_HOOK_MEM_INVALID, unicorn.UC_HOOK_INTR),
            (self.library.unicorn_fault, self.library.unicorn_interrupt),
            strict=True,
        ):
            everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
            pointer = ctypes.cast(name, ctypes.c_void_p)
            uclib.uc_hook_add(self._uc._uch, ctypes.byref(hook), kind, pointer, ctypes.byref(self.engine), *everywhere)

    def _enable(self, unicorn: Any) -> None:
        """Floating point and vectors, which are off after a reset."""
        if self.isa.name == "aarch64":
            self._uc.reg_write(unicorn.arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20)
        elif self.isa.name == "riscv64":
            status = self._uc.reg_read(unicorn.riscv_const.UC_RISCV_REG_MSTATUS)
            self._uc.reg_write(unicorn.riscv_const.UC_RISCV_REG_MSTATUS, status | 3 << 13)

    def stop(self) -> None:
        """See Engine."""
        # Before and after, since the case that it is for may end at any moment.
        self.engine.batch.stopped = 1
        self._stop(self._uc._uch)
        self.engine.batch.stopped = 1
