"""A crash that came in the midst of a run, as a QEMU that was just started shows it: confirmed, and made small."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from vmtest.closing import Closing
from vmtest.devices.access import UNSAID, Access, Fill, Flush, Reset, encode
from vmtest.devices.crash import Crash
from vmtest.devices.reproducer import SETTLE, Reproducer
from vmtest.devices.session import LOST, Board, Session
from vmtest.devices.target import Target
from vmtest.fuzz.shrink import shrink
from vmtest.host import Qemu

__all__ = ["BUDGET", "Confirmer", "until"]

BUDGET = 45.0
"""Seconds in which a crash is made smaller."""
SOON = 0.02
"""Seconds in which QEMU's main loop has run."""
TIMES = 3
"""Tries by which it is told whether a crash comes each time; one that does not is tried so often as well."""
AT_ONCE = 1024
"""Bytes of requests that QEMU takes before its main loop goes on."""
MISLED = 8
"""So often a QEMU that is reset may end where one that was just started does not: then it is asked no more."""
SOON_LOST = 0.5
"""Seconds after which a QEMU that does nothing is given up while its hang is made smaller."""
LAST = (1, 2, 8, 32)
"""So many of the last pieces are tried, and then all."""


class Confirmer:
    """Tries crashes of a target again. ``source`` says what has found them."""

    def __init__(self, target: Target, qemu: Qemu, source: str) -> None:
        self._target, self._qemu, self._source = target, qemu, source

    def confirmed(
        self, pieces: Sequence[Sequence[Access]], kind: str, known: Collection[str], *, seconds: float = BUDGET
    ) -> tuple[Reproducer, str] | None:
        """The smallest reproducer that was found, of the last pieces of what QEMU was told, as few as do; and the
        crash's key; ``kind`` is what it is. None where it does not come again, or comes to one that is ``known``.
        """
        lost = SOON_LOST if kind == "hang" else LOST
        for last in (*LAST, len(pieces)):
            accesses = [*self._target.begin, *(access for piece in pieces[-last:] for access in piece)]
            for mode in (True, False):
                found = self._ends(accesses, mode, SETTLE, lost)
                if found and not found.is_clean and found.key not in known:
                    return self._smallest(accesses, found, seconds), found.key
            if last >= len(pieces):
                break
        return None

    def _ends(self, accesses: Sequence[Access], lockstep: bool, settle: float, lost: float = LOST) -> Crash | None:
        with Session(self._target.board, self._qemu, traced=True, lost=lost) as session:
            return session.run(accesses, lockstep=lockstep, settle=settle).crash

    def _waited(self, accesses: Sequence[Access], lockstep: bool, lost: float) -> float:
        """Seconds from the first operation to the end."""
        with Session(self._target.board, self._qemu, lost=lost) as session:
            begin = time.monotonic()
            session.run(accesses, lockstep=lockstep, settle=SETTLE)
            return time.monotonic() - begin

    def _how(self, accesses: Sequence[Access], crash: Crash, lost: float) -> tuple[int, bool, Sequence[Access]]:
        """How often of some tries it comes, in the mode in which that is most often: in lockstep where that is as good;
        and the operations for that.
        """

        def times(several: Sequence[Access], lockstep: bool) -> int:
            ends = (self._ends(several, lockstep, SETTLE, lost) for _ in range(TIMES))
            return sum(found is not None and found.key == crash.key for found in ends)

        # What is left out of these does not shift any more what QEMU takes at once.
        modes = ((accesses, True), (_flushed(accesses), False), (accesses, False))
        found = [(times(several, lockstep), lockstep, several) for several, lockstep in modes]
        return max(found, key=lambda one: one[0])

    def _smallest(self, accesses: Sequence[Access], crash: Crash, seconds: float) -> Reproducer:
        settle, lost = 0.0, SOON_LOST if crash.kind == "hang" else LOST
        afresh, misled = (Reset(), Fill(*self._target.arena, 0)), 0
        often, lockstep, accesses = self._how(accesses, crash, lost)

        def ends(candidate: Sequence[Access]) -> bool:
            tries = (self._ends(candidate, lockstep, settle, lost) for _ in range(1 if often == TIMES else TIMES))
            return any(found is not None and found.key == crash.key for found in tries)

        def same(candidate: Sequence[Access]) -> bool:
            # Most do not, which one that is reset tells sooner; what does is seen on one that was just started.
            nonlocal misled
            if misled < MISLED and not warm.ends((*afresh, *candidate), lockstep, settle):
                return False
            is_so = ends(candidate)
            misled += not is_so
            return is_so

        again = self._ends(accesses, lockstep, SETTLE, lost)
        if again and again.done == crash.done and ends(until(accesses, crash.done)):
            accesses = until(accesses, crash.done)  # what comes later does nothing for it
        else:  # it is a timer's doing, or the main loop's: some time later
            settle = min(SETTLE, SOON + 1.5 * self._waited(accesses, lockstep, lost))
        with _Warm(self._target.board, self._qemu, lost) as warm:
            small: Sequence[Access] = shrink(accesses, same, seconds=seconds, begin=len(self._target.begin))
        if lost < LOST and not self._ends(small, lockstep, settle):
            small = accesses  # it was slow, and no more
        version = ".".join(map(str, self._qemu.version))
        return Reproducer(
            binary=self._qemu.path.name,
            board=self._target.board,
            accesses=tuple(small),
            lockstep=lockstep,
            signature=crash.signature,
            title=f"{self._target.name}: {crash.kind}{crash.key.removeprefix(crash.signature)}",
            source=self._source,
            seen={version: crash.key},
        )


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


class _Warm(Closing):
    """A QEMU that goes on from one try to the next, as long as it lives."""

    def __init__(self, board: Board, qemu: Qemu, lost: float) -> None:
        self._board, self._qemu, self._lost = board, qemu, lost
        self._session: Session | None = None

    def ends(self, accesses: Sequence[Access], lockstep: bool, settle: float) -> bool:
        """Whether it ends by these."""
        if self._session is None:
            self._session = Session(self._board, self._qemu, lost=self._lost)
        if self._session.run(accesses, lockstep=lockstep, settle=settle).crash is None:
            return False
        self.close()
        return True

    def close(self) -> None:
        """End it."""
        if self._session is not None:
            self._session.close()
            self._session = None


def until(accesses: Sequence[Access], done: int) -> Sequence[Access]:
    """Up to the operation behind so many that were answered."""
    answered = 0
    for at, access in enumerate(accesses):
        answered += not isinstance(access, UNSAID)
        if answered > done:
            return accesses[: at + 1]
    return accesses
