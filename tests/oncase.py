"""Executors for tests: what this host can have and has not is a failure, and only what it cannot have a skip."""

from __future__ import annotations

import os
import platform

import pytest

from vmtest.errors import HostError
from vmtest.executors import Executor, executor
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import isa


def needs(name: str) -> None:
    """Skip the test where this host cannot have that executor."""
    if why := _beyond_us(name):
        pytest.skip(why)


def _beyond_us(name: str) -> str:
    """Why this host cannot have that executor; "" where it can: the set-up installs all else."""
    if "kvm" in name and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is missing, or not ours to open"
    if name in ("native", "kvm", "kvm-user", "qemu-kvm") and platform.machine() != "x86_64":
        return f"this host's CPU is {platform.machine()}, and no x86_64"
    return ""


def having(name: str, isa_name: str = "x86_64") -> Executor:
    """The executor; the test is skipped where the host has no KVM or another CPU."""
    try:
        return executor(name, isa(isa_name))
    except HostError:
        needs(name)
        raise


def run(name: str, *lines: str) -> list[Outcome]:
    """What the executor says of these cases, all of one instruction set."""
    cases = [Case.parse(line) for line in lines]
    with having(name, cases[0].isa.name) as found:
        return found.run(cases)
