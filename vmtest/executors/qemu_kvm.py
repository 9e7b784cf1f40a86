"""The executor ``qemu`` with KVM instead of TCG, so that the two can be compared: the same runner, the same cases.

Where KVM runs ring 0 in software (CONFIG_KVM_PVM) ring 3 is the CPU's all the same, and so is what a case does. But
what has #GP goes through KVM's emulator there, and is #UD where that does not know it (INT, SSE).
"""

from __future__ import annotations

import os

from vmtest.executors import qemu
from vmtest.host import host_arch
from vmtest.host.cpu import model
from vmtest.host.devices import device_state
from vmtest.model.isa import Isa

__all__ = ["Engine", "describe", "lacks"]


def lacks(isa: Isa, argument: str = "") -> str:
    """Why it cannot be had here, "" where it can."""
    if host_arch() != isa.name:
        return f"the host's CPU is {host_arch()}, and KVM runs nothing else"
    state = device_state("/dev/kvm")
    return f"{state.why} ({state.hint})" if state.why else qemu.lacks(isa, argument)


def describe(isa: Isa, argument: str = "") -> str:
    """QEMU's version, whose KVM it is, and on which CPU."""
    version = ".".join(map(str, qemu.find(isa, argument).version))
    return f"QEMU {version}, KVM of Linux {os.uname().release}, {model()}"


class Engine(qemu.Engine):
    """See qemu.Engine."""

    accelerator = "kvm"
    cpu = "host,-arch-capabilities"  # QEMU 7.2 cannot set that feature's register on each host
