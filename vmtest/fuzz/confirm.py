"""A crash that came in the midst of a run, as a QEMU that was just started shows it: confirmed, and made small."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakSet

from vmtest.devices.access import UNSAID, Access, Fill, Flush, encode
from vmtest.devices.crash import Crash
from vmtest.devices.reproducer import SETTLE, TRIES, Reproducer
from vmtest.devices.requests import until
from vmtest.devices.session import LOST, SOON, Session
from vmtest.devices.target import Target
from vmtest.fuzz.shrink import Shrinking
from vmtest.fuzz.standby import Spare, Warm
from vmtest.host import Qemu

__all__ = ["Confirmer", "Found", "Stopped"]

TIMES = 3
"""Tries by which it is told whether a crash comes each time; one that does not is tried so often as well."""
AT_ONCE = 1024
"""Bytes of requests that QEMU takes before its main loop goes on."""
MISLED = 8, 0.4
"""So often, and in so much of all tries, a QEMU that is reset may end where one that was just started does not: then it
is asked no more, which would take longer."""
SOON_LOST = 0.5
"""Seconds after which a QEMU that does nothing is given up while its hang is made smaller."""
LAST = (1, 2, 8, 32)
"""So many of the last pieces are tried, and then all."""


class Found(NamedTuple):
    """A crash that came again, and what it comes by; ``is_smallest`` where there is nothing more to be tried. Once it
    was looked at, ``is_steady`` says whether it comes each time, and ``settle`` how many seconds behind the last
    operation it may come. ``shrinking`` is where its being made smaller has come to, and ``checks`` how often what
    comes each time is seen to come by fewer operations. It comes on a QEMU that is reset, too, where it
    ``survives_reset``. One operation of a machine that was made ready does ``by_itself``.
    """

    crash: Crash
    reproducer: Reproducer
    is_smallest: bool = False
    is_steady: bool | None = None
    settle: float = 0.0
    shrinking: Shrinking | None = None
    checks: int = 1
    survives_reset: bool = True
    by_itself: bool = False

    @property
    def is_unfinished(self) -> bool:
        """Whether something was not tried: the time was over, or it came too seldom."""
        return self.shrinking is None or not self.shrinking.is_over

    @property
    def accesses(self) -> Sequence[Access]:
        """What it comes by."""
        return self.reproducer.accesses


class Stopped(Exception):
    """A Confirmer was told to end."""


class Confirmer:
    """Tries crashes of a target again. ``source`` says what has found them, ``clear`` what becomes of its memory where
    QEMU is reset instead of started: all of the arena is cleared.
    """

    def __init__(self, target: Target, qemu: Qemu, source: str, *, clear: Sequence[Fill] | None = None) -> None:
        self._target, self._qemu, self._source = target, qemu, source
        self._clear = (Fill(*target.arena, 0),) if clear is None else clear
        self._live, self._is_stopped, self._lock = WeakSet[Session](), False, threading.Lock()

    def stop(self) -> None:
        """End what another thread has it do: that is Stopped there."""
        with self._lock:
            self._is_stopped = True
            for session in self._live:
                session.process.kill()

    def confirmed(
        self, pieces: Sequence[Sequence[Access]], kind: str, known: Collection[str], alone: Access | None = None
    ) -> Found | str | None:
        """The crash, by the last pieces of what QEMU was told, as few as do, or by the operation ``alone`` that it has
        not answered; ``kind`` is what it is. None where it does not come again, and the key of one that is ``known``
        where it comes to that.
        """
        other = None
        lost, settle = _lost(kind), 0.0 if kind == "hang" else SETTLE
        for tail in _tails(pieces, alone):
            accesses = [*self._target.begin, *tail]
            for lockstep in (True, False) if len(tail) > 1 else (True,):
                crash = self._ends(accesses, lockstep, settle, lost)
                if crash and crash.key in known:
                    other = crash.key
                elif crash and not crash.is_clean:
                    lockstep, accesses = self._mode(accesses, lockstep, crash)
                    return self._found(accesses, lockstep, crash)
        return other

    def again(self, made: Reproducer) -> Found | None:
        """The crash of a reproducer, as that says it, in its mode or the other one; None where it does not come."""
        is_hang = made.signature.startswith("no answer")
        lost, settle = _lost("hang" if is_hang else ""), 0.0 if is_hang else SETTLE
        for lockstep in (made.lockstep, not made.lockstep) * TRIES:
            crash = self._ends(made.accesses, lockstep, settle, lost)
            if crash and made.is_same(crash, self._qemu):
                return self._found(made.accesses, lockstep, crash)
        return None

    def _found(self, accesses: Sequence[Access], lockstep: bool, crash: Crash) -> Found | None:
        """None for a hang that is none, but a QEMU that was slow."""
        if crash.kind == "hang" and not self._comes(accesses, lockstep, crash, SETTLE, LOST):
            return None
        version = ".".join(map(str, self._qemu.version))
        made = Reproducer(
            binary=self._qemu.name,
            board=self._target.board,
            accesses=tuple(accesses),
            lockstep=lockstep,
            signature=crash.signature,
            words=crash.last_words,
            title=f"{self._target.name}: {crash.kind}{crash.key.removeprefix(crash.signature)}",
            source=self._source,
            seen={version: crash.key},
        )
        return Found(crash, made, by_itself=len(accesses) <= len(self._target.begin) + 1)

    def _mode(self, accesses: list[Access], lockstep: bool, crash: Crash) -> tuple[bool, list[Access]]:
        """The mode in which it comes most often, in lockstep where that is as good, and the operations for that."""
        if crash.kind == "hang":
            return lockstep, accesses  # that takes too long
        best = 0, lockstep, accesses
        # What is left out of the flushed ones does not shift any more what QEMU takes at once.
        for mode, several in ((True, accesses), (False, _flushed(accesses)), (False, accesses)):
            times = len(self._tries(several, mode, crash))
            best = (times, mode, several) if times > best[0] else best
            if times == TIMES:
                break
        return best[1:]

    def _tries(self, accesses: Sequence[Access], lockstep: bool, crash: Crash) -> list[int]:
        """Behind how many operations it comes, for each of some tries that it does."""
        ends = [self._ends(accesses, lockstep, SETTLE, _lost(crash.kind)) for _ in range(TIMES)]
        return [found.done for found in ends if found is not None and found.key == crash.key]

    def _comes(self, accesses: Sequence[Access], lockstep: bool, crash: Crash, settle: float, lost: float) -> bool:
        ended = self._ends(accesses, lockstep, settle, lost)
        return ended is not None and ended.key == crash.key

    def _comes_each_time(self, accesses: Sequence[Access], lockstep: bool, crash: Crash, lost: float) -> bool:
        """With no time behind it."""
        return all(self._comes(accesses, lockstep, crash, 0.0, lost) for _ in range(TIMES))

    def _ends(self, accesses: Sequence[Access], lockstep: bool, settle: float, lost: float = LOST) -> Crash | None:
        with self._session(lost) as session:
            return session.run(accesses, lockstep=lockstep, settle=settle).crash

    def _session(self, lost: float) -> Session:
        session = Session(self._target.board, self._qemu, traced=True, lost=lost)
        with self._lock:
            self._live.add(session)
        if self._is_stopped:
            session.close()
            raise Stopped
        return session

    def _waited(self, accesses: Sequence[Access], lockstep: bool, lost: float) -> float:
        """Seconds from the first operation to the end."""
        with self._session(lost) as session:
            begin = time.monotonic()
            session.run(accesses, lockstep=lockstep, settle=SETTLE)
            return time.monotonic() - begin

    def smaller(self, found: Found, *, seconds: float) -> Found:
        """The same, as small as so many seconds allow. What does not come any more stays as it is."""
        if found.is_steady is None:
            found = self._looked_at(found)
            found = found._replace(survives_reset=self._survives_reset(found))
        if found.is_smallest:
            return found
        crash, lockstep, settle, lost = found.crash, found.reproducer.lockstep, found.settle, _lost(found.crash.kind)
        misled, tries = 0, 0

        def same(candidate: Sequence[Access]) -> bool:
            # Most do not, which one that is reset tells sooner; what does is seen on one that was just started.
            nonlocal misled, tries
            tries += 1
            is_proved = False
            if found.survives_reset and misled < max(MISLED[0], MISLED[1] * tries):
                ended, is_new = warm.ends(candidate, lockstep, settle)
                if ended is None:
                    return False
                is_proved = is_new and ended == crash.key
            checks = (found.checks if found.is_steady else TIMES) - is_proved
            comes = (spare.ends(candidate, lockstep, settle) == crash.key for _ in range(checks))
            is_so = all(comes) if found.is_steady else is_proved or any(comes)
            misled += not is_so
            return is_so

        shrinking = found.shrinking or Shrinking(found.accesses, len(self._target.begin))
        with Spare(lambda: self._session(lost)) as spare, Warm(spare, self._clear) as warm:
            shrinking.go_on(same, seconds=seconds)
            small = shrinking.accesses
            if found.is_steady and not all(
                spare.ends(small, lockstep, settle) == crash.key for _ in range(TIMES - found.checks)
            ):
                # It comes by chance, or a little later: more time, and each is to be seen more often.
                return found._replace(checks=found.checks + 1, settle=max(settle, SOON), shrinking=None)
        if crash.kind == "hang" and not self._comes(small, lockstep, crash, SETTLE, LOST):
            return found._replace(is_smallest=True)  # it was slow, and no more
        made = replace(found.reproducer, accesses=tuple(small))
        return found._replace(reproducer=made, shrinking=shrinking, is_smallest=shrinking.is_over)

    def _survives_reset(self, found: Found) -> bool:
        with Spare(lambda: self._session(_lost(found.crash.kind))) as spare, Warm(spare, self._clear) as warm:
            warm.ends(self._target.begin, found.reproducer.lockstep, 0.0)
            how, is_new = warm.ends(found.accesses, found.reproducer.lockstep, found.settle)
        return is_new or how is not None

    def _looked_at(self, found: Found) -> Found:
        """With whether it comes each time, and when; without what is done behind it."""
        crash, lockstep, accesses = found.crash, found.reproducer.lockstep, found.accesses
        lost = _lost(crash.kind)
        done = self._tries(accesses, lockstep, crash)
        if not done:
            return found._replace(is_smallest=True)
        is_steady = len(done) == TIMES
        shorter = until(accesses, done[0])
        if len(set(done)) == 1 and is_steady and self._comes_each_time(shorter, lockstep, crash, lost):
            made = replace(found.reproducer, accesses=tuple(shorter))  # what comes later does nothing for it
            return found._replace(reproducer=made, is_steady=True)
        # It is a timer's doing, or the main loop's: some time later.
        settle = min(SETTLE, SOON + 1.5 * self._waited(accesses, lockstep, lost))
        return found._replace(is_steady=is_steady, settle=settle)


def _tails(pieces: Sequence[Sequence[Access]], alone: Access | None) -> Iterator[Sequence[Access]]:
    """What a crash is tried by, one after another: more and more of what was done."""
    if alone:
        yield (alone,)
    for last in (*(some for some in LAST if some < len(pieces)), len(pieces)):
        yield [access for piece in pieces[-last:] for access in piece]


def _lost(kind: str) -> float:
    return SOON_LOST if kind == "hang" else LOST


def _flushed(accesses: Sequence[Access]) -> list[Access]:
    """The same, with a Flush wherever QEMU's main loop has run: it takes so many bytes at once (system/qtest.c)."""
    found, size = list[Access](), 0
    for access in accesses:
        if isinstance(access, UNSAID):
            size = 0
        elif size and size // AT_ONCE < (size + len(encode(access))) // AT_ONCE:
            found.append(Flush())
            size = 0
        size += 0 if isinstance(access, UNSAID) else len(encode(access)) + 1
        found.append(access)
    return found
