"""The fixtures: ``guest``, and ``boot`` for several guests or special ones."""

from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import pytest

from vmtest.errors import UsageError, VmtestError
from vmtest.pytest_plugin.settings import SETTINGS

if TYPE_CHECKING:
    from vmtest.guest import Guest
    from vmtest.model.spec import Said

__all__ = ["GUESTS", "TOLD", "Boot", "boot", "guest"]

GUESTS = pytest.StashKey[list["Guest"]]()
"""The guests that a test has booted, on its item: for its reports."""
TOLD = pytest.StashKey[bool]()
"""On an item whose failure's own text shows the guest's evidence."""


class Boot(Protocol):
    """What the ``boot`` fixture is."""

    def __call__(self, name: str | None = None, *, wait: bool = True, **said: Unpack[Said]) -> Guest:
        """Boot a guest; see vmtest.boot."""


@pytest.fixture
def boot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boot]:
    """Boot guests: ``boot()``, ``boot("linux-aarch64", memory=512)``; each is a vmtest.Guest and ends with the test.
    The name is an image's (vmtest list), or one of [tool.vmtest.guests]; by default it is that of --vm-guest. The
    keywords are vmtest.GuestSpec's fields. With ``wait=False`` the guest is handed over while it still boots.
    """
    settings = request.config.stash[SETTINGS]
    guests: list[Guest] = request.node.stash.setdefault(GUESTS, [])
    logs = _logs_directory(request, settings.artifacts, tmp_path_factory)

    def boot(name: str | None = None, *, wait: bool = True, **said: Unpack[Said]) -> Guest:
        __tracebackhide__ = True
        from vmtest.booting import boot as boot_it

        spec = settings.spec(name, said, where="boot()")
        started = boot_it(spec, wait=False, logs=logs(len(guests)))
        started.name = name or settings.name or settings.project.default
        guests.append(started)
        (started.logs / "command-line.txt").write_text(started.command_line + "\n", errors="surrogateescape")
        request.node.user_properties.append(("vm_accel", started.accel))
        request.node.user_properties.append(("vm_qemu", started.qemu_version))
        if wait:
            started.wait_up()
        return started

    try:
        yield boot
    finally:
        for started in guests:
            started.close()


@pytest.fixture
def guest(request: pytest.FixtureRequest, boot: Boot) -> Guest:
    """A fresh guest (vmtest.Guest), ended with the test: ``assert guest.run("uname -s").stdout == "Linux\\n"``.
    Which one: ``--vm-guest`` and the other ``--vm-`` options, ``@pytest.mark.guest("linux-aarch64", memory=512)``,
    or ``guest = "NAME"`` in [tool.vmtest]; else linux-x86_64.
    """
    marker = request.node.get_closest_marker("guest")
    args: tuple[Any, ...] = marker.args if marker else ()
    kwargs: dict[str, Any] = dict(marker.kwargs) if marker else {}
    try:
        if len(args) > 1 or (args and not isinstance(args[0], str)):
            raise UsageError(f"@pytest.mark.guest takes one name, not {args!r}")
        return boot(*args, **kwargs)
    except VmtestError as error:
        problem = f"{error.whose}: {error}"
        request.node.stash[TOLD] = True
    # Outside the except block: a traceback would show this fixture and our insides, of which the user has no part.
    pytest.fail(problem, pytrace=False)


def _logs_directory(
    request: pytest.FixtureRequest, artifacts: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Where the logs of the test's first, second, … guest go."""
    # Readable, and no two tests alike: "a b" and "a-b", or two long names with the same end.
    name = re.sub(r"[^\w.-]+", "-", request.node.nodeid).strip("-")[-100:]
    name += f"-{zlib.crc32(request.node.nodeid.encode(errors='surrogateescape')):08x}"

    def directory(number: int) -> Path:
        leaf = "guest" if number == 0 else f"guest-{number + 1}"
        if artifacts is None:
            return tmp_path_factory.mktemp(name[-40:], numbered=True) / leaf
        target = artifacts / name / leaf
        shutil.rmtree(target, ignore_errors=True)  # of an earlier run
        return target

    return directory
