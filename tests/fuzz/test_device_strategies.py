"""Devices under hypothesis, on a real QEMU."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from vmtest.devices.access import Access, Write
from vmtest.devices.session import Session
from vmtest.devices.target import target
from vmtest.errors import QemuDied, UsageError
from vmtest.fuzz.stateful import DeviceMachine
from vmtest.fuzz.strategies import accesses

QUIET = settings(
    max_examples=8,
    stateful_step_count=4,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_sequences_shrink() -> None:
    """A sequence is drawn of what is known of the device, runs on it, and shrinks to the operations that count."""
    found, qemu = target("ide-hd")
    issue = found.areas[0].address + 0x100 + 0x38

    def is_issued(several: list[Access]) -> bool:
        return any(isinstance(access, Write) and access.address == issue and access.value & 1 for access in several)

    small = find(accesses(found), is_issued, settings=settings(QUIET, max_examples=5000))
    assert len(small) < 25
    with Session(found.board, qemu) as session:
        assert session.run([*found.begin, *small], lockstep=True).crash is None


class _Nic(DeviceMachine):
    device = "e1000"

    @rule()
    def reset_it(self) -> None:
        self.write(0x0000, 1 << 26)

    @invariant()
    def reset_is_over(self) -> None:
        assert self.read(0x0000) & 1 << 26 == 0


def test_invariants_hold() -> None:
    """A state machine's own rules and invariants come beside the operations that are drawn."""
    run_state_machine_as_test(_Nic, settings=QUIET)


class _Broken(DeviceMachine):
    device = "e1000"

    @invariant()
    def receiver_stays_off(self) -> None:
        assert self.read(0x0100, area="e1000-mmio") & 2 == 0


def test_invariants_fail() -> None:
    """One that does not hold is found, and told with the operations that led there."""
    once = settings(QUIET, max_examples=50, phases=[Phase.generate])
    with pytest.raises(AssertionError) as raised:
        run_state_machine_as_test(_Broken, settings=once)
    said = "\n".join(getattr(raised.value, "__notes__", []))
    assert "operations" in said
    assert "Write" in said


class _Dies(DeviceMachine):
    device = "virtio-mouse-pci,vectors=19923041"
    machine = "pc"

    @rule()
    def use_a_vector(self) -> None:
        self.write(0x10, 0x61, 2, area="virtio-pci-common-virtio-input")


def test_the_end_of_qemu() -> None:
    """What ends QEMU is an error with its words; registers that a device has not are the user's mistake."""
    with pytest.raises(QemuDied, match="msix_vector_use"):
        run_state_machine_as_test(_Dies, settings=QUIET)
    machine = _Nic()
    with pytest.raises(UsageError, match="no registers 'e1000'"):
        machine.read(0, area="e1000")
    machine.teardown()
