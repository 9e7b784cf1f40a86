"""Fuzzing a device of a stock QEMU: sequences, and each way in which QEMU ends by them, as a reproducer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

from vmtest.devices.access import Access, Load, Reset
from vmtest.devices.crash import Crash
from vmtest.devices.reproducer import Reproducer
from vmtest.devices.requests import until
from vmtest.devices.session import Session
from vmtest.devices.target import Target
from vmtest.fuzz.backlog import Backlog, Came
from vmtest.fuzz.choice import Choice
from vmtest.fuzz.confirm import Confirmer
from vmtest.fuzz.corpus import Corpus
from vmtest.fuzz.coverage import Coverage
from vmtest.fuzz.sequences import Avoided, Drawer, Way
from vmtest.host import Qemu
from vmtest.host.system import unhurried

__all__ = ["Hunt", "Report", "by_itself"]

RESET = 8
"""Sequences between two resets of the machine."""
LIFE = 400
"""Sequences of one QEMU: what it has been told is all tried where a crash does not come of less."""
LOCKSTEP = 8
"""One life in so many has each operation wait for the last one's answer."""
PATIENCE = 0.5
"""Seconds after which a QEMU that does nothing is given up: that it hangs is seen where it is confirmed."""
OFTEN = 0.5
"""Seconds after which it is told how far it has come."""
TRIES = 3
"""How often a crash is tried again, of another life each time, that did not come, or as another one."""
SLOW = 0.03
"""Seconds: a sequence that takes longer is not kept, or all that follows would be as slow."""
CHANGED: Way = (None, ())
"""The way to make a sequence of one that is kept."""
AS_OFTEN = 0.15
"""How often that is taken where it brings as much as the others, of what these are together."""


@dataclass(kw_only=True)
class Report:
    """What has come of it so far: ``crashes`` are by Crash.key; ``unconfirmed`` did not come again on a QEMU that was
    just started, so often; ``ends`` counts all ends of QEMU, ``clean`` those in order. ``events`` are the kinds that
    QEMU told, ``features`` what was new of them, ``corpus`` how many sequences were kept for that. Sequences were done
    for ``fuzzing`` of the ``seconds``; ``shrinking`` is how many went to what crashed, beside that, of all ``jobs``
    together, and ``doing`` what is done of it now.
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
    fuzzing: float = 0.0
    shrinking: float = 0.0
    crashes: dict[str, Reproducer] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    unconfirmed: dict[str, int] = field(default_factory=dict)


def by_itself(made: Reproducer, target: Target) -> Access | None:
    """The one operation that ends QEMU on a machine that was made ready; None where it takes more."""
    *before, last = made.accesses
    return last if all(one in target.begin for one in before) else None


class Hunt:
    """A run on one target. ``report`` is what has come of it."""

    def __init__(
        self,
        target: Target,
        qemu: Qemu,
        seed: int,
        *,
        feedback: bool = True,
        counting: bool = False,
        confirming: bool = True,
    ) -> None:
        """With ``feedback`` sequences that show something new are kept, and changed, and more of what has brought it is
        drawn; when it is ``counting`` alone, what is new is counted. Without ``confirming`` crashes are counted, and
        that is all.
        """
        self._target, self._qemu, self._seed = target, qemu, seed
        self._is_confirming, self._is_guided = confirming, feedback
        self._drawer = Drawer(target)
        self._coverage = Coverage() if feedback or counting else None
        self._corpus = Corpus(target.arena, self._drawer.sequence)
        self._avoided = Avoided(target)
        self._ways = Choice({**self._drawer.ways, CHANGED: AS_OFTEN} if feedback else self._drawer.ways)
        self._untold = set[str]()
        self._look = Load(target.arena[0], 1)
        self._at_once: set[str] = set()
        self._asked, self._others = set[str](), Counter[str]()
        self._known: set[str] = set()
        self._is_stopped = False
        self.report = Report(target=target, seed=seed)

    def learn(self, key: str, alone: Access | None) -> None:
        """Another run has found this crash; by one operation ``alone``, where there is one. From any thread."""
        self._known.add(key)
        if alone:
            self._avoid(key, alone)

    def stop(self) -> None:
        """Have ``run`` end, without what is still to be looked into. From any thread."""
        self._is_stopped = True

    def run(self, *, seconds: float, told: Callable[[Report, Reproducer | None], None]) -> Report:
        """Go on for so many seconds, and until what was found is small. ``told`` is called now and then, with each
        crash that is new, and again where it has become smaller.
        """
        begin = time.monotonic()
        numbers, lives = count(), count(1)
        confirmer = Confirmer(self._target, self._qemu, f"vmtest fuzz device {self._target.name} --seed {self._seed}")
        with Backlog(confirmer, self._known) as backlog, unhurried():

            def heard(came: Came | None) -> None:
                self.report.seconds, self.report.shrinking = time.monotonic() - begin, backlog.spent
                self.report.fuzzing, self.report.doing = min(self.report.seconds, seconds), backlog.doing
                told(self.report, self._crash(came) if came else None)

            def goes_on() -> bool:
                for came in backlog.came():
                    heard(came)
                if time.monotonic() - begin - self.report.seconds > OFTEN:
                    heard(None)
                return time.monotonic() - begin < seconds and not self._is_stopped

            heard(None)
            while goes_on():
                crash, pieces = self._life(numbers, next(lives) % LOCKSTEP == 0, goes_on)
                if crash and self._is_asked(crash, backlog):
                    self._asked.add(crash.key)
                    alone = until(pieces[-1], crash.done)[-1] if crash.done else None
                    backlog.add(crash.key, crash.kind, pieces, alone)
                heard(None)
            for came in backlog.rest(seconds):
                heard(came)
                if self._is_stopped:
                    break
            heard(None)
        return self.report

    def _crash(self, came: Came) -> Reproducer | None:
        """What was looked into goes into the report: the reproducer, where there is one."""
        key, found = came
        self._asked.discard(key)
        if isinstance(found, str):
            self._others[key] += 1  # this time, on a QEMU that was just started, it came to that one
            return None
        if found is None:
            if key not in self.report.crashes:
                self.report.unconfirmed[key] = self.report.unconfirmed.get(key, 0) + 1
            return None
        before = self.report.crashes.get(found.crash.key)
        made = replace(found.reproducer, unfinished=found.is_unfinished)
        if before and before.size <= made.size:
            return None  # it has become no smaller, or by what else it came it was
        self.report.unconfirmed.pop(found.crash.key, None)
        self.report.crashes[found.crash.key] = made
        if alone := by_itself(made, self._target):
            self._avoid(found.crash.key, alone)
        return made

    def _avoid(self, key: str, access: Access) -> None:
        """It ends QEMU by itself: it is left out, and what else comes to the same."""
        self._at_once.add(key)
        self._avoided.add(access)

    def _life(
        self, numbers: count[int], lockstep: bool, goes_on: Callable[[], bool]
    ) -> tuple[Crash | None, Sequence[Sequence[Access]]]:
        """One QEMU, from its start to its end: how it has ended, if it has, and what it was told."""
        pieces: list[Sequence[Access]] = []
        crash = None
        told, begin = self._coverage is not None, time.perf_counter()
        with Session(
            self._target.board, self._qemu, traced=True, told=told, untold=self._untold, lost=PATIENCE
        ) as session:
            session.run(self._target.begin)
            self._start = time.perf_counter() - begin
            for sequence in range(LIFE):
                if crash or not goes_on():
                    break
                if sequence and sequence % RESET == 0:
                    pieces.append((Reset(), *self._target.begin))
                    self.report.resets += 1
                    if crash := session.run(pieces[-1]).crash:
                        break
                way, accesses = self._sequence(next(numbers))
                pieces.append([one for one in accesses if one not in self._avoided])
                crash = self._tried(session, pieces[-1], lockstep, way)
        if crash and crash.key in self._at_once and crash.done:
            self._avoided.add(until(pieces[-1], crash.done)[-1])
        return crash, pieces

    def _sequence(self, number: int) -> tuple[Way, list[Access]]:
        """The way that is taken, and what comes of it."""
        random = Random(f"{self._seed} {number} changed")
        way = self._ways.one(random)
        if way != CHANGED:
            return way, self._drawer.sequence(random, way)
        return way, self._corpus.sequence(random) if self._corpus else self._drawer.sequence(random)

    def _tried(self, session: Session, accesses: Sequence[Access], lockstep: bool, way: Way) -> Crash | None:
        """How QEMU ends by a sequence. One that shows something new is kept."""
        report = self.report
        if session.events:
            session.events.take()  # of a reset, or of time
        begin = time.perf_counter()
        done = session.run(accesses, lockstep=lockstep)
        crash = done.crash
        if session.events and crash is None:  # what QEMU's main loop does later is told later
            later = session.run((self._look,)).crash
            crash = later and later._replace(done=0)  # by which operation is not known
        report.operations += len(done.replies)
        report.sequences += 1
        if self._coverage and session.events:
            lines = session.events.take()
            is_slow = time.perf_counter() - begin > SLOW
            gained = self._coverage.new(lines, accesses, done.replies)
            if self._is_guided:
                self._drawer.learn(accesses, done.replies)
                if gained and not is_slow and crash is None:
                    self._corpus.add(accesses)
                self._ways.came(way, gained, time.perf_counter() - begin + (self._start if crash else 0))
            if crash is None and (loud := self._coverage.loud(lines)):
                self._untold |= session.untell(loud)
            report.events, report.features = len(self._coverage.kinds), self._coverage.features
            report.corpus = len(self._corpus)
        return crash

    def _is_asked(self, crash: Crash, backlog: Backlog) -> bool:
        """QEMU has ended, which is counted; whether that is to be looked into."""
        report, key = self.report, crash.key
        report.ends += 1
        if crash.is_clean:
            report.clean += 1
            return False
        report.seen[key] = report.seen.get(key, 0) + 1
        if not self._is_confirming or key in self._asked or key in self._known:
            return False
        if key in report.crashes:
            return backlog.wants(key)
        return report.unconfirmed.get(key, 0) + self._others[key] < TRIES
