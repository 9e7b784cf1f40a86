"""A QEMU that runs: its process, monitor and console wired together, and whatever ends it seen at once."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vmtest.crash import CrashWatch
from vmtest.deadline import Deadline
from vmtest.errors import GuestGone, GuestPanicked, HostError, QemuDied, QmpError, VmtestError
from vmtest.host import Qemu
from vmtest.model.arch import arch
from vmtest.model.machine import Channel, Drive, Machine
from vmtest.model.observation import CrashReport
from vmtest.qemu import loop
from vmtest.qemu.argv import Ram, Wiring, argv, shown
from vmtest.qemu.console import Console
from vmtest.qemu.migration import Migration
from vmtest.qemu.process import Process, how_it_ended
from vmtest.qemu.qmp import Event, Qmp
from vmtest.qemu.verdict import Verdict

__all__ = ["Running"]

LATE = 0.05
"""Seconds after an event in which the console's last words before it are read."""
LAST_EVENT = 2.0
"""Seconds after QEMU's end in which its SHUTDOWN event is read, which it sends before."""
RESETS = ("guest-reset", "host-qmp-system-reset", "subsystem-reset")
"""QEMU's reasons for a shutdown that -no-reboot has made of a reset (qapi/run-state.json, ShutdownCause)."""
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
        drives: Sequence[Drive] | None = None,
        ram: Ram | None = None,
        incoming: bool = False,
        inherited: Sequence[int] = (),
    ) -> None:
        """Start QEMU with its logs in ``directory``. Raises QemuDied with its own words if it does not come up.

        ``stamped`` says whether the kernel's lines bear time stamps, as CrashScanner takes it. ``drives`` are what
        the machine really gets in place of its own: overlays of them. ``ram`` is the file of
        its memory; with ``incoming`` it waits for ``migration`` to bring its state; it inherits the descriptors
        ``inherited``.
        """
        self.machine = machine
        self._qemu = qemu
        self._started_as = machine if drives is None else replace(machine, drives=tuple(drives))
        self._directory = directory
        self._environment = environment
        self.ram = ram
        self._incoming = incoming
        self.verdict = Verdict()
        self.resets = 0
        self.alive: Callable[[Deadline], bool] = lambda deadline: False
        self.on_text: Callable[[bytes], None] = lambda data: None
        self.on_reset: Callable[[], None] = lambda: None
        self.on_port: Callable[[bool], None] = lambda is_open: None
        self.scale = scale
        self._ending = False
        self._born_again = threading.Lock()
        self._again = self._over = False
        self._changed = threading.Condition()
        self._shutdown: Event | None = None
        self.verdict.on_set(self._wake)
        self._stopped_by_us = incoming
        self._reset_by_us = self._reset_itself = False
        self._crashes = CrashWatch(stamped=stamped, scale=scale, moment=lambda: self.resets, on_fatal=self._has_crashed)
        self._replaced_at = 0.0
        self.qmp: Qmp | None = None

        with_agent = machine.channel is not Channel.CONSOLE
        pairs = {name: socket.socketpair() for name in ("console", "qmp", *(["agent"] if with_agent else []))}
        self._theirs = {name: pair[1] for name, pair in pairs.items() if name != "qmp"}
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
            self._launch(pairs["qmp"][1], inherited)
        except BaseException:
            self._close_sockets(pairs)
            raise
        finally:
            pairs["qmp"][1].close()
            if not self._reset_ends_qemu:
                self._close_theirs()
        try:
            self._connect(pairs["qmp"][0])
        except BaseException as error:
            self._explain_and_close(error)
            raise

    def _launch(self, qmp: socket.socket, inherited: Sequence[int] = ()) -> None:
        numbers = {name: end.fileno() for name, end in self._theirs.items()}
        wiring = Wiring.sockets(
            console=numbers["console"],
            qmp=qmp.fileno(),
            agent=numbers.get("agent"),
            ram=self.ram,
            incoming=self._incoming,
        )
        command = argv(self._started_as, wiring, binary=str(self._qemu.path), sandbox=self._qemu.sandbox)
        self.process = Process(
            (*command, "-no-reboot") if self._reset_ends_qemu else command,
            stderr=self._directory / "qemu.stderr",
            environment=self._environment,
            pass_fds=[*numbers.values(), qmp.fileno(), *inherited],
            # A clone under TCG saves 3 MiB; its own memory is a file's, and has none anyway. But each page of a flash
            # is looked at while the state is loaded, which takes 40 ms more with small ones.
            lean=self._incoming and not arch(self.machine.arch).flash,
            on_exit=self._on_exit,
        )

    def _connect(self, qmp: socket.socket) -> None:
        self.qmp = Qmp(qmp, on_event=self._on_event, deadline=Deadline(20 * self.scale))
        self.migration = Migration(self.qmp, self._qemu.version, self._wait_for)

    @property
    def _reset_ends_qemu(self) -> bool:
        """A restored machine has nothing to boot from: at a reset it is started again, as it would have been cold."""
        says_otherwise = any(re.search("-no-reboot$|reboot=shutdown", word) for word in self.machine.extra)
        return self._incoming and not says_otherwise

    def _close_theirs(self) -> None:
        for end in self._theirs.values():
            end.close()

    def _close_sockets(self, pairs: Mapping[str, tuple[socket.socket, socket.socket]]) -> None:
        if hasattr(self, "console"):
            self.console.close()
        for pair in pairs.values():
            for end in pair:
                end.close()

    def _explain_and_close(self, error: BaseException) -> None:
        """QMP did not come up. If QEMU has ended, that is the reason, and its stderr says why."""
        exit_code = self.process.wait(Deadline(1)) if isinstance(error, QmpError) else None
        self._ending = True
        self.close()
        if exit_code is not None:
            raise self._died(exit_code) from None

    def remember(self, transcript: bytes) -> None:
        """Take what the guest printed before it was ours as printed here: to be expected, logged, and judged."""
        self.console.remember(transcript)
        self._crashes.survived(transcript)

    # -- what is seen, in the background thread ------------------------------------------------------------------

    def _on_console(self, data: bytes) -> None:
        self.on_text(data)
        self._crashes.feed(data)

    def _has_crashed(self, report: CrashReport, resets: int) -> None:
        """A fatal report is complete: see whether the guest has survived it."""
        if resets == self.resets and not self.alive(Deadline(ALIVE * self.scale)):
            with self._changed:
                if resets == self.resets:  # it was not reset meanwhile
                    self.verdict.set(lambda: self._panicked(report))

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
            case "MIGRATION":
                if self.migration.on_event(event):
                    self._wake()
            case "RESET":
                # What the guest printed before may still be in the console's socket, behind this one's.
                asyncio.get_running_loop().call_later(LATE, self._was_reset)
            case "VSERPORT_CHANGE" if _time_of(event) > self._replaced_at:
                self.on_port(bool(event["data"]["open"]))
            case "STOP" if not self._stopped_by_us and not self._ending:
                threading.Thread(target=self._why_stopped, name="vmtest-stop", daemon=True).start()

    def _was_reset(self) -> None:
        self._forget_life()
        self._count_reset()

    def _forget_life(self) -> None:
        fatal = self._crashes.end()
        self.verdict.clear()  # a crashed guest lives again,
        self._reset_itself = bool(fatal) and not self._reset_by_us
        if self._reset_itself:  # unless its panic was what reset it (panic=-1): that is told
            self.verdict.set(lambda: self._panicked(fatal[-1]))
        self._reset_by_us = False
        self.on_reset()

    def _count_reset(self) -> None:
        with self._changed:
            self.resets += 1
            self._changed.notify_all()

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

    def _on_exit(self, exit_code: int, patience: Deadline | None = None) -> None:
        if not self._ending:
            if exit_code == 0 and self._reset_ends_qemu and self._shutdown is None:
                patience = patience or Deadline(LAST_EVENT)
                if not patience.expired:  # what QEMU said of its end is still in the monitor's socket
                    asyncio.get_running_loop().call_later(0.005, self._on_exit, exit_code, patience)
                    return
            reason = ((self._shutdown or {}).get("data") or {}).get("reason", "")
            # All that waits looks at _over: it must not be seen before it is clear whether the machine goes on.
            self._again = exit_code == 0 and self._reset_ends_qemu and reason in RESETS
            if not self._again and self._reset_ends_qemu:
                self._close_theirs()  # whoever reads our ends learns that no more will come
            # As for a reset: its last words first.
            asyncio.get_running_loop().call_later(LATE, self._has_ended, exit_code)
        self._over = not self._again
        self._wake()

    def _start_again(self) -> None:
        """A restored machine was reset. It boots, on the same console and disks, as one that was never restored."""
        self._forget_life()
        ours: socket.socket | None = None
        try:
            ours, theirs = socket.socketpair()
            with theirs, self._born_again:
                if self._ending:
                    ours.close()
                    return
                before, self.ram, self._incoming, self._shutdown = self.qmp, None, False, None
                self._stopped_by_us = False
                self._launch(theirs)
                self._close_theirs()
            if before is not None:
                before.close()
            self._connect(ours)
        except (VmtestError, OSError) as error:
            if ours is not None:
                ours.close()
            if not self._ending:
                said = error  # the name goes with the except block
                self.verdict.set(lambda: HostError(f"the guest could not be reset: {said}", evidence=self.evidence()))
                self._over = True
        self._again = False
        self._count_reset()

    def _has_ended(self, exit_code: int) -> None:
        if self._again:
            threading.Thread(target=self._start_again, name="vmtest-reset", daemon=True).start()
            return
        fatal = self._crashes.end()
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
    def reports(self) -> list[CrashReport]:
        """The crash reports seen so far."""
        return self._crashes.reports

    @property
    def ended(self) -> bool:
        """Whether QEMU has ended, and will not start again."""
        return self._over

    def _wait_for(self, condition: Callable[[], bool], deadline: Deadline) -> bool:
        """Wait until it holds; raises QemuDied, and the like, where QEMU ends before."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self.ended, deadline.timeout)
        if not condition() and self.ended and self.verdict.wait(1):
            self.verdict.check()
        return condition()

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

    @property
    def replaceable(self) -> bool:
        """Whether ``replacing`` works: it takes back what was sent to QEMU, for which both ends must be ours."""
        return self._reset_ends_qemu

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """While it lasts the stopped machine, crashed or not, is given the state of another moment, in this QEMU.

        As at a reset, whoever waits for its present life is told, and a verdict is void. The new state does not see
        what was sent to the old one, nor its console what the old one printed.
        """
        with self._changed:
            self.resets += 1
            self.verdict.clear()
            self._changed.notify_all()
        self._stopped_by_us = self._reset_by_us = True
        self._forget_life()
        for end in self._theirs.values():
            with contextlib.suppress(OSError):  # EAGAIN, or EBADF where QEMU has ended
                while end.recv(1 << 18, socket.MSG_DONTWAIT):
                    pass
        for _ in range(2):  # rounds of the background thread, which in the second has read what QEMU wrote
            self.console.discard()  # a full console is not read
            loop.call(lambda running: None)
        self.console.discard()
        self._crashes.forget()
        yield
        # At the load QEMU closes and opens the agent's port, and tells of that up to a second later.
        self._replaced_at = time.time()

    def press_reset(self, deadline: Deadline) -> bool:
        """Reset the machine, crashed or not; whether that happened in time.

        Raises QemuDied or GuestGone where QEMU has ended.
        """
        with self._changed:  # it may just be starting again, after a reset of its own
            begins = self._again
            self._changed.wait_for(lambda: not self._again, deadline.timeout)
        if (begins or self._reset_itself) and not self.ended:
            # That was it. A q35 that is reset once more as it begins hangs: QEMU leaves the PAM registers as they are,
            # and where SeaBIOS was about to copy itself to there is nothing yet.
            self._reset_itself = False
            self.verdict.clear()
            return True
        assert self.qmp is not None
        before, self._reset_by_us = self.resets, True
        with contextlib.suppress(QmpError):  # the one reason is that QEMU has ended, or it shows below
            self.qmp.execute("system_reset", timeout=deadline.remaining)
        with self._changed:
            self._changed.wait_for(lambda: self.resets > before or self.ended, deadline.timeout)
        if self.ended and self.verdict.wait(1):
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
            return self._changed.wait_for(lambda: self.ended or self.verdict.is_set, deadline.timeout)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def close(self) -> int:
        """Kill QEMU and close everything; its exit code."""
        self._ending = True
        with self._born_again:  # or a QEMU that is being started again would be missed
            exit_code = self.process.kill()
        if self.qmp is not None:
            self.qmp.close()
        self.console.close()
        if self.agent_socket is not None:
            self.agent_socket.close()
        self._close_theirs()
        return exit_code


def _time_of(event: Event) -> float:
    """When it happened, as time.time() has it."""
    stamp = event["timestamp"]
    return float(stamp["seconds"] + stamp["microseconds"] / 1e6)
