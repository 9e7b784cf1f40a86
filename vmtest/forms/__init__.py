"""What is known of each instruction set: its forms, how they are encoded, what the manual says of them. No I/O.

A form is what a manual gives an entry of its own, such as ``Blsi_r64_rm64`` or ``add_shifted_x``. A newcomer is a file
with a subclass of Forms, and a row here.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from vmtest.forms.base import BAD, Draft, Forms, Instruction
from vmtest.model.isa import isa

__all__ = ["BAD", "FORMS", "Draft", "Forms", "Instruction", "forms"]

FORMS = {
    "aarch64": "vmtest.forms.aarch64",
    "riscv64": "vmtest.forms.riscv64",
    "x86_16": "vmtest.forms.x86",
    "x86_32": "vmtest.forms.x86",
    "x86_64": "vmtest.forms.x86",
}
"""By instruction set, the module that has its class ``Table``."""


@cache
def forms(name: str) -> Forms:
    """What is known of the instruction set of that name; where there is no table that is nothing."""
    row = isa(name)
    if name not in FORMS:
        return Forms(row)
    table: Forms = import_module(FORMS[name]).Table(row)
    return table
