"""Fuzzing a device of a stock QEMU: sequences, and each way in which QEMU ends by them, as a reproducer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from vmtest.devices.access import Access, Flush
from vmtest.devices.crash import Crash
from vmtest.devices.reproducer import SETTLE, Reproducer
from vmtest.devices.session import Session
from vmtest.devices.target import Target
from vmtest.fuzz.sequences import Avoided, Drawer
from vmtest.fuzz.shrink import shrink
from vmtest.host import Qemu

__all__ = ["Hunt", "Report"]

RESET = 8
"""Sequences between two resets of the machine."""
LIFE = 400
"""Sequences of one QEMU: what it has been told is all tried where a crash does not come of less."""
BUDGET = 60.0
"""Seconds in which a crash is made smaller."""
SOON = 0.02
"""Seconds in which QEMU ends by an operation itself, and not by a timer or its main loop later on."""


@dataclass(kw_only=True)
class Report:
    """What has come of it so far: ``crashes`` are by Crash.key; ``unconfirmed`` did not come again on a QEMU that was
    just started; ``ends`` counts all ends of QEMU, ``clean`` those in order. ``shrinking`` is how many of the
    ``seconds`` went to what crashed.
    """

    target: Target
    seed: int
    operations: int = 0
    sequences: int = 0
    resets: int = 0
    ends: int = 0
    clean: int = 0
    seconds: float = 0.0
    shrinking: float = 0.0
    crashes: dict[str, Reproducer] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    unconfirmed: list[str] = field(default_factory=list)


class Hunt:
    """A run on one target. ``report`` is what has come of it."""

    def __init__(self, target: Target, qemu: Qemu, seed: int) -> None:
        self._target, self._qemu = target, qemu
        self._drawer = Drawer(target, seed)
        self.report = Report(target=target, seed=seed)
        self._avoided = Avoided(target)
        self._at_once: set[str] = set()

    def run(self, *, seconds: float, told: Callable[[Report, Reproducer | None], None]) -> Report:
        """Go on for so many seconds; ``told`` is called now and then, and with each crash of a new signature."""
        begin = time.monotonic()
        numbers = count()

        def goes_on() -> bool:
            self.report.seconds = time.monotonic() - begin
            return self.report.seconds < seconds

        while goes_on():
            made = self._life(numbers, goes_on)
            goes_on()
            told(self.report, made)
        return self.report

    def _life(self, numbers: count[int], goes_on: Callable[[], bool]) -> Reproducer | None:
        """One QEMU, from its start to its end; what it has ended by, where that is new."""
        history: list[list[Access]] = []
        lockstep = False
        with Session(self._target.board, self._qemu, traced=True) as session:
            session.run(self._target.begin)
            crash = None
            while crash is None and len(history) < LIFE and goes_on():
                if history and len(history) % RESET == 0:
                    crash = session.reset() or session.run(self._target.begin).crash
                    self.report.resets += 1
                    if crash:
                        break
                number = next(numbers)
                lockstep = number // LIFE % 4 == 3
                history.append([one for one in self._drawer.draw(number) if one not in self._avoided])
                done = session.run(history[-1], lockstep=lockstep)
                crash = done.crash
                self.report.operations += len(done.replies)
                self.report.sequences += 1
        if crash is None:
            return None
        self.report.ends += 1
        if crash.is_clean:
            self.report.clean += 1
            return None
        self.report.seen[crash.key] = self.report.seen.get(crash.key, 0) + 1
        if crash.key in self._at_once and crash.done:
            self._avoided.add(_until(history[-1], crash.done)[-1])
        if crash.key in self.report.crashes or crash.key in self.report.unconfirmed:
            return None
        begin = time.monotonic()
        try:
            return self._confirmed(history, crash, lockstep)
        finally:
            self.report.shrinking += time.monotonic() - begin

    def _confirmed(self, history: Sequence[Sequence[Access]], crash: Crash, lockstep: bool) -> Reproducer | None:
        """The crash as a QEMU that was just started shows it, by the last sequences, as few as do."""
        known = set(self.report.crashes)
        for last in (1, 2, RESET, 4 * RESET, len(history)):
            accesses = [*self._target.begin, *(access for piece in history[-last:] for access in piece)]
            for mode in (lockstep, not lockstep):
                found = self._ends(accesses, mode, SETTLE)
                if found and not found.is_clean and found.key not in known:
                    return self._smallest(accesses, found, mode)
            if last >= len(history):
                break
        self.report.unconfirmed.append(crash.key)
        return None

    def _ends(self, accesses: Sequence[Access], lockstep: bool, settle: float) -> Crash | None:
        with Session(self._target.board, self._qemu, traced=True) as session:
            return session.run(accesses, lockstep=lockstep, settle=settle).crash

    def _smallest(self, accesses: Sequence[Access], crash: Crash, lockstep: bool) -> Reproducer:
        settle = SOON

        def same(candidate: Sequence[Access]) -> bool:
            found = self._ends(candidate, lockstep, settle)
            return found is not None and found.key == crash.key

        if same(until := _until(accesses, crash.done)):
            accesses = until  # what comes later does nothing for it
        else:  # it is a timer's doing, or the main loop's: that many seconds later
            begin = time.monotonic()
            self._ends(accesses, lockstep, SETTLE)
            settle = min(SETTLE, 2 * (time.monotonic() - begin))
        small = shrink(accesses, same, seconds=BUDGET)
        version = ".".join(map(str, self._qemu.version))
        made = Reproducer(
            binary=self._qemu.path.name,
            board=self._target.board,
            accesses=tuple(small),
            lockstep=lockstep,
            signature=crash.signature,
            title=f"{self._target.name}: {crash.kind}{crash.key.removeprefix(crash.signature)}",
            source=f"vmtest fuzz device {self._target.name} --seed {self.report.seed}",
            seen={version: crash.key},
        )
        self.report.crashes[crash.key] = made
        if len(small) <= len(self._target.begin) + 1:
            self._at_once.add(crash.key)
            self._avoided.add(small[-1])
        return made


def _until(accesses: Sequence[Access], done: int) -> Sequence[Access]:
    """Up to the operation behind so many that were answered."""
    answered = 0
    for at, access in enumerate(accesses):
        answered += not isinstance(access, Flush)
        if answered > done:
            return accesses[: at + 1]
    return accesses
