"""QEMUs that stand by: ones that were just started, and one that goes on from one try to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from vmtest.closing import Closing
from vmtest.devices.access import Access, Fill, Reset
from vmtest.devices.session import Session

__all__ = ["Spare", "Warm"]

SPARE = 2
"""QEMUs that are started meanwhile."""


class Spare(Closing):
    """Has QEMUs started while another one is at work: with a CPU to spare that costs no time."""

    def __init__(self, start: Callable[[], Session]) -> None:
        self._start = start
        self._starter = ThreadPoolExecutor(SPARE)
        self._next = deque(self._starter.submit(start) for _ in range(SPARE))

    def take(self) -> Session:
        """One that was just started."""
        self._next.append(self._starter.submit(self._start))
        return self._next.popleft().result()

    def ends(self, accesses: Sequence[Access], lockstep: bool, settle: float) -> str | None:
        """The key of the crash that one ends by; None where it lives."""
        with self.take() as session:
            crash = session.run(accesses, lockstep=lockstep, settle=settle).crash
        return crash and crash.key

    def close(self) -> None:
        """End it."""
        self._starter.shutdown()
        for started in self._next:
            if started.exception() is None:
                started.result().close()


class Warm(Closing):
    """A QEMU that goes on from one try to the next, reset and its memory cleared, as long as it lives."""

    def __init__(self, spare: Spare, clear: Sequence[Fill]) -> None:
        self._spare = spare
        self._afresh: Sequence[Access] = (Reset(), *clear)
        self._session: Session | None = None

    def ends(self, accesses: Sequence[Access], lockstep: bool, settle: float) -> tuple[str | None, bool]:
        """The key of the crash that it ends by, None where it lives; and whether it was just started."""
        if self._session and self._session.run(self._afresh).crash:
            self.close()
        is_new = self._session is None
        self._session = self._session or self._spare.take()
        crash = self._session.run(accesses, lockstep=lockstep, settle=settle).crash
        if crash:
            self.close()
        return crash and crash.key, is_new

    def close(self) -> None:
        """End it."""
        if self._session is not None:
            self._session.close()
            self._session = None
