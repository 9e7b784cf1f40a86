"""Decoders as executors: they run nothing, and tell where each instruction of a case begins."""

from __future__ import annotations

from abc import abstractmethod

from vmtest.executors import base
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import PAGE

__all__ = ["Decoder"]

_MORE = (b"\0" * 16, b"\xc0" * 16)
"""What may follow code that is cut off, and makes it whole: few decoders tell that from what is no instruction."""


class Decoder(base.Engine):
    """A subclass knows one instruction."""

    @abstractmethod
    def length(self, code: bytes, address: int) -> int:
        """Of the instruction that the code begins with; 0 where it is none."""

    def run(self, case: Case) -> Outcome:
        """See Engine."""
        code, start, at, begins = case.code, case.start, 0, 0
        while at < len(code):
            length = self.length(code[at:], start + at)
            if not 0 < length <= len(code) - at:
                break
            begins |= 1 << at
            at += length
        is_cut = any(self.length(code[at:] + more, start + at) > len(code) - at for more in _MORE if at < len(code))
        return Outcome(
            status="decoded", end=start + at, address=self.isa.code + PAGE if is_cut else None, begins=begins
        )

    def stop(self) -> None:
        """See Engine: it does not loop, or else its process is killed."""
