"""A QEMU that runs: its process, monitor and console wired together, and whatever ends it seen at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from vmtest.crash import CrashScanner
from vmtest.deadline import Deadline
from vmtest.errors import GuestGone, GuestPanicked, HostError, QemuDied, QmpError, VmtestError
from vmtest.host import Qemu
from vmtest.model.machine import Channel, Machine
from vmtest.model.observation import CrashReport, Severity
from vmtest.qemu.argv import Wiring, argv, shown
from vmtest.qemu.console import Console
from vmtest.qemu.process import Process, how_it_ended
from vmtest.qemu.qmp import Event, Qmp
from vmtest.qemu.verdict import Verdict

__all__ = ["Running"]

SETTLE = 0.3
"""Seconds of silence after which a crash report on the console is taken for complete."""
LONGEST_REPORT = 3.0
LATE = 0.05
REPORTS = 1000
"""Crash reports kept of one guest."""
ALIVE = 0.5
"""Seconds that a guest whose console shows a panic has to prove that it lives: somebody may have printed the text."""


class Running:
    """One QEMU from its start to its end, with the evidence that errors show.

    ``verdict`` is set when the guest's kernel panics or QEMU ends; ``reports`` are the crash reports seen so far.
    """

    def __init__(
        self,
        machine: Machine,
        qemu: Qemu,
        *,
        directory: Path,
        environment: Mapping[str, str],
        scale: float,
        timeout: float,
        stamped: bool | None,
    ) -> None:
        """Start QEMU with its logs in ``directory``. Raises QemuDied with its own words if it does not come up.

        ``stamped`` says whether the kernel's lines bear time stamps, as CrashScanner takes it.
        """
        self.machine = machine
        self.verdict = Verdict()
        self.reports: list[CrashReport] = []
        self.resets = 0
        self.alive: Callable[[Deadline], bool] = lambda deadline: False
        self.on_text: Callable[[bytes], None] = lambda data: None
        self.on_reset: Callable[[], None] = lambda: None
        self.on_port_closed: Callable[[], None] = lambda: None
        self.scale = scale
        self._ending = False
        self._changed = threading.Condition()
        self._shutdown: Event | None = None
        self.verdict.on_set(self._wake)
        self._stopped_by_us = False
        self._reset_by_us = False
        self._scanner = CrashScanner(timestamps=stamped)
        self._scanning = threading.Lock()
        self._printed = threading.Event()
        self._judging = False
        self._judged = 0
        self.qmp: Qmp | None = None

        with_agent = machine.channel is not Channel.CONSOLE
        pairs = {name: socket.socketpair() for name in ("console", "qmp", *(["agent"] if with_agent else []))}
        theirs = {name: pair[1].fileno() for name, pair in pairs.items()}
        wiring = Wiring.sockets(console=theirs["console"], qmp=theirs["qmp"], agent=theirs.get("agent"))
        self.command_line = shown(
            argv(machine, Wiring.by_hand(agent=with_agent), binary=str(qemu.path), sandbox=qemu.sandbox)
        )
        self.agent_socket = pairs["agent"][0] if with_agent else None
        try:
            self.console = Console(
                pairs["console"][0],
                log=directory / "console.log",
                verdict=self.verdict,
                on_data=self._on_console,
                timeout=timeout,
                scale=scale,
            )
            self.process = Process(
                argv(machine, wiring, binary=str(qemu.path), sandbox=qemu.sandbox),
                stderr=directory / "qemu.stderr",
                environment=environment,
                pass_fds=list(theirs.values()),
                on_exit=self._on_exit,
            )
        except BaseException:
            self._close_sockets(pairs)
            raise
        finally:
            for _, end in pairs.values():
                end.close()
        try:
            self.qmp = Qmp(pairs["qmp"][0], on_event=self._on_event, deadline=Deadline(20 * scale))
        except BaseException as error:
            self._explain_and_close(error)
            raise

    def _close_sockets(self, pairs: Mapping[str, tuple[socket.socket, socket.socket]]) -> None:
        if hasattr(self, "console"):
            self.console.close()
        for ours, _ in pairs.values():
            ours.close()

    def _explain_and_close(self, error: BaseException) -> None:
        """QMP did not come up. If QEMU has ended, that is the reason, and its stderr says why."""
        exit_code = self.process.wait(Deadline(1)) if isinstance(error, QmpError) else None
        self._ending = True
        self.close()
        if exit_code is not None:
            raise self._died(exit_code) from None

    # -- what is seen, in the background thread ------------------------------------------------------------------

    def _on_console(self, data: bytes) -> None:
        self._printed.set()
        self.on_text(data)
        with self._scanning:
            fresh = self._scanner.feed(data)
            self.reports += fresh[: REPORTS - len(self.reports)]
            crashed = self._scanner.pending or any(report.severity >= Severity.FATAL for report in fresh)
            if crashed and not self._judging:
                self._judging = True
                threading.Thread(target=self._judge, name="vmtest-crash", daemon=True).start()

    def _judge(self) -> None:
        """A crash report has begun: wait for its rest, and see whether the guest has survived it."""
        resets, most = self.resets, Deadline(LONGEST_REPORT * self.scale)
        while self._printed.wait(SETTLE) and self._scanner.pending and not most.expired:
            self._printed.clear()
        with self._scanning:
            self.reports += self._scanner.flush()[: REPORTS - len(self.reports)]
            fatal = self._fatal()
            self._judging = False
        if fatal and resets == self.resets and not self.alive(Deadline(ALIVE * self.scale)):
            self.verdict.set(lambda: self._panicked(fatal[-1]))

    def _fatal(self) -> list[CrashReport]:
        """The fatal reports that nobody has looked at yet."""
        fresh, self._judged = self.reports[self._judged :], len(self.reports)
        return [report for report in fresh if report.severity >= Severity.FATAL]

    def _panicked(self, report: CrashReport) -> VmtestError:
        return GuestPanicked(
            f"the guest's kernel crashed: {report.title}",
            report=report,
            evidence={"kernel's report": report.text} | self.evidence() | {"console tail": ""},
        )

    def _on_event(self, event: Event) -> None:
        match event.get("event"):
            case "SHUTDOWN":
                self._shutdown = event
            case "RESET":
                # What the guest printed before may still be in the console's socket, behind this one's.
                asyncio.get_running_loop().call_later(LATE, self._was_reset)
            case "VSERPORT_CHANGE" if not event["data"]["open"]:
                self.on_port_closed()
            case "STOP" if not self._stopped_by_us and not self._ending:
                threading.Thread(target=self._why_stopped, name="vmtest-stop", daemon=True).start()

    def _was_reset(self) -> None:
        fatal = self._last_reports()
        self.verdict.clear()  # a crashed guest lives again,
        if fatal and not self._reset_by_us:  # unless its panic was what reset it (panic=-1): that is told
            self.verdict.set(lambda: self._panicked(fatal[-1]))
        self._reset_by_us = False
        self.on_reset()
        with self._changed:
            self.resets += 1
            self._changed.notify_all()

    def _last_reports(self) -> list[CrashReport]:
        """The guest's life has ended: what its kernel printed is complete; the fatal reports of it."""
        with self._scanning:
            self.reports += self._scanner.flush()[: REPORTS - len(self.reports)]
            return self._fatal()

    def _why_stopped(self) -> None:
        """QEMU stopped the guest by itself: KVM met what it cannot run, or a disk is full."""
        with contextlib.suppress(QmpError):
            status = self.qmp.execute("query-status")["status"] if self.qmp else "unknown"
            if status in ("internal-error", "io-error"):
                self.verdict.set(
                    lambda: HostError(
                        f"QEMU stopped the guest with status {status!r} under {self.machine.accel}",
                        hint="its stderr below holds the registers and the code bytes"
                        if status == "internal-error"
                        else "",
                        evidence=self.evidence(),
                    )
                )

    def _on_exit(self, exit_code: int) -> None:
        if not self._ending:
            # As for a reset: its last words first.
            asyncio.get_running_loop().call_later(LATE, self._has_ended, exit_code)
        self._wake()

    def _has_ended(self, exit_code: int) -> None:
        fatal = self._last_reports()
        if fatal:
            self.verdict.set(lambda: self._panicked(fatal[-1]))
        elif exit_code == 0:
            reason = ((self._shutdown or {}).get("data") or {}).get("reason", "unknown")
            self.verdict.set(
                lambda: GuestGone(f"the guest has powered off (QEMU's reason: {reason})", evidence=self.evidence())
            )
        else:
            self.verdict.set(lambda: self._died(exit_code))

    def _died(self, exit_code: int) -> VmtestError:
        return QemuDied(f"QEMU {how_it_ended(exit_code)}", exit_code=exit_code, evidence=self.evidence())

    # -- what the guest uses -------------------------------------------------------------------------------------

    def evidence(self) -> dict[str, str]:
        """What every error about this guest shows."""
        return {
            "QEMU stderr": self.process.stderr if hasattr(self, "process") else "",
            "QEMU command line": self.command_line,
            "console tail": self.console.tail_text(),
        }

    def execute(self, command: str, **arguments: object) -> object:
        """A QMP command; raises the verdict's error where the guest has ended, else QmpError."""
        self.verdict.check()
        assert self.qmp is not None
        try:
            return self.qmp.execute(command, timeout=30 * self.scale, **arguments)
        except QmpError as error:
            if self.qmp.closed and self.process.wait(Deadline(1)) is not None and self.verdict.wait(1):
                self.verdict.check()
            error.evidence |= self.evidence()
            raise

    @property
    def paused(self) -> bool:
        """Whether we have stopped the guest's CPUs."""
        return self._stopped_by_us

    def pause(self) -> None:
        """Stop the guest's CPUs."""
        self._stopped_by_us = True
        self.execute("stop")

    def resume(self) -> None:
        """Let them run again."""
        self.execute("cont")
        self._stopped_by_us = False

    def press_reset(self, deadline: Deadline) -> bool:
        """Reset the machine, crashed or not; whether that happened in time.

        Raises QemuDied or GuestGone where QEMU has ended.
        """
        assert self.qmp is not None
        before, self._reset_by_us = self.resets, True
        with contextlib.suppress(QmpError):  # the one reason is that QEMU has ended, or it shows below
            self.qmp.execute("system_reset", timeout=deadline.remaining)
        with self._changed:
            self._changed.wait_for(
                lambda: self.resets > before or self.process.returncode is not None, deadline.timeout
            )
        if self.process.returncode is not None and self.verdict.wait(1):
            self.verdict.check()
        return self.resets > before

    def wait_change(self, after: int, deadline: Deadline) -> bool:
        """Wait until the machine has been reset more than ``after`` times, or has ended; whether one happened."""
        with self._changed:
            return self._changed.wait_for(lambda: self.resets > after or self.verdict.is_set, deadline.timeout)

    def wait_reset(self, after: int, deadline: Deadline) -> bool:
        """Wait until it has been reset more than ``after`` times; raises the verdict's error at once."""
        self.wait_change(after, deadline)
        if self.resets <= after:
            self.verdict.check()
        return self.resets > after

    def wait_end(self, deadline: Deadline) -> bool:
        """Wait until QEMU has ended or the guest has crashed; whether one has happened."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.process.returncode is not None or self.verdict.is_set, deadline.timeout
            )

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def close(self) -> int:
        """Kill QEMU and close everything; its exit code."""
        self._ending = True
        exit_code = self.process.kill()
        if self.qmp is not None:
            self.qmp.close()
        self.console.close()
        if self.agent_socket is not None:
            self.agent_socket.close()
        return exit_code
