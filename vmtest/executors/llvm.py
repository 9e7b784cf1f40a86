"""LLVM's library, which decodes: the newest that is installed, by its C interface (llvm-c/Disassembler.h)."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path

from vmtest.executors.decoders import Decoder
from vmtest.model.isa import Isa

__all__ = ["Engine", "describe", "lacks"]

# By instruction set: the target's name in the library's functions, the triple, and what is turned on.
_TARGETS: dict[str, tuple[str, str, str]] = {
    "x86_64": ("X86", "x86_64", ""),
    "x86_32": ("X86", "i386", ""),
    "x86_16": ("X86", "i386-unknown-linux-code16", ""),
    "aarch64": ("AArch64", "aarch64", "+v8.7a,+crypto,+sve2"),
    "arm": ("ARM", "armv7a", "+neon,+vfp4"),
    "thumb": ("ARM", "thumbv7a", "+neon,+vfp4"),
    "riscv64": ("RISCV", "riscv64", "+m,+a,+f,+d,+c"),
    "riscv32": ("RISCV", "riscv32", "+m,+a,+f,+d,+c"),
    "mips32": ("Mips", "mipsel", "+mips32r2"),
}
_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/lib/*", "/usr/lib/llvm*/lib", "/usr/lib/llvm/*/lib64")
_VERSION = re.compile(r"libLLVM(?:-|\.so\.)(\d+)")
# To it an x86 prefix that changes nothing is an instruction of its own, which the one behind it is then without.
_PREFIXES = frozenset("lock rep repne repe repz repnz data16 data32 addr32 addr16 cs ds es fs gs ss rex64".split())  # noqa: SIM905


@cache
def _library() -> tuple[int, Path] | None:
    """The newest version that is installed, and where it is."""
    found = [
        (int(match[1]), path)
        for folder in _FOLDERS
        for path in Path("/").glob(f"{folder[1:]}/libLLVM*.so*")
        if (match := _VERSION.match(path.name))
    ]
    return max(found, default=None)


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    return "" if _library() else "LLVM's library is missing (apt install llvm, which has libLLVM-14.so or a newer one)"


def describe(isa: Isa, argument: str = "") -> str:
    """The library's version."""
    found = _library()
    return f"LLVM {found[0]}" if found else ""


class Engine(Decoder):
    """See Decoder."""

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        found = _library()
        assert found is not None
        library = ctypes.CDLL(str(found[1]))
        target, triple, features = _TARGETS[isa.name]
        for part in ("TargetInfo", "TargetMC", "Disassembler"):
            getattr(library, f"LLVMInitialize{target}{part}")()
        create = library.LLVMCreateDisasmCPUFeatures
        create.restype = ctypes.c_void_p
        create.argtypes = [*[ctypes.c_char_p] * 3, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        self._decoder = create(triple.encode(), b"", features.encode(), None, 0, None, None)
        if not self._decoder:
            raise OSError(f"{found[1]} knows no {triple}")
        self._decode = library.LLVMDisasmInstruction
        self._decode.restype = ctypes.c_size_t
        self._decode.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t,
        ]  # fmt: skip
        self._text = ctypes.create_string_buffer(256)

    def length(self, code: bytes, address: int) -> int:
        """See Decoder."""
        at = 0
        while at < len(code):
            length = int(self._decode(self._decoder, code[at:], len(code) - at, address + at, self._text, 256))
            if not length:
                return 0
            at += length
            if self._text.value.decode().strip() not in _PREFIXES:
                return at
        return 0
