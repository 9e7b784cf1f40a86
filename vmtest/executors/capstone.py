"""The Capstone library, which decodes. This is the only file that imports it."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

from vmtest.executors.decoders import Decoder
from vmtest.model.isa import Isa

__all__ = ["Engine", "describe", "lacks"]

_MODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "x86_64": ("CS_ARCH_X86", ("CS_MODE_64",)),
    "x86_32": ("CS_ARCH_X86", ("CS_MODE_32",)),
    "x86_16": ("CS_ARCH_X86", ("CS_MODE_16",)),
    "aarch64": ("CS_ARCH_ARM64", ("CS_MODE_ARM",)),
    "arm": ("CS_ARCH_ARM", ("CS_MODE_ARM",)),
    "thumb": ("CS_ARCH_ARM", ("CS_MODE_THUMB",)),
    "riscv64": ("CS_ARCH_RISCV", ("CS_MODE_RISCV64", "CS_MODE_RISCVC")),
    "riscv32": ("CS_ARCH_RISCV", ("CS_MODE_RISCV32", "CS_MODE_RISCVC")),
    "mips32": ("CS_ARCH_MIPS", ("CS_MODE_MIPS32",)),
}


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    return "" if find_spec("capstone") else "the package capstone is missing (pip install 'pytest-vmtest[decoders]')"


def describe(isa: Isa, argument: str = "") -> str:
    """The library's version."""
    return f"Capstone {version('capstone')}"


class Engine(Decoder):
    """See Decoder."""

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        import capstone

        arch, modes = _MODES[isa.name]
        self._decoder = capstone.Cs(getattr(capstone, arch), sum(getattr(capstone, mode) for mode in modes))

    def length(self, code: bytes, address: int) -> int:
        """See Decoder."""
        return next((size for _, size, _, _ in self._decoder.disasm_lite(code, address, 1)), 0)
