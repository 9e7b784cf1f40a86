"""Fuzzing a device of a stock QEMU: sequences, and each way in which QEMU ends by them, as a reproducer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

from vmtest.devices.access import Access, Reset
from vmtest.devices.crash import Crash
from vmtest.devices.reproducer import Reproducer
from vmtest.devices.session import Session
from vmtest.devices.target import Target
from vmtest.fuzz.confirm import BUDGET, Confirmer, until
from vmtest.fuzz.corpus import Corpus
from vmtest.fuzz.coverage import Coverage
from vmtest.fuzz.sequences import Avoided, Drawer
from vmtest.host import Qemu

__all__ = ["Hunt", "Report"]

RESET = 8
"""Sequences between two resets of the machine."""
LIFE = 400
"""Sequences of one QEMU: what it has been told is all tried where a crash does not come of less."""
LOCKSTEP = 4
"""One life in so many has each operation wait for the last one's answer."""
PATIENCE = 2.0
"""Seconds after which a QEMU that does nothing is given up: that it hangs is seen where it is confirmed."""
TRIES = 3
"""How often a crash is tried again, of another life each time, that did not come."""
CHANGED = 0.5
"""How many of the sequences are made of ones that are kept, where there are any."""


@dataclass(kw_only=True)
class Report:
    """What has come of it so far: ``crashes`` are by Crash.key; ``unconfirmed`` did not come again on a QEMU that was
    just started, so often; ``ends`` counts all ends of QEMU, ``clean`` those in order. ``events`` are the kinds that
    QEMU told, ``features`` what was new of them, ``corpus`` how many sequences were kept for that. ``shrinking`` is how
    many of the ``seconds`` went to what crashed, all ``jobs`` together; ``doing`` is what is done beside fuzzing now.
    """

    target: Target
    seed: int
    jobs: int = 1
    doing: str = ""
    operations: int = 0
    sequences: int = 0
    resets: int = 0
    ends: int = 0
    clean: int = 0
    events: int = 0
    features: int = 0
    corpus: int = 0
    seconds: float = 0.0
    shrinking: float = 0.0
    crashes: dict[str, Reproducer] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    unconfirmed: dict[str, int] = field(default_factory=dict)


class Hunt:
    """A run on one target. ``report`` is what has come of it; ``known`` are keys of crashes that others have found."""

    def __init__(
        self, target: Target, qemu: Qemu, seed: int, *, feedback: bool = True, shrinking: float = BUDGET
    ) -> None:
        """With ``feedback`` sequences that show something new are kept, and changed. Each crash has ``shrinking``
        seconds to be made smaller.
        """
        self._target, self._qemu, self._seed = target, qemu, seed
        self._shrinking = shrinking
        self._drawer = Drawer(target, seed)
        self._confirmer = Confirmer(target, qemu, f"vmtest fuzz device {target.name} --seed {seed}")
        self._coverage = Coverage() if feedback else None
        self._corpus = Corpus(target.arena, self._drawer.sequence)
        self._avoided = Avoided(target)
        self._at_once: set[str] = set()
        self.known: set[str] = set()
        self.report = Report(target=target, seed=seed)

    def run(self, *, seconds: float, told: Callable[[Report, Reproducer | None], None]) -> Report:
        """Go on for so many seconds; ``told`` is called now and then, and with each crash of a new signature."""
        self._told = told
        begin = time.monotonic()
        numbers, lives = count(), count(1)

        def goes_on() -> bool:
            self.report.seconds = time.monotonic() - begin
            return self.report.seconds < seconds

        while goes_on():
            made = self._life(numbers, next(lives) % LOCKSTEP == 0, goes_on)
            goes_on()
            told(self.report, made)
        return self.report

    def _life(self, numbers: count[int], lockstep: bool, goes_on: Callable[[], bool]) -> Reproducer | None:
        """One QEMU, from its start to its end; what it has ended by, where that is new."""
        pieces: list[Sequence[Access]] = []
        crash = None
        told = self._coverage is not None
        with Session(self._target.board, self._qemu, traced=True, told=told, lost=PATIENCE) as session:
            session.run(self._target.begin)
            for sequence in range(LIFE):
                if crash or not goes_on():
                    break
                if sequence and sequence % RESET == 0:
                    pieces.append((Reset(), *self._target.begin))
                    self.report.resets += 1
                    if crash := session.run(pieces[-1]).crash:
                        break
                pieces.append([one for one in self._sequence(next(numbers)) if one not in self._avoided])
                crash = self._tried(session, pieces[-1], lockstep)
        return self._ended(pieces, crash) if crash else None

    def _sequence(self, number: int) -> list[Access]:
        random = Random(f"{self._seed} {number} changed")
        if self._corpus and random.random() < CHANGED:
            return self._corpus.sequence(random)
        return self._drawer.draw(number)

    def _tried(self, session: Session, accesses: Sequence[Access], lockstep: bool) -> Crash | None:
        """How QEMU ends by a sequence. One that shows something new is kept."""
        report = self.report
        if session.events:
            session.events.take()  # of a reset, or of time
        done = session.run(accesses, lockstep=lockstep)
        report.operations += len(done.replies)
        report.sequences += 1
        if self._coverage and session.events:
            if self._coverage.new(session.events.take(), accesses, done.replies) and not done.crash:
                self._corpus.add(accesses)
            report.events, report.features = len(self._coverage.kinds), self._coverage.features
            report.corpus = len(self._corpus)
        return done.crash

    def _ended(self, pieces: Sequence[Sequence[Access]], crash: Crash) -> Reproducer | None:
        """QEMU has: the reproducer, where that is new."""
        report = self.report
        report.ends += 1
        if crash.is_clean:
            report.clean += 1
            return None
        report.seen[crash.key] = report.seen.get(crash.key, 0) + 1
        if crash.key in self._at_once and crash.done:
            self._avoided.add(until(pieces[-1], crash.done)[-1])
        tries = report.unconfirmed.get(crash.key, 0)
        if crash.key in self.known or crash.key in report.crashes or tries >= TRIES:
            return None
        report.doing = f"confirming {crash.key}"
        self._told(report, None)
        begin = time.monotonic()
        found = self._confirmer.confirmed(
            pieces, crash.kind, self.known | report.crashes.keys(), seconds=self._shrinking
        )
        report.shrinking += time.monotonic() - begin
        report.doing = ""
        if found is None:
            report.unconfirmed[crash.key] = tries + 1
            return None
        made, key = found
        report.unconfirmed.pop(key, None)
        report.crashes[key] = made
        if len(made.accesses) <= len(self._target.begin) + 1:
            self._at_once.add(key)
            self._avoided.add(made.accesses[-1])
        return made
