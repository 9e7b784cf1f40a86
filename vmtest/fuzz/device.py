"""Fuzzing a device of a stock QEMU: sequences, and each way in which QEMU ends by them, as a reproducer."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from random import Random

from vmtest.devices.access import Access, Load, Reset
from vmtest.devices.crash import Crash
from vmtest.devices.reproducer import Reproducer
from vmtest.devices.session import Session
from vmtest.devices.target import Target
from vmtest.fuzz.choice import Choice
from vmtest.fuzz.confirm import Confirmer, Found, until
from vmtest.fuzz.corpus import Corpus
from vmtest.fuzz.coverage import Coverage
from vmtest.fuzz.sequences import Avoided, Drawer, Way
from vmtest.host import Qemu

__all__ = ["Hunt", "Report"]

RESET = 8
"""Sequences between two resets of the machine."""
LIFE = 400
"""Sequences of one QEMU: what it has been told is all tried where a crash does not come of less."""
LOCKSTEP = 8
"""One life in so many has each operation wait for the last one's answer."""
PATIENCE = 0.5
"""Seconds after which a QEMU that does nothing is given up: that it hangs is seen where it is confirmed."""
SHARE = 0.5
"""How much of the time may go to making crashes smaller: what is left of it is done later."""
FIRST, TURN = 4.0, 10.0
"""Seconds that each has at once, and at most when it is its turn again."""
LAST = 30.0
"""Seconds that each has when the time is over."""
TRIES = 3
"""How often a crash is tried again, of another life each time, that did not come."""
SLOW = 0.03
"""Seconds: a sequence that takes longer is not kept, or all that follows would be as slow."""
CHANGED: Way = (None, ())
"""The way to make a sequence of one that is kept: taken as often as all others together where it brings as much."""


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
        self, target: Target, qemu: Qemu, seed: int, *, feedback: bool = True, is_shrinking: bool = True
    ) -> None:
        """With ``feedback`` sequences that show something new are kept, and changed. Crashes are made smaller where it
        ``is_shrinking``.
        """
        self._target, self._qemu, self._seed = target, qemu, seed
        self._is_shrinking = is_shrinking
        self._drawer = Drawer(target, seed)
        self._confirmer = Confirmer(target, qemu, f"vmtest fuzz device {target.name} --seed {seed}")
        self._coverage = Coverage() if feedback else None
        self._corpus = Corpus(target.arena, self._drawer.sequence)
        self._avoided = Avoided(target)
        self._ways = Choice({**self._drawer.ways, CHANGED: 1.0} if feedback else self._drawer.ways)
        self._untold = set[str]()
        self._look = Load(target.arena[0], 1)
        self._at_once: set[str] = set()
        # What is not as small as it gets. A hang takes long to look into: that is for the end.
        self._soon, self._late = OrderedDict[str, Found](), OrderedDict[str, Found]()
        self.known: set[str] = set()
        self.report = Report(target=target, seed=seed)

    def run(self, *, seconds: float, told: Callable[[Report, Reproducer | None], None]) -> Report:
        """Go on for so many seconds, and until what was found is small. ``told`` is called now and then, with each
        crash that is new, and again where it has become smaller.
        """
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
            if self._soon and (made or self._allowed() > FIRST):
                told(self.report, self._smaller(self._soon, max(FIRST, min(TURN, self._allowed()))))
        for several in (self._soon, self._late):
            for _ in range(len(several)):
                told(self.report, self._smaller(several, LAST))
        goes_on()
        return self.report

    def _allowed(self) -> float:
        """Seconds that may go to making crashes smaller now."""
        return SHARE * self.report.seconds - self.report.shrinking

    def _smaller(self, several: OrderedDict[str, Found], seconds: float) -> Reproducer:
        """The last one of several crashes that are not as small as they get."""
        key, found = several.popitem()
        with self._doing(f"making smaller: {key}"):
            found = self._confirmer.smaller(found, seconds=seconds)
        made = self.report.crashes[key] = found.reproducer
        if not found.is_smallest:
            several[key] = found
            several.move_to_end(key, last=False)  # the others first
        if [one for one in made.accesses if one not in self._target.begin] == [made.accesses[-1]]:
            self._at_once.add(key)
            self._avoided.add(made.accesses[-1])
        return made

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Tell it meanwhile, and count the time."""
        self.report.doing = what
        self._told(self.report, None)
        begin = time.monotonic()
        yield
        self.report.shrinking += time.monotonic() - begin
        self.report.seconds += time.monotonic() - begin
        self.report.doing = ""

    def _life(self, numbers: count[int], lockstep: bool, goes_on: Callable[[], bool]) -> Reproducer | None:
        """One QEMU, from its start to its end; what it has ended by, where that is new."""
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
        return self._ended(pieces, crash, lockstep) if crash else None

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
            crash = later and later._replace(done=len(done.replies))
        report.operations += len(done.replies)
        report.sequences += 1
        if self._coverage and session.events:
            lines = session.events.take()
            is_slow = time.perf_counter() - begin > SLOW
            gained = self._coverage.new(lines, accesses, done.replies)
            if gained and not is_slow and crash is None:
                self._corpus.add(accesses)
            self._ways.came(way, gained, time.perf_counter() - begin + (self._start if crash else 0))
            if crash is None and (loud := self._coverage.loud(lines)):
                self._untold |= session.untell(loud)
            report.events, report.features = len(self._coverage.kinds), self._coverage.features
            report.corpus = len(self._corpus)
        return crash

    def _ended(self, pieces: Sequence[Sequence[Access]], crash: Crash, lockstep: bool) -> Reproducer | None:
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
        with self._doing(f"confirming: {crash.key}"):
            found = self._confirmer.confirmed(pieces, crash.kind, self.known | report.crashes.keys())
        if found is None:
            report.unconfirmed[crash.key] = tries + 1
            return None
        key = found.crash.key
        report.unconfirmed.pop(key, None)
        report.crashes[key] = found.reproducer
        if self._is_shrinking:
            (self._late if found.crash.kind == "hang" else self._soon)[key] = found
        return found.reproducer
