"""A guest: a machine that runs, and all that a test does with it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

from vmtest import cloning, transfer
from vmtest.deadline import Deadline
from vmtest.errors import (
    CommandTimeout,
    GuestError,
    GuestGone,
    QmpError,
    UsageError,
    VmtestError,
)
from vmtest.life import Life
from vmtest.model.machine import Channel, Machine
from vmtest.model.observation import CrashReport, Result
from vmtest.output import Output
from vmtest.qemu.channel import Command, CommandChannel, OnOutput
from vmtest.qemu.console import Console
from vmtest.resetting import Resetter, Way
from vmtest.running import Running
from vmtest.snapshots import Snapshot, store
from vmtest.uplink import Uplink
from vmtest.workdir import Workdir

__all__ = ["Guest"]


class Guest:
    """A running machine; ``vmtest.boot`` makes one. It ends with its ``with`` block, or with ``kill``.

    ``machine`` is what it is; ``accel`` the accelerator that runs it; ``console`` its serial console; ``reports``
    the crash reports its kernel has printed so far; ``boot_seconds`` how long the last boot took until it answered.
    Timeouts are in seconds and multiplied by ``timeout_scale``.
    """

    def __init__(self, life: Life) -> None:
        """Wrap a machine that runs; ``vmtest.boot`` makes one."""
        self._life = life
        self.name = life.manner.name
        self.timeout = life.manner.timeout
        self.boot_timeout = life.manner.boot_timeout
        self.timeout_scale = life.manner.timeout_scale
        self.boot_seconds: float | None = None
        self._kept: list[Workdir] = []  # of snapshots that go with us
        self._resetter: Resetter | None = None

    @property
    def _running(self) -> Running:
        return self._life.running

    @property
    def _uplink(self) -> Uplink:
        return self._life.uplink

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def machine(self) -> Machine:
        """What it is."""
        return self._life.machine

    @property
    def qemu_version(self) -> str:
        """The version of its QEMU."""
        return ".".join(map(str, self._life.qemu.version))

    @property
    def origin(self) -> str:
        """How it came to be: "" where it was booted, else what it is a clone of."""
        parent = self._life.parent
        return f"a clone of {parent.label} ({parent.origin})" if parent else ""

    @property
    def from_named(self) -> bool:
        """Whether it began in a snapshot that people have named."""
        return self._life.parent is not None and self._life.parent.name != ""

    @property
    def logs(self) -> Path:
        """The directory of its logs."""
        return self._life.logs

    @property
    def accel(self) -> str:
        """The accelerator that runs it: "tcg", "kvm"."""
        return self.machine.accel

    @property
    def console(self) -> Console:
        """Its serial console."""
        return self._running.console

    @property
    def channel(self) -> Channel:
        """How commands reach it: found out at the first command where it was left to us. Raises GuestError."""
        return self._channel().kind

    @property
    def reports(self) -> tuple[CrashReport, ...]:
        """The crash reports that its kernel has printed so far, warnings among them."""
        return tuple(self._running.reports)

    @property
    def command_line(self) -> str:
        """A QEMU command line that starts the same machine by hand, its console on the terminal."""
        return self._running.command_line

    @property
    def evidence(self) -> dict[str, str]:
        """What an error about this guest shows: command line, QEMU's stderr, the console's tail."""
        return self._running.evidence()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._running.process.pid

    def __repr__(self) -> str:
        state = "closed" if self._life.closed else f"pid {self.pid}"
        return f"<Guest {self.name} ({self.machine.arch}, {self.accel}, {state})>"

    # -- commands and files --------------------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        input: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float | None = None,
        stream: bool | OnOutput = False,
    ) -> Result:
        """Run a command in the guest and wait for it to end.

        ``command`` is a string for the guest's shell, or a list of arguments. ``input`` is its standard input,
        ``env`` is added to its environment, ``cwd`` is its directory. With ``stream=True`` what it writes appears
        here as it comes as well; with a function, that is called with "stdout" or "stderr" and the bytes, and the
        result does not keep them. A background child that holds the command's output open is not waited for.

        Raises CommandTimeout after ``timeout`` seconds (the command is killed), and at once GuestPanicked,
        GuestGone or QemuDied when that happens meanwhile. A program that is not there gives exit code 127, one that
        cannot be run 126, as a shell does it.
        """
        arguments = ["/bin/sh", "-c", command] if isinstance(command, str) else [*command]
        if not arguments:
            raise UsageError("an empty list is no command")
        shown = command if isinstance(command, str) else shlex.join(arguments)
        data = input.encode() if isinstance(input, str) else input or b""
        deadline = self._deadline(timeout)
        kept = Output(stream)
        if self._running.paused:
            raise UsageError(f"{self.name} is paused, and runs nothing", hint="resume() it first")
        with self._explained():
            channel = self._channel()
            began = time.monotonic()
            try:
                wanted = Command(argv=arguments, input=data, env=env or {}, cwd=cwd or "")
                exit_ = channel.run(wanted, deadline=deadline, on_output=kept)
            except TimeoutError:
                raise CommandTimeout(
                    f"the guest's command {shown!r} did not end within {deadline.seconds:g} s, and was killed",
                    stdout=bytes(kept.streams["stdout"]),
                    stderr=bytes(kept.streams["stderr"]),
                    hint="give it more time: timeout= in a call, --timeout of vmtest run, --vm-timeout-scale of pytest",
                ) from None
        return Result(
            command=command if isinstance(command, str) else tuple(command),
            stdout_bytes=bytes(kept.streams["stdout"]),
            stderr_bytes=bytes(kept.streams["stderr"]),
            exit_code=128 + exit_.signal if exit_.signal else exit_.status,
            signal=exit_.signal,
            duration=time.monotonic() - began,
        )

    def push(self, src: str | Path, dst: str, *, timeout: float | None = None) -> None:
        """Copy a file or a tree into the guest, with mode bits; ``dst`` is as for ``cp -r``.

        Raises UsageError if ``src`` is not there, TransferFailed with the guest's own words if it refuses.
        """
        transfer.push(self, Path(src), dst, timeout=timeout)

    def pull(self, src: str, dst: str | Path, *, timeout: float | None = None) -> None:
        """Copy a file or a tree out of the guest, with mode bits; ``dst`` is as for ``cp -r``.

        Raises TransferFailed. What a guest sends is not trusted: nothing is written outside ``dst``.
        """
        transfer.pull(self, src, Path(dst), timeout=timeout)

    # -- power ---------------------------------------------------------------------------------------------------

    def wait_up(self, *, timeout: float | None = None) -> Self:
        """Wait until the guest answers commands. Raises BootTimeout with what was last seen, or its panic at once."""
        deadline = Deadline((self.boot_timeout if timeout is None else timeout) * self.timeout_scale)
        with self._explained():
            self._life.connect(deadline)
        self.boot_seconds = time.monotonic() - self._life.started
        return self

    def shutdown(self, *, timeout: float | None = None) -> None:
        """Power off from inside and wait until QEMU has ended. Raises GuestError if it does not in time."""
        deadline = self._deadline(timeout)
        self._last_words("sync; poweroff -f || poweroff", deadline)
        if self._running.process.wait(deadline) is None:
            raise GuestError(f"the guest did not power off within {deadline.seconds:g} s", evidence=self.evidence)
        self.close()

    def reboot(self, *, timeout: float | None = None) -> Self:
        """Reboot from inside and wait until it is up again. Raises GuestError, BootTimeout or its panic."""
        deadline = self._deadline(timeout)
        resets = self._running.resets
        self._last_words("sync; reboot -f || reboot", deadline)
        if not self._running.wait_reset(resets, deadline):
            raise GuestError(f"the guest did not reboot within {deadline.seconds:g} s", evidence=self.evidence)
        return self._up_again()

    def reset(self) -> Self:
        """Press the reset button, and wait until it is up again. A crashed guest lives again by this."""
        self._open()
        with self._explained():
            if not self._running.press_reset(Deadline(30 * self.timeout_scale)):
                raise QmpError("QEMU did not reset the guest within 30 s")
        return self._up_again()

    def _up_again(self) -> Self:
        self._life.started = time.monotonic()
        return self.wait_up()

    def _last_words(self, command: str, deadline: Deadline) -> None:
        """Run what ends the guest's life: no answer is the expected one."""
        channel = self._channel()
        if channel.kind is Channel.CONSOLE:  # it would wait for the answer until the deadline
            self.console.sendline(command)
            return
        resets = self._running.resets
        wanted = Command(argv=["/bin/sh", "-c", command])
        try:
            channel.run(wanted, deadline=deadline, on_output=lambda stream, data: None)
        except (TimeoutError, GuestGone):
            if not self._running.wait_change(resets, Deadline(2)):
                raise GuestError(f"{command!r} did not end the guest", evidence=self.evidence) from None

    def pause(self) -> None:
        """Stop its CPUs; its clock stands still."""
        self._open()
        self._running.pause()

    def resume(self) -> None:
        """Let its CPUs go on."""
        self._open()
        self._running.resume()

    def wait(self, *, timeout: float | None = None) -> int:
        """Wait until it has powered off; QEMU's exit code. Raises GuestPanicked at once, GuestError after ``timeout``
        (by default it waits without limit).
        """
        deadline = Deadline.never() if timeout is None else Deadline(timeout * self.timeout_scale)
        if self._running.wait_end(deadline):
            if not self._life.closed and self._running.verdict.wait(2):
                with suppress(GuestGone):  # it has powered off, as was expected here
                    self._running.verdict.check()
            if self._running.ended:
                return self._running.process.returncode or 0
        raise GuestError(f"the guest did not power off within {deadline.seconds:g} s", evidence=self.evidence)

    def kill(self) -> None:
        """Pull the plug: QEMU is killed, and nothing of the guest remains but its logs where they were asked for."""
        self.close()

    def qmp(self, command: str, **arguments: object) -> object:
        """Run a QMP command and return what it returns. Raises QmpError with QEMU's words."""
        self._open()
        return self._running.execute(command, **arguments)

    def close(self) -> None:
        """As ``kill``; a second time does nothing."""
        self._life.close()
        if self._resetter is not None:
            self._resetter.close()
            self._resetter = None
        while self._kept:
            self._kept.pop().remove()

    # -- snapshots -----------------------------------------------------------------------------------------------

    def snapshot(self, name: str | None = None) -> Snapshot:
        """Keep its whole state, memory, devices and disks; it goes on. It takes about a second for 256 MiB.

        With a name the snapshot is kept for later sessions (``vmtest snapshot list``, ``boot(snapshot=NAME)``), else
        until this guest is closed, in a directory of its own below $TMPDIR: it can be restored until then, and takes
        what is used of the guest's memory. Raises SnapshotError where QEMU cannot save it or there is no room,
        UsageError for a name that is taken and for a guest that has not come up yet.
        """
        self._open()
        path = store.named_path(name) if name is not None else self._own_directory()
        if self._uplink.agent is not None and self._uplink.channel is None and not self._running.verdict.is_set:
            raise UsageError(f"{self.name} has not come up yet", hint="wait_up() first")
        with self._explained():
            return cloning.save(self._life, path, name=name or "", origin=f"{self.name}, saved by its user")

    def _own_directory(self) -> Path:
        self._kept.append(Workdir())
        directory = self._kept[-1].path
        return directory / directory.name

    def restore(self, snapshot: Snapshot) -> Self:
        """Go back to a snapshot of this machine: memory, devices and disks. Its console begins anew.

        It becomes a new clone, in another QEMU: descriptors and process ids that were noted down are void, and
        ``reports`` begin anew. Where vmtest's agent runs in it its clock is that of now, as with every clone, and its
        random numbers are its own. Raises SnapshotError, UsageError
        for a snapshot of another machine.
        """
        self._fits(snapshot)
        with self._explained():
            self._become(cloning.clone(snapshot, self._life.qemu, self._life.manner))
        return self

    def reset_to(self, snapshot: Snapshot, *, way: Way | None = None) -> Self:
        """As ``restore``, for those who do it again and again: the faster of two ways is found out and then taken.

        One is a clone that was made ahead, while this guest was used: milliseconds where there was time for that, else
        what is left of making it. The other is loadvm in the same QEMU: milliseconds for a small machine, and 100 and
        more for one whose memory is in use. The first resets measure both, to the answer of vmtest's agent where there
        is one; ``reset_way`` is what they have shown. A guest that has crashed, is paused, or whose QEMU has died is
        reset as well, and a command that runs in another thread raises GuestGone.

        ``way`` ("loadvm" or "clone") is for those who must have one. By loadvm an x86's TSC does not go back: it, and a
        kernel's clock with it, is ahead by the seconds that the guest has run since, 10 at most. A kernel on x86 is
        therefore reset by clones unless loadvm is asked for.

        Raises SnapshotError, also where loadvm is asked for and QEMU refuses; UsageError for a snapshot of another
        machine.
        """
        self._fits(snapshot)
        if way not in (None, *get_args(Way)):
            raise UsageError(f"there is no way {way!r} to reset a guest", hint=f"known: {', '.join(get_args(Way))}")
        if self._resetter is None:
            self._resetter = Resetter()
        with self._explained():
            self._resetter.reset(self._life, snapshot, self._become, way=way)
        return self

    @property
    def reset_way(self) -> Way | None:
        """The way that ``reset_to`` takes, "loadvm" or "clone", None while it has not measured both."""
        return self._resetter.way if self._resetter is not None else None

    def _fits(self, snapshot: Snapshot) -> None:
        if not isinstance(snapshot, Snapshot):
            raise UsageError(
                f"{snapshot!r} is not a snapshot",
                hint="take what guest.snapshot() returns; boot(snapshot=NAME) for a name",
            )
        if snapshot.machine != self.machine:
            theirs, ours = asdict(snapshot.machine), asdict(self.machine)
            differs = ", ".join(
                f"{name} {theirs[name]} and not {ours[name]}" for name in ours if theirs[name] != ours[name]
            )
            raise UsageError(
                f"{snapshot!r} is of another machine than this guest's: {differs}",
                hint="boot(snapshot=NAME) makes a guest of a named one",
            )

    def _become(self, life: Life) -> None:
        """Change into that life, which stands still and may be the present one, and let it run."""
        if life is not self._life:
            before, logs = self._life, self._life.logs
            kept = before.logs != before.workdir.path
            self._life = life
            before.close()
            if kept:
                life.move_logs(logs)
        life.started = time.monotonic()
        life.uplink.wake(life.running.resume, Deadline(self.boot_timeout * self.timeout_scale))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- inside --------------------------------------------------------------------------------------------------

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline((self.timeout if timeout is None else timeout) * self.timeout_scale)

    def _open(self) -> None:
        if self._life.closed:
            raise UsageError(f"{self.name} has ended: it was shut down or killed")

    def _channel(self) -> CommandChannel:
        self._open()
        if self._uplink.channel is None:
            self.wait_up()
        assert self._uplink.channel is not None
        return self._uplink.channel

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever goes wrong here shows the guest's command line, QEMU's stderr and the console's tail."""
        try:
            yield
        except UsageError:
            raise
        except VmtestError as error:
            if isinstance(error, GuestGone) and self._running.verdict.wait(2):
                self._running.verdict.check()  # which says why it has gone
            error.evidence |= {title: text for title, text in self.evidence.items() if title not in error.evidence}
            raise
