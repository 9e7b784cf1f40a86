"""The CPU itself: a program of ours (images/_executors/native.c) runs the cases in its own process, where nothing is
mapped but itself and the case's two windows, and lets no system call of theirs through.

What the code may do is compute, fault, or loop until it is stopped. (And jump to the vsyscall page, where the host has
that: it is refused there like any other call.)
"""

from __future__ import annotations

from pathlib import Path

from vmtest.executors.programs import lacks_program
from vmtest.executors.programs import program as path
from vmtest.host import host_arch
from vmtest.host.cpu import model
from vmtest.model.isa import Isa

__all__ = ["describe", "lacks", "program"]


def lacks(isa: Isa) -> str:
    """Why it cannot be had here, "" where it can."""
    if host_arch() != isa.name:
        return f"the host's CPU is {host_arch()} and does not run {isa.name}"
    return lacks_program("native", isa.name)


def describe(isa: Isa) -> str:
    """Which CPU this is."""
    return model()


def program(isa: Isa) -> Path:
    """What is run as its worker."""
    return path("native", isa.name)
