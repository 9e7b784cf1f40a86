"""A machine by QEMU's own arguments, and all of the command line that it is worked on with."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from vmtest.errors import UsageError
from vmtest.host import Qemu

__all__ = ["Board"]

HALTED = b"\xf4" * (64 << 10)
"""Firmware of an x86 machine whose CPU halts at its first instruction, with interrupts off: it costs nothing, and the
machine is running, so that timers run."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """A machine by QEMU's own ``arguments``, such as ``("-M", "q35", "-device", "edu")``.

    ``accel`` is "qtest" where the build has that accelerator (time passes as it is told to), else "tcg" or "kvm".
    """

    arguments: tuple[str, ...]
    accel: str = ""

    @classmethod
    def parse(cls, text: str, *, accel: str = "") -> Self:
        """Of a line for a shell. Raises UsageError for one that a shell would not take."""
        try:
            return cls(arguments=tuple(shlex.split(text)), accel=accel)
        except ValueError as error:
            raise UsageError(f"{text!r} is no command line: {error}") from None

    def accel_on(self, qemu: Qemu) -> str:
        """The accelerator that it has there."""
        return self.accel or ("qtest" if "qtest" in qemu.accels else "tcg")

    def is_halted_on(self, qemu: Qemu) -> bool:
        """Whether it runs, with a CPU that does nothing; else it is stopped, and so are its timers."""
        return self.accel_on(qemu) == "qtest" or qemu.arch in ("x86_64", "i386")

    def command(
        self, qemu: Qemu, ends: Mapping[str, int], theirs: ExitStack
    ) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """QEMU's command line, with the ``ends`` of its sockets "qtest" and "qmp", and descriptors that it is to
        inherit besides, which ``theirs`` closes here.
        """
        accel, inherited = self.accel_on(qemu), []
        words = [str(qemu.path), *self.arguments, "-display", "none", "-accel", accel]
        if not self.is_halted_on(qemu):
            words += ["-S"]
        elif accel != "qtest":
            firmware = os.memfd_create("halted", os.MFD_CLOEXEC)
            theirs.callback(os.close, firmware)
            os.write(firmware, HALTED)
            inherited.append(firmware)
            words += ["-bios", f"/proc/self/fd/{firmware}"]
        words += ["-chardev", f"socket,id=vmtest-qtest,fd={ends['qtest']}"]
        words += ["-object", "qtest,id=vmtest,chardev=vmtest-qtest,log=none"]
        words += ["-no-shutdown", "-action", "panic=none"]
        words += ["-chardev", f"socket,id=vmtest-qmp,fd={ends['qmp']}", "-mon", "chardev=vmtest-qmp,mode=control"]
        return tuple(words), tuple(inherited)
