"""What the command line, the ini file and the project's declarations say of guests."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmtest import config as project
from vmtest.errors import HostError, UsageError
from vmtest.model.options import OPTIONS
from vmtest.model.spec import GuestSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SETTINGS", "Settings", "add_options", "read_settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``name`` is the default guest's; ``ini`` and ``given`` what the ini file and the command line say of all guests.

    ``artifacts`` is where logs are kept, None for pytest's own temporary directory. ``pool`` is how many clones all
    workers together keep ready, None for what cores and memory allow.
    """

    project: project.Config
    name: str | None
    ini: GuestSpec
    given: GuestSpec
    artifacts: Path | None
    pool: int | None

    def spec(self, name: str | None, said: Mapping[str, object], *, where: str) -> GuestSpec:
        """What a test gets: command line over marker or call over the guest's declaration over the ini file."""
        guest = self.project.spec(name or self.name)
        spec = self.given.over(GuestSpec.parse(said, where=where).over(guest.over(self.ini)))
        if name and self.given.snapshot:  # which says by itself which guest it is: that must be the one
            spec = replace(spec, image=guest.image)
        return spec


SETTINGS = pytest.StashKey[Settings]()

_GUEST = (
    "the guest that the `guest` fixture boots: an image (vmtest list), its folder, or a name in [tool.vmtest.guests]"
)
_ARTIFACTS = "keep the console logs and QEMU's command lines of all tests in this directory (of failed ones by default)"

_POOL = (
    "keep N clones ready, restored and paused, so that a test has its guest at once (auto: one a core that no "
    "worker of pytest-xdist keeps busy, if there is memory; 0: none); workers share them"
)


_ACCEPT = "write the clusters that the fixture `executors` finds to the tests' baselines, and fail for none"


def add_options(parser: pytest.Parser) -> None:
    """Add ``--vm-NAME`` for each row of OPTIONS, and the ini option ``vm_name`` of the same meaning."""
    group = parser.getgroup("vmtest", "guests under QEMU or KVM (vmtest)")
    group.addoption("--vm-guest", metavar="NAME", help=_GUEST)
    parser.addini("vm_guest", f"as --vm-guest: {_GUEST}")
    for option in OPTIONS:
        flag, dest = f"--vm-{option.flag}", f"vm_{option.field}"
        if option.gives is not None:
            group.addoption(flag, action="store_const", const=option.gives, dest=dest, help=option.help)
            parser.addini(dest, f"{str(option.gives).lower()}: as {flag}", type="bool", default=not option.gives)
        else:
            group.addoption(flag, metavar=option.metavar, dest=dest, help=option.help)
            parser.addini(dest, f"as {flag}: {option.help}")
    group.addoption("--vm-pool", metavar="N", help=_POOL)
    parser.addini("vm_pool", f"as --vm-pool: {_POOL}")
    group.addoption("--vm-artifacts", metavar="DIR", help=_ARTIFACTS)
    parser.addini("vm_artifacts", f"as --vm-artifacts: {_ARTIFACTS}")
    group.addoption("--vm-accept", action="store_true", help=_ACCEPT)


def read_settings(config: pytest.Config) -> Settings:
    """What was said. Raises UsageError for what cannot be, before any test runs."""
    given = {o.field: value for o in OPTIONS if (value := config.getoption(f"vm_{o.field}")) is not None}
    # An option that gives True or False is said where the ini file says that, and not the opposite, its default.
    ini = {
        o.field: value
        for o in OPTIONS
        if (value := config.getini(f"vm_{o.field}")) not in (("", None) if o.gives is None else (not o.gives,))
    }
    artifacts = config.getoption("vm_artifacts") or config.getini("vm_artifacts")
    name = config.getoption("vm_guest")
    settings = Settings(
        project=project.find(config.rootpath),
        name=name or config.getini("vm_guest") or None,
        ini=GuestSpec.parse(ini, where="the ini file", base=config.inipath.parent if config.inipath else None),
        given=GuestSpec.parse(given, where="the command line", base=config.invocation_params.dir),
        artifacts=config.invocation_params.dir / artifacts if artifacts else None,
        pool=_pool(config.getoption("vm_pool") or config.getini("vm_pool")),
    )
    if name and settings.given.snapshot:
        raise UsageError(f"--vm-from {settings.given.snapshot} says which guest it is", hint="leave out --vm-guest")
    if (name or given) and not hasattr(config, "workerinput"):
        _check(settings)
    return settings


def _pool(value: object) -> int | None:
    """The size that --vm-pool says, None for what is measured. Raises UsageError."""
    if value in (None, "", "auto"):
        return None
    if not str(value).isdecimal():
        raise UsageError(f"--vm-pool: {value!r} is not a number of guests", hint="0 keeps none ready; auto, by default")
    return int(str(value))


def _check(settings: Settings) -> None:
    """Somebody asked for something on this command line: say now, and not once a test, that it cannot be."""
    # Imported here: a pytest run that boots no guest does not pay for it.
    from vmtest.booting import check

    # What this host lacks is for the tests that need it: others may run without.
    with suppress(HostError):
        check(settings.spec(None, {}, where="the command line"))
