"""Clones made ahead: restored, warmed by one answered command, and paused; handed out in the time of QMP's `cont`."""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import logging
import os
import resource
import threading
import time
from collections import deque
from pathlib import Path

from vmtest.cloning import clone
from vmtest.deadline import Deadline
from vmtest.errors import VmtestError
from vmtest.host import Qemu, memory
from vmtest.life import Life
from vmtest.model.manner import Manner
from vmtest.qemu.channel import Command
from vmtest.snapshots import Snapshot

__all__ = ["Pool"]

log = logging.getLogger("vmtest")

LONG = 8
"""A clone that waited while so many times the pool's size were asked for, all of others, makes room."""
CALM = 0.02
"""Seconds after a hand-out in which no new clone is begun: the first answer of the one handed out comes sooner."""
DESCRIPTORS = 64
"""File descriptors that a pool leaves to the program and its other guests."""
OPENED = 16
"""Descriptors that a clone takes while it is made; 8 once it runs."""
WARM = 60.0
"""Seconds in which a clone must have answered its first command."""


Recipe = tuple[Snapshot, Qemu, Manner]


class Pool:
    """Keeps up to ``size`` clones, of whatever was asked for of late. One a process; ``close`` ends all of them.

    Threads of its own refill it. A taker never waits for more than the clone that is being made already.
    """

    def __init__(self, size: int, *, remember: bool = False) -> None:
        """``remember`` is as for cloning.clone."""
        self.size = size
        self.wanted: int | None = None
        """How many more guests will be asked for, if that is known: no more are made."""
        self.shortage = ""
        """What is to be told of a pool that memory kept small."""
        self._remember = remember
        self._changed = threading.Condition()
        self._held: dict[Recipe, deque[Life]] = {}  # the one that was asked for last is the last
        self._asked: dict[Recipe, int] = {}  # when that was, counted in askings
        self._askings = 0
        self._making: list[Recipe] = []
        self._calm_until = 0.0
        self._alone = False  # one could not be made: from then on they are made one at a time
        self._stalled = False  # the last one could not be made: no more are, until one is asked for
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()
        atexit.register(self.close)

    @property
    def ready(self) -> list[Life]:
        """The clones that wait now."""
        return list(itertools.chain(*self._held.values()))

    def take(self, snapshot: Snapshot, qemu: Qemu, manner: Manner) -> Life | None:
        """A paused clone, or None where making one is the soonest way to one. Refills in the background."""
        if self.size < 1 or self._closed or os.getpid() != self._owner:
            return None
        recipe = (snapshot, qemu, manner)
        self._give_up_changed()
        if not snapshot.untouched:  # who makes a new one is told
            return None
        with self._changed:
            ready = self._held[recipe] = self._held.pop(recipe, deque[Life]())
            self._askings += 1
            self._asked[recipe] = self._askings
            stale = self._stale()
            self._changed.wait_for(lambda: ready or recipe not in self._making or self._closed)
            life = ready.popleft() if ready else None
            self._calm_until = time.monotonic() + CALM if life else 0.0
            if not self._threads:
                self._start()
            self._stalled = False
            self._changed.notify_all()
        for other in stale:
            other.close()
        if life is not None and life.running.verdict.is_set:  # its QEMU was killed while it waited
            life.close()
            return None
        return life

    def _start(self) -> None:
        """One thread a core: making a clone keeps one busy."""
        for _ in range(min(self.size, len(os.sched_getaffinity(0)))):
            self._threads.append(threading.Thread(target=self._refill, name="vmtest-pool", daemon=True))
            self._threads[-1].start()

    def _give_up_changed(self) -> None:
        """Clones that wait see what is changed in their snapshot."""
        with self._changed:
            changed = [recipe for recipe in self._held if not recipe[0].untouched]
            spoilt = [life for recipe in changed for life in self._held.pop(recipe)]
            for recipe in changed:
                self._asked.pop(recipe, None)
        for life in spoilt:
            life.close()

    def _stale(self) -> list[Life]:
        """What nobody has asked for in a long time: it leaves its place to others."""
        long_ago = self._askings - LONG * self.size
        gone = [recipe for recipe, when in self._asked.items() if when < long_ago]
        for recipe in gone:
            del self._asked[recipe]
        return [life for recipe in gone for life in self._held.pop(recipe)]

    def _refill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._needs_more())
                if self._closed:
                    return
                if (calm := self._calm_until - time.monotonic()) > 0:
                    self._changed.wait(calm)
                    continue
                # The last one that was asked for, unless it has its share already.
                least = min(len(ready) for ready in self._held.values())
                recipe = next(r for r in reversed(self._held) if len(self._held[r]) == least)
                self._making.append(recipe)
            life = None
            try:
                life = self._made(recipe)
            except Exception as error:  # a taker makes its own, and is told; without us it would wait for ever
                log.debug("the pool could not make a clone: %s", error)
            with self._changed:
                self._making.remove(recipe)
                kept = life is not None and recipe in self._held and not self._closed
                if life is not None and kept:
                    self._held[recipe].append(life)
                if life is None:  # short of something, perhaps by each other: first one at a time, then none
                    self._alone, self._stalled = True, self._alone and not self._making
                self._changed.notify_all()
            if life is not None and not kept:
                life.close()

    def _needs_more(self) -> bool:
        most = self.size if self.wanted is None else min(self.size, self.wanted)
        held = len(self.ready) + len(self._making)
        if not self._held or self._stalled or held >= most or (self._alone and self._making):
            return False
        short = _short_of(len(self._making))
        if short and not self.shortage:
            self.shortage = f"the pool kept {len(self.ready)} guests ready and not {most}: {short}"
        return not short

    def _made(self, recipe: Recipe) -> Life:
        life = clone(*recipe, remember=self._remember)
        try:
            deadline = Deadline(WARM * life.manner.timeout_scale)
            life.uplink.wake(life.running.resume, deadline)
            if life.uplink.channel is not None:
                life.uplink.channel.run(Command(argv=["true"]), deadline=deadline, on_output=lambda name, data: None)
                # As at the hand-out, once: what an emulator has to translate for it, it has translated then.
                life.running.pause()
                life.uplink.wake(life.running.resume, deadline)
            life.running.pause()
        except BaseException as error:
            life.close()
            if isinstance(error, TimeoutError):
                raise VmtestError("a clone did not answer in time") from error
            raise
        return life

    def close(self) -> None:
        """End all clones that nobody has taken; a second time does nothing."""
        if os.getpid() != self._owner:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            ready = self.ready
            self._held.clear()
        for life in ready:
            life.close()
        for thread in self._threads:
            thread.join(10)
        with contextlib.suppress(Exception):
            atexit.unregister(self.close)


def _short_of(making: int) -> str:
    """What another clone, beside those in the ``making``, would take away from the program; "" if nothing."""
    try:
        free = memory.available()
        spare = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            return f"what is left of memory and files could not be told: {error}"
        free, spare = 0, 0
    if spare < DESCRIPTORS + OPENED * (1 + making):
        return f"{spare} more files could be opened, of which it leaves {DESCRIPTORS} (ulimit -n)"
    if free < memory.RESERVE + memory.CLONE * (1 + making):
        return f"{free} MiB of memory were left, of which it leaves {memory.RESERVE}"
    return ""
