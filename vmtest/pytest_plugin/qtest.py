"""The fixture ``qtest``: a machine without a running CPU, whose devices a test programs by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from vmtest.errors import UsageError

if TYPE_CHECKING:
    from vmtest.devices.bench import Bench

__all__ = ["MARKER", "qtest"]

MARKER = """qtest(*arguments, binary=..., machine=..., memory=..., accel=...): the machine of the `qtest` fixture: \
QEMU's own arguments, and vmtest.devices.bench.Bench's."""


_TAKEN = {"binary": str, "machine": str, "accel": str, "memory": int}


@pytest.fixture
def qtest(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A machine without a running CPU: ``nic = qtest.pci("e1000e"); nic.enable(); nic.bar(0).readl(8)``. It starts when
    it is first used, with the devices that were named until then; see vmtest.devices.bench.Bench. That QEMU ends by the
    last operation, which nobody has seen, is an error as well. Its machine is q35, or that of
    ``@pytest.mark.qtest(binary="qemu-system-aarch64", machine="virt")``.
    """
    from vmtest.devices.bench import Bench

    marker = request.node.get_closest_marker("qtest")
    given = dict(marker.kwargs) if marker else {}
    if wrong := [name for name, value in given.items() if not isinstance(value, _TAKEN.get(name, ()))]:
        raise UsageError(
            f"@pytest.mark.qtest: {wrong[0]}={given[wrong[0]]!r}",
            hint="it takes QEMU's arguments, and binary, machine, accel, which are strings, and memory in MiB",
        )
    bench = Bench(arguments=marker.args if marker else (), **given)
    with bench:
        yield bench
        if bench.is_running:
            bench.session.check()
            request.node.user_properties.append(("vm_qtest", bench.session.accel))
