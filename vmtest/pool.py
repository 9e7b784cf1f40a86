"""Clones made ahead: restored, warmed by one answered command, and paused; handed out in the time of QMP's `cont`."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections import deque

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

WARM = 60.0
"""Seconds in which a clone must have answered its first command."""


class Pool:
    """Keeps up to ``size`` clones of the snapshot that was asked for last. One a process; ``close`` ends all of them.

    A thread of its own refills it. A taker never waits for more than the clone that is being made already.
    """

    def __init__(self, size: int, *, remember: bool = False) -> None:
        """``remember`` is as for cloning.clone."""
        self.size = size
        self._remember = remember
        self.wanted: int | None = None
        """How many more guests will be asked for, if that is known: no more are made."""
        self._changed = threading.Condition()
        self._ready: deque[Life] = deque()
        self._making = False
        self._stalled = False  # the last one could not be made: no more are, until one is asked for
        self._recipe: tuple[Snapshot, Qemu, Manner] | None = None
        self._closed = False
        self.shortage = ""
        """What is to be told of a pool that memory kept small."""
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    def take(self, snapshot: Snapshot, qemu: Qemu, manner: Manner) -> Life | None:
        """A paused clone, or None where making one is the soonest way to one. Refills in the background."""
        if self.size < 1 or self._closed or os.getpid() != self._owner:
            return None
        if not snapshot.untouched:  # clones that wait see what has been changed in it; a new one is told
            return None
        recipe = (snapshot, qemu, manner)
        with self._changed:
            if self._recipe != recipe:
                others, self._ready, self._recipe = self._ready, deque(), recipe
            else:
                others = deque[Life]()
                self._changed.wait_for(lambda: self._ready or not self._making or self._closed)
            life = self._ready.popleft() if self._ready else None
            if self._thread is None:
                self._thread = threading.Thread(target=self._refill, name="vmtest-pool", daemon=True)
                self._thread.start()
            self._stalled = False
            self._changed.notify_all()
        for other in others:
            other.close()
        if life is not None and life.running.verdict.is_set:  # its QEMU was killed while it waited
            life.close()
            return None
        return life

    def _refill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._needs_more())
                if self._closed or self._recipe is None:
                    return
                recipe, self._making = self._recipe, True
            life = None
            try:
                life = self._made(recipe)
            except Exception as error:  # a taker makes its own, and is told; without us it would wait for ever
                log.debug("the pool could not make a clone: %s", error)
            with self._changed:
                self._making = False
                kept = life is not None and recipe == self._recipe and not self._closed
                if life is not None and kept:
                    self._ready.append(life)
                self._stalled = life is None
                self._changed.notify_all()
            if life is not None and not kept:
                life.close()

    def _needs_more(self) -> bool:
        most = self.size if self.wanted is None else min(self.size, self.wanted)
        if self._recipe is None or self._stalled or len(self._ready) >= most:
            return False
        left = memory.available() - memory.RESERVE - memory.CLONE
        if left < 0 and not self.shortage:
            self.shortage = (
                f"the pool kept {len(self._ready)} guests ready and not {most}: {memory.available()} MiB of memory "
                f"were left, of which it leaves {memory.RESERVE}"
            )
        return left >= 0

    def _made(self, recipe: tuple[Snapshot, Qemu, Manner]) -> Life:
        life = clone(*recipe, remember=self._remember)
        try:
            deadline = Deadline(WARM * life.manner.timeout_scale)
            life.uplink.wake(life.running.resume, deadline)
            if life.uplink.channel is not None:
                life.uplink.channel.run(Command(argv=["true"]), deadline=deadline, on_output=lambda name, data: None)
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
            ready, self._ready = self._ready, deque()
        for life in ready:
            life.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10)
        with contextlib.suppress(Exception):
            atexit.unregister(self.close)
