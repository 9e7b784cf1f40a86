"""Why nothing more can be expected of a guest: set once by whoever sees it, noticed at once by whoever waits."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vmtest.errors import VmtestError

__all__ = ["Verdict"]


class Verdict:
    """A place for the first fatal thing that happens to a guest: its kernel panicked, its QEMU ended.

    Waiting code registers a callback that wakes it, and calls ``check`` when woken.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._make: Callable[[], VmtestError] | None = None
        self._wakers: list[Callable[[], None]] = []
        self._set = threading.Event()

    def set(self, make: Callable[[], VmtestError]) -> None:
        """Record how the error is made (from then-current evidence), unless one is recorded, and wake all."""
        with self._lock:
            if self._make is not None:
                return
            self._make = make
            self._set.set()
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def clear(self) -> None:
        """Forget it: the guest has been reset."""
        with self._lock:
            self._make = None
            self._set.clear()

    def wait(self, seconds: float) -> bool:
        """Wait for a verdict: a socket of QEMU's closes a moment before its end is seen."""
        return self._set.wait(seconds)

    def on_set(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` when a verdict is set; it must not block."""
        with self._lock:
            self._wakers.append(wake)

    @property
    def is_set(self) -> bool:
        """Whether there is a verdict."""
        return self._make is not None

    def check(self) -> None:
        """Raise the error if there is a verdict: a new one each time, since a traceback belongs to one raise."""
        make = self._make
        if make is not None:
            raise make()
