"""What is known of devices: how a driver sets each of them to work. A file of this package is a model; nothing else
names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from itertools import groupby
from pkgutil import iter_modules
from typing import Any, ClassVar, TypeVar

from vmtest.devices.layout import Area, Pen

__all__ = ["Model", "known", "models", "step"]

F = TypeVar("F", bound=Callable[..., None])


class Model:
    """A driver that is drawn. One is made for each sequence: ``begin`` sets the device up, then some of its steps
    follow, which are methods, drawn by their weights. ``regions`` are the names, as regular expressions, that QEMU
    gives to its registers (``info mtree``), all of which it has.
    """

    name: ClassVar[str]
    regions: ClassVar[Sequence[str]]
    _names: ClassVar[Sequence[str]]
    _weights: ClassVar[Sequence[int]]

    def __init__(self, pen: Pen, areas: Sequence[Area]) -> None:
        self.pen = pen
        self.areas = areas

    def __init_subclass__(cls) -> None:
        weights = {name: getattr(getattr(cls, name), "weight", 0) for name in sorted(dir(cls))}
        cls._names = [name for name, weight in weights.items() if weight]
        cls._weights = [weights[name] for name in cls._names]

    def begin(self) -> None:
        """Set the device up."""

    def area(self, pattern: str) -> Area | None:
        """The first of its areas with such a name; None where it has none."""
        return next((area for area in self.areas if _is_named(pattern, area.name)), None)

    def needed(self, pattern: str) -> Area:
        """An area that a device of this model always has."""
        found = self.area(pattern)
        assert found is not None, (self.name, pattern)
        return found

    @classmethod
    def knows(cls, areas: Sequence[Area]) -> bool:
        """Whether a device with these areas is one of its."""
        return all(any(re.fullmatch(pattern, area.name) for area in areas) for pattern in cls.regions)

    def run(self, least: int, most: int) -> None:
        """Set it up, and do some steps, so many."""
        self.begin()
        for name in self.pen.random.choices(self._names, self._weights, k=self.pen.count(least, most)):
            getattr(self, name)()


@cache
def _is_named(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, name) is not None


def step(weight: int) -> Callable[[F], F]:
    """Marks a method of a model as a step, which is done so often in relation to the others."""

    def mark(function: F) -> F:
        function.__dict__["weight"] = weight
        return function

    return mark


@cache
def known() -> Sequence[type[Model]]:
    """All models."""
    modules: list[Any] = [import_module(f"{__name__}.{row.name}") for row in iter_modules(__path__)]
    found = (one for module in modules for one in vars(module).values() if isinstance(one, type))
    return sorted({one for one in found if issubclass(one, Model) and "regions" in vars(one)}, key=lambda one: one.name)


def models(areas: Sequence[Area]) -> list[tuple[type[Model], Sequence[Area]]]:
    """The models for devices among these areas, each with the areas of its device: of one owner."""
    by_owner = groupby(sorted(areas, key=lambda area: (area.owner, area.address)), key=lambda area: area.owner)
    devices = [tuple(several) for _, several in by_owner]
    return [(model, device) for device in devices for model in known() if model.knows(device)]
