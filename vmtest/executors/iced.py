"""The iced-x86 library, which decodes: as vmtest.forms asks it."""

from __future__ import annotations

from importlib.metadata import version

from vmtest.executors.decoders import Decoder
from vmtest.forms import BAD, forms
from vmtest.model.isa import Isa

__all__ = ["Engine", "describe", "lacks"]


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    return ""


def describe(isa: Isa, argument: str = "") -> str:
    """The library's version."""
    return f"iced-x86 {version('iced-x86')}"


class Engine(Decoder):
    """See Decoder."""

    def length(self, code: bytes, address: int) -> int:
        """See Decoder."""
        first = forms(self.isa.name).decode(code, address)[0]
        return 0 if first.form.startswith(BAD) else first.size
