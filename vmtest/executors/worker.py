"""The two ends of a worker process: cases go in by batches, outcomes come out, and its death is an outcome too."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from importlib import import_module

from vmtest.closing import Closing
from vmtest.errors import HostError, UsageError
from vmtest.executors.base import RUNS, Engine, Row
from vmtest.executors.lives import lives
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import Isa

__all__ = ["Executor", "serve"]

BATCH = 512
"""Cases that go to a worker at a time: when it dies, what it had run of them is run again."""
LOOK = 0.05
"""Seconds after which a worker looks how far it has come, and whether who started it is still there."""
DEAF = 5.0
"""Seconds after which a worker that its engine cannot stop is killed."""
START = 30.0
"""Seconds that a worker may take to come up."""
HEAD = struct.Struct("<II")  # bytes that follow, and what they are of: cases or outcomes
ROOM = 1 << 20
"""Bytes that a pipe should hold: two batches of any instruction set."""
IDLE = RUNS.pack(0, 0)
READY = 0xFFFFFFFF


class Executor(Closing):
    """Runs batches of cases; use it as a context manager.

    ``name`` is as the user has given it, with an argument where there is one. ``deaths`` counts the cases that have
    killed what ran them: the worker, or what that runs them with.
    """

    def __init__(self, row: Row, isa: Isa, argument: str = "") -> None:
        """Raises HostError where the executor cannot be had here, with the reason."""
        self.name = f"{row.name}:{argument}" if argument else row.name
        self.isa = isa
        self.blind, self.rank = frozenset(row.blind), row.rank
        self.deaths = 0
        self._alive, self._one_at_a_time = False, threading.Lock()
        self._depth = 1
        self._idle_deaths = 0
        self._row, self._argument = row, [argument] if argument else []
        if why := import_module(row.module).lacks(isa, *self._argument):
            raise HostError(f"the executor {self.name} cannot be had here: {why}")
        self._lives = lives(row, isa, argument)

    @cached_property
    def description(self) -> str:
        """What exactly it is here, with its version."""
        return str(import_module(self._row.module).describe(self.isa, *self._argument))

    @property
    def label(self) -> str:
        """Its name, with its version in place of an argument: "qemu 10.0.2"."""
        if not self._argument:
            return self.name
        return " ".join([self._row.name, *self._version[:1]])

    @property
    def age(self) -> list[int]:
        """Less for a newer version."""
        return [-int(number) for version in self._version[:1] for number in version.split(".")]

    @property
    def _version(self) -> list[str]:
        return re.findall(r"\d+(?:\.\d+)+", self.description)

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """The outcomes of the cases, in their order. Raises HostError where the worker cannot be started, UsageError
        for a case of another instruction set.
        """
        if other := next((case.isa.name for case in cases if case.isa is not self.isa), ""):
            raise UsageError(f"a case of {other}, and this executor is for {self.isa.name}")
        with self._one_at_a_time:
            try:
                return self._run(cases)
            except BaseException:  # such as Ctrl-C: an answer may be under way that nobody waits for any more
                self._end()
                raise

    def _run(self, cases: Sequence[Case]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        under_way: deque[Sequence[Case]] = deque()
        sent = 0
        while len(outcomes) < len(cases):
            try:
                if not self._alive:
                    self._start()
                while len(under_way) < self._depth and sent < len(cases):
                    number, packed = _pack(cases[sent : sent + BATCH])
                    under_way.append(cases[sent : sent + number])
                    sent += number
                    self._send(packed)
                outcomes += self._answer()
                under_way.popleft()
            except EOFError:
                if under_way:
                    outcomes += self._recover(under_way[0])
                else:
                    self._bury()
                under_way.clear()
                sent = len(outcomes)
        return outcomes

    def _recover(self, batch: Sequence[Case]) -> list[Outcome]:
        """The outcomes up to that of which the worker has died, which run anew: they were not told yet."""
        culprit, last = self._bury()
        if culprit is None:
            return []
        found: list[Outcome] = []
        if before := batch[:culprit]:
            try:
                self._start()
                while len(found) < len(before):
                    self._send(_pack(before[len(found) :])[1])
                    found += self._answer()
            except EOFError:  # it dies of what an earlier one has left behind
                return found + self._recover(before[len(found) :])
        return [*found, last]

    def _bury(self) -> tuple[int | None, Outcome]:
        """Which case of its batch the worker has died of, None where it was idle, and how."""
        culprit, busy = RUNS.unpack(self._progress[:8])
        code = self._end()
        if not busy:
            self._idle_deaths += 1
            if self._idle_deaths > 3:
                raise HostError(f"the worker of the executor {self.name} ends by itself ({code})")
            return None, Outcome(status="died")
        if self._deaf:
            return culprit, Outcome(status="timeout")
        self.deaths += 1
        return culprit, Outcome(status="died", signal=max(0, -code))

    def _start(self) -> None:
        with ExitStack() as theirs, ExitStack() as ours:
            try:
                shared = _own(theirs, os.memfd_create("progress", os.MFD_CLOEXEC))
                os.truncate(shared, mmap.PAGESIZE)
                source, self._to = os.pipe()
                _own(theirs, source), _own(ours, self._to)
                self._from, sink = os.pipe()
                _own(ours, self._from), _own(theirs, sink)
                os.set_blocking(self._to, False)
                self._progress = ours.enter_context(mmap.mmap(shared, mmap.PAGESIZE))
                self._depth = _depth(self._to, self._from)
                self._early = bytearray()
                self._lives.begin((source, sink, shared))
            except OSError as error:
                self._lives.close()
                raise HostError(f"the worker of the executor {self.name} cannot be started: {error}") from None
            self._ours = ours.pop_all()
        self._alive, self._deaf = True, False
        try:
            _, ready = HEAD.unpack(self._receive(HEAD.size, START))
        except EOFError:
            self._end()
            words = self._lives.words()
            self._lives.close()
            raise HostError(
                f"the worker of the executor {self.name} does not come up", evidence={"its words": words[-4000:]}
            ) from None
        assert ready == READY

    def _send(self, packed: bytes) -> None:
        """Send it, and take what comes meanwhile, lest both ends wait."""
        view, poller = memoryview(packed), select.poll()
        poller.register(self._to, select.POLLOUT)
        poller.register(self._from, select.POLLIN)
        while view:
            try:
                view = view[os.write(self._to, view) :]
                continue
            except BlockingIOError:
                ready = dict(poller.poll(1000 * DEAF))
            except BrokenPipeError:
                raise EOFError from None
            if not ready:
                self._deaf = True
                raise EOFError
            if self._from in ready:
                piece = os.read(self._from, ROOM)
                if not piece:
                    raise EOFError
                self._early += piece

    def _answer(self) -> list[Outcome]:
        size, number = HEAD.unpack(self._receive(HEAD.size))
        found = Outcome.unpack(self.isa, self._receive(size), number)
        self.deaths += sum(outcome.status == "died" for outcome in found)
        self._idle_deaths = 0
        return found

    def _receive(self, size: int, patience: float = DEAF) -> bytes:
        """Raises EOFError where the worker has died, or has had to be killed."""
        pieces = [bytes(self._early[:size])]
        del self._early[:size]
        missing = size - len(pieces[0])
        moved, before = time.monotonic(), self._progress[:8]
        poller = select.poll()
        poller.register(self._from, select.POLLIN)
        while missing:
            if not poller.poll(100):
                if (now := self._progress[:8]) != before:
                    moved, before = time.monotonic(), now
                if time.monotonic() - moved > patience:
                    self._deaf = True
                    raise EOFError
                continue
            piece = os.read(self._from, missing)
            if not piece:
                raise EOFError
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def _end(self) -> int:
        """End the worker, if it is there; its exit code, less than zero for a signal."""
        if not self._alive:
            return 0
        self._alive = False
        code = self._lives.end()
        self._ours.close()
        return code

    def renew(self) -> None:
        """Have the next cases run by another worker, which nothing has been run by."""
        with self._one_at_a_time:
            self._end()

    def close(self) -> None:
        """End the worker; a second time does nothing."""
        self._end()
        self._lives.close()


def _own(stack: ExitStack, number: int) -> int:
    """The descriptor, which the stack closes."""
    stack.callback(os.close, number)
    return number


def _depth(*ends: int) -> int:
    """How many batches may be under way: where two have room the worker need not wait for us."""
    try:
        return min(fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, ROOM) for end in ends) // ROOM + 1
    except OSError:
        return 1


def _pack(cases: Sequence[Case]) -> tuple[int, bytes]:
    """How many of the cases are a batch, and its bytes. It is what a pipe has room for, lest both ends of it wait."""
    pieces = [case.pack() for case in cases]
    size = sum(map(len, pieces))
    while size > ROOM // 2 - HEAD.size and len(pieces) > 1:
        size -= len(pieces.pop())
    return len(pieces), HEAD.pack(size, len(pieces)) + b"".join(pieces)


# -- the worker's end ------------------------------------------------------------------------------------------------


def serve(engine: Engine, source: int, sink: int, progress: mmap.mmap, parent: int) -> None:
    """Run what comes in, until no more does or who forked us is gone."""
    threading.Thread(target=_watch, args=(engine, progress, parent), daemon=True).start()
    # Neither is closed: they are with the process, whose exit code is there then.
    cases, answers = os.fdopen(source, "rb"), os.fdopen(sink, "wb")
    answers.write(HEAD.pack(0, READY))
    answers.flush()
    while head := cases.read(HEAD.size):
        size, number = HEAD.unpack(head)
        packed = cases.read(size)
        try:
            answer = engine.run_packed(packed, number, progress)
        except HostError:  # what it is made of cannot be made again: that is no case's fault
            progress[:8] = IDLE
            raise
        progress[:8] = IDLE
        answers.write(HEAD.pack(len(answer), number))
        answers.write(answer)
        answers.flush()


def _watch(engine: Engine, progress: mmap.mmap, parent: int) -> None:
    """Stop the case that has been running since we last looked, and ourselves when who started us is gone."""
    before, seen = b"", 0
    while True:
        time.sleep(LOOK)  # that a case goes on for too long is no event
        if os.getppid() != parent:  # and no parent-death signal: that comes when a thread of the parent's ends, too
            os._exit(1)
        now = progress[:8]
        seen = seen + 1 if now == before else 0
        before = now
        if seen * LOOK >= engine.patience and now != IDLE:
            engine.stop()
            seen = 0
