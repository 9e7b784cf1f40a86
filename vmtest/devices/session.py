"""A machine whose CPU does not run: its devices are programmed from here, and its end is told."""

from __future__ import annotations

import contextlib
import shlex
import socket
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vmtest.closing import Closing
from vmtest.deadline import Deadline
from vmtest.devices.access import Access, In, Read, encode
from vmtest.devices.board import Board
from vmtest.devices.crash import Crash, crash, internal_error
from vmtest.devices.events import ERRORS, TRACED, Events
from vmtest.devices.limits import limits
from vmtest.devices.requests import pieces, values
from vmtest.devices.silence import Silence
from vmtest.devices.tracer import Tracer
from vmtest.errors import HostError, QemuDied, QmpError
from vmtest.host import Qemu
from vmtest.qemu.process import Process
from vmtest.qemu.qmp import Event, Qmp
from vmtest.qemu.qtest import AT_ONCE, Interrupt, Qtest, QtestEnded
from vmtest.workdir import Workdir, sweep_once

__all__ = ["LOST", "SOON", "Done", "Session"]

PATIENCE = 1.0
"""Seconds of silence after which a QEMU is looked at."""
LOST = 8.0
"""Seconds that it may do nothing at all: it waits for what never comes."""
ROOM = 1 << 20
"""Bytes for QEMU's replies: the kernel takes it for as much as it gives (net.core.wmem_max)."""
SOON = 0.02
"""Seconds in which QEMU's main loop has run."""
ANSWER = 20.0
"""Seconds for what QEMU does at once: an answer over QMP, its end."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What has come of operations: ``replies`` are a number of In, Read, Rtas and Csr, bytes of Load and Endianness,
    and None of the others, as far as they were answered; ``crash`` is how QEMU ended, None where it lives.
    """

    replies: Sequence[int | bytes | None]
    crash: Crash | None = None


class Session(Closing):
    """A QEMU that waits for operations; use it as a context manager.

    ``interrupts`` are the lines that were raised and lowered, of devices that were intercepted; ``crash`` is how it has
    ended, once that was told.
    """

    def __init__(
        self,
        board: Board,
        qemu: Qemu,
        *,
        traced: bool = False,
        told: bool = False,
        untold: Collection[str] = (),
        lost: float = LOST,
        eager: bool = True,
    ) -> None:
        """Start it; where it is ``traced`` a crash has its place in QEMU's code, and where it has ``told`` what it does
        there are ``events``, all but those that are ``untold``. It hangs where it does nothing for ``lost`` seconds.
        ``eager`` is as of a Qtest. Raises HostError with QEMU's own words where it does not come up.
        """
        self.board, self.qemu, self._lost = board, qemu, lost
        self.accel = board.accel_on(qemu)
        sweep_once()
        self._directory = Workdir()
        self.crash: Crash | None = None
        self.events = Events(untold) if told else None
        self._silence = Silence()
        self._changed, self._resets, self._has_ended = threading.Condition(), 0, False
        self._has_stopped = threading.Event()
        pairs = {name: socket.socketpair() for name in ("qtest", "qmp")}
        # QEMU sends a reply at a time: of less room it fills all while we make the next requests, and waits.
        pairs["qtest"][1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        try:
            with contextlib.ExitStack() as theirs:
                ends = {name: theirs.enter_context(pair[1]).fileno() for name, pair in pairs.items()}
                words, inherited = board.command(qemu, ends, theirs)
                if self.events:
                    words, inherited = (*words, *self.events.arguments), (*inherited, self.events.fd)
                before, environment = limits(qemu.path)
                self.process = Process(
                    (*before, *words),
                    stderr=self._directory.path / "qemu.stderr",
                    environment={**self._directory.environment, **environment},
                    pass_fds=[*ends.values(), *inherited],
                    on_exit=self._on_exit,
                )
            patience = min(PATIENCE, lost / 3)
            self.qtest = Qtest(pairs["qtest"][0], patience=patience, goes_on=self._goes_on, eager=eager)
            self.qmp = Qmp(pairs["qmp"][0], on_event=self._on_event, deadline=Deadline(ANSWER))
            self._tracer = Tracer(self.process.pid) if traced else None
        except BaseException as error:
            for pair in pairs.values():
                pair[0].close()
            self._explain(error)
            raise

    def _explain(self, error: BaseException) -> None:
        """It did not come up: if it has ended, its own words say why."""
        process = getattr(self, "process", None)
        code = process.wait(Deadline(1)) if process is not None and isinstance(error, HostError) else None
        words = process.stderr if process is not None else ""
        command = shlex.join(process.command) if process is not None else ""
        self.close()
        if code is not None:
            raise HostError(
                f"QEMU does not start with these arguments (exit status {code})",
                evidence={"QEMU stderr": words, "QEMU command line": command},
            ) from None

    @property
    def interrupts(self) -> Sequence[Interrupt]:
        """See the class."""
        return self.qtest.interrupts

    def run(self, accesses: Sequence[Access], *, lockstep: bool = False, settle: float = 0.0) -> Done:
        """Do operations: as fast as QEMU takes them, so that its main loop need not run between two, or in
        ``lockstep``, each when the last one has been answered. Then wait ``settle`` seconds: timers and what the main
        loop has to do may still end QEMU. Raises UsageError for what cannot be said, and HostError
        where QEMU refuses an operation, such as one of the clock.
        """
        done = self._run(accesses, lockstep, settle)
        self.crash = self.crash or done.crash
        return done

    def _run(self, accesses: Sequence[Access], lockstep: bool, settle: float) -> Done:
        replies: list[bytes] = []
        try:
            for piece in pieces(accesses, has_clock=self.accel == "qtest"):
                if isinstance(piece, list):
                    replies += self.qtest.run(map(encode, piece), 1 if lockstep else AT_ONCE)
                elif isinstance(piece, float):
                    self._let_pass(piece)
                    replies.append(b"OK")
                elif crash := self.reset():
                    return Done(replies=self._values(accesses, replies), crash=crash._replace(done=len(replies)))
            self.qtest.idle(settle)
        except QtestEnded as ended:
            replies += ended.replies
            return Done(replies=self._values(accesses, replies), crash=self._end(len(replies), ended.is_silent))
        return Done(replies=self._values(accesses, replies), crash=self._stopped(len(replies)))

    def ask(self, access: Access) -> int | bytes | None:
        """One operation, and its answer. Raises QemuDied where it ends QEMU, and as ``run``."""
        done = self.run((access,))
        if done.crash:
            raise self._died(f"{encode(access).decode()[:80]} was not answered", done.crash)
        return done.replies[0]

    def check(self) -> None:
        """Raise QemuDied where QEMU has ended, or does within SOON, and that was not told yet."""
        if self.crash is None and (crash := self.run((), settle=SOON).crash):
            raise self._died("behind the last operation", crash)

    def _died(self, when: str, crash: Crash) -> QemuDied:
        return QemuDied(
            f"{when}: QEMU has ended: {crash.kind}: {crash.signature}",
            exit_code=self.process.returncode or 0,
            evidence=self.evidence(),
        )

    def number(self, access: In | Read) -> int:
        """What is read."""
        value = self.ask(access)
        assert isinstance(value, int)
        return value

    def untell(self, names: Collection[str]) -> set[str]:
        """Have these trace events told no more, and where other words are among them none of the guest's errors: what
        a next session is to leave ``untold``.
        """
        off = set()
        for name in names:
            try:
                self.qmp.execute("trace-event-set-state", timeout=self._lost, name=name, enable=False)
                off.add(name)
            except QmpError as error:
                if "unknown event" in error.message and self._unlog():
                    off.add(ERRORS)
        return off

    def _unlog(self) -> bool:
        """Whether QEMU tells trace events alone now. Where it has ended, or hangs, that is seen next."""
        with contextlib.suppress(QmpError):
            # What HMP refuses it says in the answer.
            return not self.qmp.execute("human-monitor-command", timeout=self._lost, command_line=f"log {TRACED}")
        return False

    def reset(self) -> Crash | None:
        """Reset the machine, as its button does, and wait until that is done; how QEMU has ended, if it has."""
        before, begun = self._resets, self.process.cpu_seconds()
        with contextlib.suppress(QmpError):  # it ends: that is seen next
            self.qmp.execute("system_reset", timeout=self._lost)
        with self._changed:
            done = self._changed.wait_for(lambda: self._resets > before or self._has_ended, self._lost)
        if self._has_ended:
            return self._end(0, is_silent=False)
        if done:
            return None
        self._silence.used = self.process.cpu_seconds() - begun
        return self._end(0, is_silent=True)

    def _on_exit(self, code: int) -> None:
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _on_event(self, event: Event) -> None:
        with self._changed:
            # One that the guest's own accesses have asked for is not the one that is waited for.
            data = event.get("data", {})
            self._resets += event["event"] == "RESET" and data.get("reason") == "host-qmp-system-reset"
            self._changed.notify_all()
        if event["event"] == "STOP":
            self._has_stopped.set()

    def _goes_on(self) -> bool:
        """Whether a QEMU that is silent may still answer: it has not worked for long, nor slept for longer."""
        return self._silence.goes_on(self.process.cpu_seconds(), self.qtest.requests, self._lost)

    def _let_pass(self, seconds: float) -> None:
        """Let the machine's timers run for so long; one that was not started is, meanwhile."""
        if self.board.is_halted_on(self.qemu):
            self.qtest.idle(seconds)
            return
        try:
            self.qmp.execute("cont")
            self.qtest.idle(seconds)
            self.qmp.execute("stop")
        except QmpError:
            self.qtest.idle(ANSWER)  # which tells it where QEMU has ended meanwhile
            raise

    def _end(self, done: int, is_silent: bool) -> Crash:
        """How it has ended, or is ended now."""
        if is_silent:
            is_at_work = self._silence.is_at_work(self._lost)
            where = "" if is_at_work or not self._tracer else self._tracer.look()
            self.process.kill()
            said = "no answer, at work" if is_at_work else "no answer, and no work"
            return Crash("hang", said, self.process.stderr, done, where)
        code = self.process.wait(Deadline(ANSWER))
        if code is None:
            raise HostError("QEMU has closed the connection, and has not ended", evidence=self.evidence())
        where = self._tracer.where if self._tracer else ""
        return crash(code, self.process.said(), done)._replace(where=where)

    def _stopped(self, done: int) -> Crash | None:
        """Whether it lives, but has stopped the machine as one that cannot go on (RunState in qapi/run-state.json)."""
        if not self._has_stopped.is_set():
            return None
        self._has_stopped.clear()  # before it is asked: it may stop again
        if self.qmp.execute("query-status")["status"] != "internal-error":
            return None
        words = self.process.stderr
        self.process.kill()
        return Crash("internal-error", internal_error(words), words, done)

    def _values(self, accesses: Sequence[Access], replies: Sequence[bytes]) -> list[int | bytes | None]:
        try:
            return values(accesses, replies)
        except HostError as error:
            error.evidence.update(self.evidence())
            raise

    def evidence(self) -> dict[str, str]:
        """What every error about this machine shows."""
        return {"QEMU stderr": self.process.stderr, "QEMU command line": shlex.join(self.process.command)}

    def close(self) -> None:
        """Kill QEMU and remove its files; a second time does nothing."""
        if hasattr(self, "process"):
            self.process.kill()
        if tracer := getattr(self, "_tracer", None):
            tracer.close()
        if hasattr(self, "qtest"):
            self.qtest.close()
        if hasattr(self, "qmp"):
            self.qmp.close()
        if self.events:
            self.events.close()
            self.events = None
        self._directory.remove()
