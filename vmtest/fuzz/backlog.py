"""What QEMU has ended by in a run: confirmed, and made smaller, by a thread while the run goes on."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple

from vmtest.closing import Closing
from vmtest.devices.access import Access
from vmtest.fuzz.confirm import Confirmer, Found, Stopped

__all__ = ["Backlog", "Came"]

TURN = 4.0
"""Seconds for which a crash is made smaller before it is another one's turn."""
LAST = 30.0
"""Seconds that each has at most when the run is over; they all have as long as the run took, and this at least."""
SAMPLES = 5
"""Times that a crash is taken anew where it does not get smaller: by what else it came, it may."""


class Came(NamedTuple):
    """What has come of a crash that was told as ``key``; ``found`` is None where it did not come again, and a key where
    it came to a crash that is known.
    """

    key: str
    found: Found | str | None


class Backlog(Closing):
    """Ends of QEMU wait here to be looked into. ``spent`` are the seconds that this took, ``doing`` is what is done
    now. Use it as a context manager: what is left when that ends is left.
    """

    def __init__(self, confirmer: Confirmer, known: Collection[str]) -> None:
        """Crashes with a key that is ``known`` are not wanted, others may come to it meanwhile."""
        self._confirmer, self._known = confirmer, known
        self.spent, self.doing = 0.0, ""
        self._waiting = deque[tuple[str, str, Sequence[Sequence[Access]], Access | None]]()
        # What is not as small as it gets, who is next at the end. A hang takes long to look into: that is for the end.
        self._soon, self._late = deque[Found](), deque[Found]()
        self._new: Found | None = None
        self._least, self._samples, self._stuck = dict[str, int](), Counter[str](), set[str]()
        self._changed, self._is_over, self._until = threading.Condition(), False, 0.0
        self._came = SimpleQueue[Came | BaseException | None]()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, key: str, kind: str, pieces: Sequence[Sequence[Access]], alone: Access | None = None) -> None:
        """A crash of this ``kind``, by these pieces of what QEMU was told, or the operation ``alone``."""
        with self._changed:
            self._waiting.append((key, kind, pieces, alone))
            self._changed.notify_all()

    def wants(self, key: str) -> bool:
        """Whether a crash that was confirmed is to be added again: it gets no smaller, and there is time."""
        return key in self._stuck and not self._waiting

    def came(self) -> Iterator[Came]:
        """What has come of crashes since this was asked last. Raises what went wrong with it."""
        while not self._came.empty():
            if (came := self._taken()) is not None:
                yield came

    def rest(self, seconds: float) -> Iterator[Came | None]:
        """The run is over, which took so many seconds: all that is still to come, as it comes; None now and then
        meanwhile.
        """
        with self._changed:
            self._is_over, self._until = True, time.monotonic() + max(LAST, seconds)
            self._changed.notify_all()
        while True:
            try:
                if (came := self._taken(timeout=1.0)) is None:
                    return
                yield came
            except Empty:
                yield None

    def close(self) -> None:
        """End it, in the middle of what it does."""
        with self._changed:
            self._is_over = True
            self._waiting.clear()
            self._soon.clear()
            self._late.clear()
            self._changed.notify_all()
        self._confirmer.stop()
        self._thread.join()

    def _taken(self, timeout: float | None = None) -> Came | None:
        came = self._came.get(timeout=timeout)
        if isinstance(came, BaseException):
            raise came
        return came

    def _work(self) -> None:
        try:
            while job := self._next():
                begin = time.monotonic()
                job()
                self.spent += time.monotonic() - begin
                self.doing = ""
        except Stopped:
            pass
        except BaseException as error:  # it is the run's, which is another thread
            self._came.put(error)
        self._came.put(None)

    def _next(self) -> Callable[[], None] | None:
        """What is to be done; None where all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._soon or self._new or self._is_over)
            new, self._new = self._new, None
            if new and self._is_over:
                self._soon.append(new)
            elif new:  # one turn before others are confirmed: most are small by then
                return partial(self._shrink, new, TURN, again=True)
            if self._waiting:
                return partial(self._confirm, *self._waiting.popleft())
            if not self._is_over:
                return partial(self._shrink, self._soon.pop(), TURN, again=True)
            # Of several samples of a crash the smallest one.
            left = [one for one in (*self._late, *self._soon) if len(one.accesses) <= self._least[one.crash.key]]
            self._late.clear()
            self._soon = deque(left)
            seconds = self._until - time.monotonic()
            if not left or seconds <= 0:
                return None
            return partial(self._shrink, self._soon.pop(), min(LAST, seconds / len(left)), again=False)

    def _confirm(self, key: str, kind: str, pieces: Sequence[Sequence[Access]], alone: Access | None) -> None:
        self.doing = f"confirming: {key}"
        self._stuck.discard(key)
        found = self._confirmer.confirmed(pieces, kind, {*self._known, *self._least} - {key}, alone)
        if isinstance(found, Found):
            self._least.setdefault(found.crash.key, len(found.accesses))
            self._samples[found.crash.key] += 1
            with self._changed:
                if found.crash.kind == "hang":
                    self._late.append(found)
                elif found.by_itself:  # the others first
                    self._soon.appendleft(found)
                else:
                    self._new = found
        self._came.put(Came(key, found))

    def _shrink(self, found: Found, seconds: float, *, again: bool) -> None:
        key, before = found.crash.key, len(found.accesses)
        self.doing = f"making smaller: {key}"
        found = self._confirmer.smaller(found, seconds=seconds)
        length = len(found.accesses)
        is_stuck, is_least = length == before, length <= self._least[key]
        self._least[key] = min(length, self._least[key])
        if (is_stuck or found.is_smallest) and self._samples[key] < SAMPLES:
            self._stuck.add(key)
        if again and not found.is_smallest and (is_least or not is_stuck):
            with self._changed:
                self._soon.appendleft(found)  # the others first
        self._came.put(Came(key, found))
