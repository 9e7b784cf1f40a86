"""A QEMU that does not answer: whether it still may."""

from __future__ import annotations

import time

__all__ = ["Silence"]

HANG = 3.0
"""Seconds of CPU time that it may use for one operation; less where it may not sleep for long either."""


class Silence:
    """How long QEMU has not answered: ``used`` are seconds of CPU time since it last did."""

    def __init__(self) -> None:
        self.used = 0.0
        self._answered, self._begun = -1, 0.0
        self._seen, self._still = 0.0, 0.0

    def goes_on(self, cpu_seconds: float, answered: int, lost: float) -> bool:
        """Whether it may still answer: it has not worked for long, nor slept for ``lost`` seconds. It is looked at when
        it has been silent for a while, and again each while.
        """
        now = time.monotonic()
        if answered != self._answered:
            self._answered, self._begun = answered, cpu_seconds
            self._seen, self._still = cpu_seconds, now
        if cpu_seconds > self._seen:  # it works: that it does nothing is counted anew
            self._seen, self._still = cpu_seconds, now
        self.used = cpu_seconds - self._begun
        return self.used < min(HANG, 2 * lost) and now - self._still < lost

    def is_at_work(self, lost: float) -> bool:
        """Whether one that is given up after ``lost`` seconds was given up for its work."""
        return self.used >= min(HANG, lost / 2)
