"""A point in time by which something must be done, passed down instead of a number of seconds."""

from __future__ import annotations

import math
import time

__all__ = ["Deadline"]


class Deadline:
    """A point on the monotonic clock.

    Every layer that waits takes a ``Deadline``, so that three waits in a row share one budget.
    """

    __slots__ = ("_at", "seconds")

    def __init__(self, seconds: float) -> None:
        """``seconds`` from now; ``math.inf`` never expires."""
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    @classmethod
    def never(cls) -> Deadline:
        """A deadline that does not expire."""
        return cls(math.inf)

    @property
    def remaining(self) -> float:
        """Seconds left, at least 0.0; ``math.inf`` where it never expires."""
        return max(0.0, self._at - time.monotonic())

    @property
    def timeout(self) -> float | None:
        """Seconds left as select, poll and Condition.wait take them: None for no limit."""
        return None if math.isinf(self._at) else self.remaining

    @property
    def expired(self) -> bool:
        """Whether nothing is left."""
        return self.remaining == 0.0

    def sooner(self, seconds: float) -> Deadline:
        """The earlier of this deadline and ``seconds`` from now."""
        return Deadline(min(self.remaining, seconds))

    def __repr__(self) -> str:
        return f"<Deadline {self.remaining:.1f} of {self.seconds:g} s left>"
