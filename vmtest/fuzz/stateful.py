"""A device as a state machine of hypothesis, with invariants of the user's own.

>>> class Nic(DeviceMachine):
...     device = "e1000e"
...     @invariant()
...     def is_not_in_reset(self): assert not self.read(0x0000) & 1 << 26
>>> TestNic = Nic.TestCase
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from vmtest.devices.access import Access, In, Out, Read, Write
from vmtest.devices.layout import Area
from vmtest.devices.session import Done, Session
from vmtest.devices.target import Target, target
from vmtest.errors import QemuDied, UsageError
from vmtest.fuzz.strategies import accesses
from vmtest.host import Qemu

__all__ = ["DeviceMachine"]


class DeviceMachine(RuleBasedStateMachine):
    """Every example has a QEMU that was just started, with the device mapped. Its steps are sequences of operations on
    the device's registers and memory, as ``vmtest fuzz device`` draws them; rules and invariants of a subclass come
    beside these. What ends QEMU is raised as QemuDied, and made small by hypothesis.

    ``device`` is a type, with properties as -device takes them, or a machine type; ``binary``, ``machine`` and
    ``arguments`` are as of ``target``.
    """

    device: ClassVar[str] = ""
    binary: ClassVar[str] = ""
    machine: ClassVar[str] = ""
    arguments: ClassVar[Sequence[str]] = ()

    def __init__(self) -> None:
        super().__init__()
        if not self.device:
            raise UsageError(f"{type(self).__name__} names no device", hint='device = "e1000e", for example')
        self.target, self.qemu = _target(self.device, self.binary, self.machine, tuple(self.arguments))
        self.session = Session(self.target.board, self.qemu)
        try:
            self.run(self.target.begin)
        except BaseException:  # there is no teardown of what was not made
            self.session.close()
            raise

    def run(self, accesses: Sequence[Access]) -> Done:
        """Do operations, each after the last one's answer. Raises QemuDied where QEMU ends by them."""
        done = self.session.run(accesses, lockstep=True)
        if done.crash:
            raise QemuDied(
                f"{self.device} has ended QEMU: {done.crash.kind}: {done.crash.signature}",
                exit_code=self.session.process.returncode or 0,
                evidence=self.session.evidence(),
            )
        return done

    def read(self, offset: int, size: int = 4, *, area: str = "") -> int:
        """A register: of the first area, or the first of that name. Raises UsageError where there is none; QemuDied."""
        found = self._area(area)
        kind = In if found.is_port else Read
        (value,) = self.run((kind(found.address + offset, size),)).replies
        assert isinstance(value, int)
        return value

    def write(self, offset: int, value: int, size: int = 4, *, area: str = "") -> None:
        """Write a register. Raises as ``read``."""
        found = self._area(area)
        kind = Out if found.is_port else Write
        self.run((kind(found.address + offset, value, size),))

    def _area(self, name: str) -> Area:
        for area in self.target.areas:
            if name in ("", area.name):
                return area
        names = ", ".join(area.name for area in self.target.areas)
        raise UsageError(f"{self.device} has no registers {name!r}", hint=f"it has: {names}")

    @rule(data=st.data())
    def operate(self, data: st.DataObject) -> None:
        """A sequence on the device."""
        self.run(data.draw(accesses(self.target), label="operations"))

    def teardown(self) -> None:
        """End QEMU."""
        self.session.close()


@cache
def _target(device: str, binary: str, machine: str, arguments: tuple[str, ...]) -> tuple[Target, Qemu]:
    return target(device, binary=binary, machine=machine, arguments=arguments)
