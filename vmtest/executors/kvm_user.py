"""/dev/kvm by itself, and the case in ring 3: see executors/kvm.py."""

from __future__ import annotations

from vmtest.executors import kvm
from vmtest.executors.kvm import lacks
from vmtest.model.case import Case
from vmtest.model.isa import Isa

__all__ = ["Engine", "describe", "lacks"]

_UNDEFINED = 6
_INT = b"\xcd\x21"  # INT 21h


def describe(isa: Isa, argument: str = "") -> str:
    """See executors/kvm.py."""
    return kvm.told("kvm-user", isa, Engine.ring)


class Engine(kvm.Engine):
    """Its windows are the user's pages and all else the system's."""

    ring = 3

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        # The manual says #GP (Intel SDM, volume 3, section 6.12.1.2). A KVM that says #UD has asked its emulator, which
        # does so of all that it does not know in ring 3 (x86.c, handle_emulation_failure); with CONFIG_PVM also of what
        # the CPU has run and refused. Its #UD says nothing then.
        if self.run(Case(isa=isa, code=_INT, state=isa.default)).vector == _UNDEFINED:
            self.engine.hides = _UNDEFINED
