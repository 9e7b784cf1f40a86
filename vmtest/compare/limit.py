"""What a row of the limits of executors says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmtest.compare.pairs import KINDS

__all__ = ["ANY", "INSTEAD", "STATE", "Limit"]

STATE = ("memory", "registers", "vectors", "x87", "flags", "fp status")
"""Kinds of difference between two that came equally far."""
INSTEAD = ("exception", "end")
"""Kinds that show where one of them has raised an exception and the other went on, to another one or to the end."""
ANY = ("exception", "error code", "address", "end", *STATE)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """``executor`` does not do ``what``; "" is for any, where the manuals leave it open or differ.

    It shows as a difference of ``kinds``. ``cause`` is what of the case leads to it (Forms.causes), ``vectors`` the
    exceptions that the other one raises for it, as instruction sets number them whose names begin with ``isa``.
    ``at_the_end`` is for those of which one cannot read what is behind the code, and ``further`` is by how many bytes
    it is wrong about the program counter. ``told`` are bits, by register, of which the other one has set some that it
    has not. ``lacks`` are those that the other one has set and it has not, and ``extra`` the other way round: registers
    of the kind may differ in nothing but these, of one row or of several, and what differs in other kinds is judged by
    itself. ``error`` are bits of the error code of which it lacks some. ``tainted`` is for a difference in nothing but
    what goes by undefined flags.
    """

    executor: str
    what: str
    source: str
    kinds: tuple[str, ...]
    isa: str = ""
    cause: str = ""
    vectors: tuple[int, ...] = ()
    at_the_end: bool = False
    further: int = 0
    told: Mapping[str, int] = field(default_factory=dict)
    lacks: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, int] = field(default_factory=dict)
    error: int = 0
    tainted: bool = False

    @property
    def is_partial(self) -> bool:
        """Whether it says nothing of the kinds of difference behind the one that it explains."""
        return bool(self.told or self.lacks or self.extra)

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds of differences are {KINDS}, and not {self.kinds}")
