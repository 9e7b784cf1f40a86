"""The two ends of a worker process: cases go in by batches, outcomes come out, and its death is an outcome too."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Self

from vmtest.errors import HostError
from vmtest.executors.base import Engine, Row
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import Isa, isa

__all__ = ["Executor"]

BATCH = 512
"""Cases that go to a worker at a time: when it dies, what it had run of them is run again."""
PATIENCE = 0.05
"""Seconds after which a case is stopped, at most twice as many: one takes 20 microseconds."""
DEAF = 5.0
"""Seconds after which a worker that its engine cannot stop is killed."""
START = 30.0
"""Seconds that a worker may take to come up."""
HEAD = struct.Struct("<II")  # bytes that follow, and what they are of: cases or outcomes
ROOM = 1 << 20
"""Bytes that a pipe should hold: two batches of any instruction set."""
TWO = struct.Struct("<II")  # the case that runs, by its place in its batch, and whether one does
IDLE = TWO.pack(0, 0)
READY = 0xFFFFFFFF


class Executor:
    """Runs batches of cases; use it as a context manager. ``deaths`` counts its workers that a case has killed."""

    def __init__(self, row: Row, isa: Isa) -> None:
        """Raises HostError where the executor cannot be had here, with the reason."""
        self.name = row.name
        self.isa = isa
        self.description = row.what
        self.blind, self.rank = frozenset(row.blind), row.rank
        self.deaths = 0
        self._row = row
        self._process: subprocess.Popen[bytes] | None = None
        self._depth = 1
        self._idle_deaths = 0
        if why := import_module(row.module).lacks(isa):
            raise HostError(f"the executor {row.name} cannot be had here: {why}")

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """The outcomes of the cases, in their order. Raises HostError where the worker cannot be started."""
        outcomes: list[Outcome] = []
        under_way: deque[Sequence[Case]] = deque()
        sent = 0
        while len(outcomes) < len(cases):
            try:
                if self._process is None:
                    self._start()
                while len(under_way) < self._depth and sent < len(cases):
                    batch = cases[sent : sent + BATCH]
                    self._send(batch)
                    under_way.append(batch)
                    sent += len(batch)
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
                self._send(before)
                found = self._answer()
            except EOFError:  # it dies of what an earlier one has left behind
                return self._recover(before)
        return [*found, last]

    def _bury(self) -> tuple[int | None, Outcome]:
        """Which case of its batch the worker has died of, None where it was idle, and how."""
        assert self._process is not None
        culprit, busy = TWO.unpack(self._progress[:8])
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        code = self._process.wait()
        self._forget()
        if not busy:
            self._idle_deaths += 1
            if self._idle_deaths > 3:
                raise HostError(f"the worker of the executor {self.name} ends by itself ({code})")
            return None, Outcome(status="died")
        self.deaths += 1
        return culprit, Outcome(status="timeout") if self._deaf else Outcome(status="died", signal=max(0, -code))

    def _start(self) -> None:
        shared = os.memfd_create("progress", os.MFD_CLOEXEC)
        os.truncate(shared, mmap.PAGESIZE)
        self._progress = mmap.mmap(shared, mmap.PAGESIZE)
        (theirs_in, self._to), (self._from, theirs_out) = os.pipe(), os.pipe()
        os.set_blocking(self._to, False)
        # Where two batches have room the worker need not wait for us.
        try:
            self._depth = min(fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, ROOM) for end in (self._to, self._from)) // ROOM + 1
        except OSError:
            self._depth = 1
        numbers = (theirs_in, theirs_out, shared)
        command = [
            sys.executable,
            "-P",
            "-m",
            __name__,
            self._row.module,
            self.isa.name,
            *map(str, (*numbers, os.getpid())),
        ]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=numbers,
                env={**os.environ, **dict(self._row.environment)},
                process_group=0,
            )
        finally:
            for number in numbers:
                os.close(number)
        self._deaf = False
        try:
            _, ready = HEAD.unpack(self._receive(HEAD.size, START))
        except EOFError:
            self._process.kill()
            words = self._process.communicate()[1].decode(errors="replace").strip()
            self._forget()
            raise HostError(
                f"the worker of the executor {self.name} does not come up", evidence={"its words": words[-4000:]}
            ) from None
        assert ready == READY

    def _send(self, batch: Sequence[Case]) -> None:
        packed = b"".join([case.pack() for case in batch])
        view = memoryview(HEAD.pack(len(packed), len(batch)) + packed)
        while view:
            try:
                view = view[os.write(self._to, view) :]
            except BlockingIOError:
                select.select([], [self._to], [], DEAF)
            except BrokenPipeError:
                raise EOFError from None

    def _answer(self) -> list[Outcome]:
        size, number = HEAD.unpack(self._receive(HEAD.size))
        data, at = self._receive(size), 0
        found = []
        for _ in range(number):
            outcome, at = Outcome.unpack(self.isa, data, at)
            found.append(outcome)
        self._idle_deaths = 0
        return found

    def _receive(self, size: int, patience: float = DEAF) -> bytes:
        """Raises EOFError where the worker has died, or has had to be killed."""
        data = b""
        moved, before = time.monotonic(), self._progress[:8]
        poller = select.poll()
        poller.register(self._from, select.POLLIN)
        while len(data) < size:
            if not poller.poll(100):
                if (now := self._progress[:8]) != before:
                    moved, before = time.monotonic(), now
                if time.monotonic() - moved > patience:
                    self._deaf = True
                    raise EOFError
                continue
            piece = os.read(self._from, size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _forget(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        self._process.stderr.close()
        os.close(self._to)
        os.close(self._from)
        self._progress.close()
        self._process = None

    def close(self) -> None:
        """End the worker; a second time does nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


# -- the worker's end ------------------------------------------------------------------------------------------------


def _serve(engine: Engine, source: int, sink: int, progress: mmap.mmap, parent: int) -> None:
    threading.Thread(target=_watch, args=(engine, progress, parent), daemon=True).start()
    with os.fdopen(source, "rb") as cases, os.fdopen(sink, "wb") as outcomes:
        outcomes.write(HEAD.pack(0, READY))
        outcomes.flush()
        while head := cases.read(HEAD.size):
            size, number = HEAD.unpack(head)
            data, at = cases.read(size), 0
            found = []
            for index in range(number):
                case, at = Case.unpack(engine.isa, data, at)
                progress[:8] = TWO.pack(index, 1)
                outcome = engine.run(case)
                if outcome.status == "timeout":  # or the one before was stopped too late, and this one in its place
                    outcome = engine.run(case)
                found.append(outcome.pack())
            progress[:8] = IDLE
            answer = b"".join(found)
            outcomes.write(HEAD.pack(len(answer), number) + answer)
            outcomes.flush()


def _watch(engine: Engine, progress: mmap.mmap, parent: int) -> None:
    """Stop the case that has been running since we last looked, and ourselves when who started us is gone."""
    before = b""
    while True:
        time.sleep(PATIENCE)
        if os.getppid() != parent:  # and no parent-death signal: that comes when a thread of the parent's ends, too
            os._exit(1)
        now = progress[:8]
        if now == before and now != IDLE:
            engine.stop()
        before = now


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us
    module, name, source, sink, shared, parent = sys.argv[1:]
    progress = mmap.mmap(int(shared), mmap.PAGESIZE)
    engine: Engine = import_module(module).Engine(isa(name))
    _serve(engine, int(source), int(sink), progress, int(parent))


if __name__ == "__main__":
    _main()
