"""The fixtures: ``guest``, ``boot`` for several guests or special ones, and what prepares a template of one's own."""

from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import pytest

from vmtest.errors import UsageError, VmtestError
from vmtest.model.spec import GuestSpec
from vmtest.pytest_plugin.pooling import pool_of
from vmtest.pytest_plugin.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from vmtest.guest import Guest
    from vmtest.model.spec import Said
    from vmtest.snapshots import Snapshot

__all__ = ["GUESTS", "TOLD", "Boot", "boot", "guest", "session_boot", "template"]

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
    properties = request.node.user_properties

    def started(guest: Guest) -> None:
        properties.append(("vm_accel", guest.accel))
        if guest.origin:
            properties.append(("vm_clone", guest.origin))
        properties.append(("vm_qemu", guest.qemu_version))

    pool = pool_of(request.config)
    try:
        yield _booter(settings, guests, logs, started)
    finally:
        for guest in guests:
            guest.close()
        if pool is not None and pool.shortage:
            properties.append(("vm_note", pool.shortage))


@pytest.fixture(scope="session")
def session_boot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boot]:
    """As ``boot``, for fixtures of session scope: each guest ends with the session."""
    guests: list[Guest] = []
    try:
        yield _booter(
            request.config.stash[SETTINGS], guests, lambda number: tmp_path_factory.mktemp("session-guest"), _nothing
        )
    finally:
        for guest in guests:
            guest.close()


@pytest.fixture(scope="session")
def template(request: pytest.FixtureRequest) -> Iterator[Callable[[Guest], Snapshot]]:
    """``template(guest)``: a guest that was prepared (packages installed, logged in) becomes the parent of every clone
    that follows: each later ``guest`` of the same machine begins in its present state. For a fixture of session scope:

        @pytest.fixture(scope="session", autouse=True)
        def prepared(session_boot, template):
            guest = session_boot()
            guest.push("selftests", "/opt")
            template(guest)
            guest.close()
    """
    from vmtest.booting import forget_templates, make_template
    from vmtest.workdir import Workdir

    directories: list[Workdir] = []

    def make(guest: Guest) -> Snapshot:
        if request.config.stash[SETTINGS].spec(None, {}, where="the command line").cold:
            raise UsageError(
                "template(guest) needs clones, and --vm-cold boots each guest anew",
                hint="run these tests without it, or prepare each guest in its test",
            )
        directories.append(Workdir())
        directory = directories[-1].path
        return make_template(guest, directory / directory.name)

    try:
        yield make
    finally:
        forget_templates()
        for directory in directories:
            directory.remove()


def _nothing(guest: Guest) -> None:
    pass


def _booter(
    settings: Settings, guests: list[Guest], logs: Callable[[int], Path], started: Callable[[Guest], None]
) -> Boot:
    def boot(name: str | None = None, *, wait: bool = True, **said: Unpack[Said]) -> Guest:
        __tracebackhide__ = True
        from vmtest.booting import boot as boot_it

        def begun(guest: Guest) -> None:
            guest.name = name or settings.name or settings.project.default
            guests.append(guest)
            (guest.logs / "command-line.txt").write_text(guest.command_line + "\n", errors="surrogateescape")
            started(guest)

        return boot_it(settings.spec(name, said, where="boot()"), wait=wait, logs=logs(len(guests)), started=begun)

    return boot


@pytest.fixture
def guest(request: pytest.FixtureRequest, boot: Boot) -> Guest:
    """A pristine guest (vmtest.Guest), ended with the test: ``assert guest.run("uname -s").stdout == "Linux\\n"``.
    Which one: ``--vm-guest`` and the other ``--vm-`` options, ``@pytest.mark.guest("linux-aarch64", memory=512)``,
    or ``guest = "NAME"`` in [tool.vmtest]; else linux-x86_64. It is a clone of one that was booted once (``--vm-cold``
    or ``@pytest.mark.guest(cold=True)`` boots it anew).
    """
    marker = request.node.get_closest_marker("guest")
    args: tuple[Any, ...] = marker.args if marker else ()
    kwargs: dict[str, Any] = dict(marker.kwargs) if marker else {}
    try:
        if len(args) > 1 or (args and not isinstance(args[0], str)):
            raise UsageError(f"@pytest.mark.guest takes one name, not {args!r}")
        GuestSpec.parse(kwargs, where="@pytest.mark.guest")
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
