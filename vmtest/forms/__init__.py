"""What is known of each instruction set: its forms, how they are encoded, what the manual says of them. No I/O.

A form is what a manual gives an entry of its own, such as ``Blsi_r64_rm64`` or ``add_shifted_x``. A newcomer is a file
with a subclass of Forms, and a row here.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from vmtest.forms.base import Draft, Forms, Instruction
from vmtest.model.isa import Isa

__all__ = ["FORMS", "Draft", "Forms", "Instruction", "forms"]

FORMS = {"x86_64": "vmtest.forms.x86"}
"""By instruction set, the module that has its class ``Table``."""


@cache
def forms(isa: Isa) -> Forms:
    """What is known of an instruction set; where there is no table that is nothing."""
    if isa.name not in FORMS:
        return Forms(isa)
    table: Forms = import_module(FORMS[isa.name]).Table(isa)
    return table
