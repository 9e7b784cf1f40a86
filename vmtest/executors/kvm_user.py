"""/dev/kvm by itself, and the case in ring 3: see executors/kvm.py."""

from __future__ import annotations

from vmtest.executors import kvm
from vmtest.executors.kvm import lacks
from vmtest.model.case import Case
from vmtest.model.isa import Isa

__all__ = ["Engine", "describe", "lacks"]

_UNDEFINED = 6
_INT = b"\xcd\x21"


def describe(isa: Isa, argument: str = "") -> str:
    """See executors/kvm.py."""
    return kvm.told("kvm-user", isa, Engine.ring)


class Engine(kvm.Engine):
    """Its windows are the user's pages and all else the system's."""

    ring = 3

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        self._tells_undefined = True
        # The manual says #GP (Intel SDM, volume 3, section 6.12.1.2): a KVM that says #UD has asked its emulator.
        self._tells_undefined = self.run(Case(isa=isa, code=_INT, state=isa.default)).vector != _UNDEFINED

    def _tells(self, vector: int, end: int) -> bool:
        """Whether an exception is the case's. Of what KVM's emulator does not know it says #UD in ring 3 (x86.c,
        handle_emulation_failure), and with CONFIG_PVM that emulator is asked also where the CPU has said #GP.
        """
        return super()._tells(vector, end) and (vector != _UNDEFINED or self._tells_undefined)
