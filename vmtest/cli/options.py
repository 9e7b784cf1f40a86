"""The options that say what guest to boot, for every sub-command that boots one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vmtest import config
from vmtest.errors import UsageError
from vmtest.model.options import OPTIONS
from vmtest.model.spec import GuestSpec

__all__ = ["guest_options", "spec_of"]

F = TypeVar("F", bound=Callable[..., Any])


def guest_options(function: F) -> F:
    """Add the rows of OPTIONS and ``--qemu-arg`` to a command; their values go to ``spec_of``."""
    for option in reversed(OPTIONS):
        if option.gives is not None:
            decorate = click.option(
                f"--{option.flag}", option.field, flag_value=option.gives, type=bool, default=None, help=option.help
            )
        else:
            decorate = click.option(f"--{option.flag}", option.field, metavar=option.metavar, help=option.help)
        function = decorate(function)
    extra = click.option(
        "--qemu-arg", "qemu_args", multiple=True, metavar="ARG", help="add this to QEMU's command line"
    )
    return extra(function)


def spec_of(guest: str | None, said: dict[str, Any]) -> GuestSpec:
    """The spec of the guest of that name (declared in the project, or an image) with the options laid over it."""
    said["qemu_args"] = said["qemu_args"] or None
    if said["snapshot"] and guest:
        raise UsageError(f"--from {said['snapshot']} says which guest it is", hint=f"leave out {guest!r}")
    return GuestSpec.parse(said, where="the command line").over(config.find(Path.cwd()).spec(guest))
