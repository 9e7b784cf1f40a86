"""A machine's state into a file and out of it, by QEMU's own migration.

The guest's memory is not in that file where it is in a shared one of its own (x-ignore-shared): a few hundred KiB of
device state remain, which take milliseconds.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmtest.deadline import Deadline
from vmtest.errors import HostError, QmpError, SnapshotError
from vmtest.qemu.qmp import Event, Qmp

__all__ = ["FILE_URI", "Migration"]

FILE_URI = (8, 2, 0)
"""The first QEMU that takes ``file:PATH``; earlier ones take a descriptor of a file, which newer ones deprecate."""
UNLIMITED = 1 << 40
"""Bytes a second."""
LAST_WORDS = 2.0
"""Seconds that a QEMU which could not take a state has to end."""


class Migration:
    """The migrations of one QEMU. ``on_event`` must be given its events; ``wait`` waits for a condition to hold, and
    raises what ended QEMU.
    """

    def __init__(self, qmp: Qmp, version: tuple[int, int, int], wait: Callable[[Callable[[], bool], Deadline], bool]):
        self._qmp = qmp
        self._version = version
        self._wait = wait
        self._status = ""

    def on_event(self, event: Event) -> bool:
        """Take a MIGRATION event; whether it tells the end of one."""
        self._status = event["data"]["status"]
        return self._status in ("completed", "failed")

    def save(self, path: Path, deadline: Deadline) -> None:
        """Write the state of the stopped machine, but for shared memory, to ``path``. Raises SnapshotError."""
        if self._version >= FILE_URI:
            self._run("migrate", f"file:{path}", deadline, shared=False)
            return
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SnapshotError(f"{path} cannot be written: {error.strerror}") from error
        try:
            self._qmp.send_descriptor(descriptor, "state")
        finally:
            os.close(descriptor)
        self._run("migrate", "fd:state", deadline, shared=False)

    def load(self, descriptor: int, deadline: Deadline) -> None:
        """Take the state from a file that QEMU has inherited under that number; the machine stays stopped.

        Raises SnapshotError.
        """
        uri = f"file:/proc/self/fd/{descriptor}" if self._version >= FILE_URI else f"fd:{descriptor}"
        self._run("migrate-incoming", uri, deadline, shared=False)

    def send(self, other: Migration, deadline: Deadline) -> None:
        """Move the state of the stopped machine, memory and all, to another QEMU, which waits for it."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            other._qmp.send_descriptor(theirs.fileno(), "state")
            self._qmp.send_descriptor(ours.fileno(), "state")
        other._begin("migrate-incoming", "fd:state", shared=True)
        self._run("migrate", "fd:state", deadline, shared=True)
        other._end("migrate-incoming", deadline, "saved")
        # QEMU tells the end a moment before it is ready for `cont`, and then tells nothing more: there is no event.
        while self._qmp.execute("query-status")["status"] == "finish-migrate" and not deadline.expired:
            time.sleep(0.001)

    def _run(self, command: str, uri: str, deadline: Deadline, *, shared: bool) -> None:
        self._begin(command, uri, shared=shared)
        self._end(command, deadline)

    def _begin(self, command: str, uri: str, *, shared: bool) -> None:
        """``shared``: the contents of shared memory are part of the state."""
        self._status = ""
        switches = {"events": True, "x-ignore-shared": not shared}
        capabilities = [{"capability": name, "state": state} for name, state in switches.items()]
        commands: list[tuple[str, dict[str, object]]] = [("migrate-set-capabilities", {"capabilities": capabilities})]
        if shared and command == "migrate":  # by default QEMU moves 128 MiB/s, and the guest stands still
            commands.append(("migrate-set-parameters", {"max-bandwidth": UNLIMITED}))
        try:
            # Together: an answer is waited for once.
            self._qmp.execute_all([*commands, (command, {"uri": uri})])
        except QmpError as error:
            raise SnapshotError(f"QEMU refuses: {error.message}") from error

    def _end(self, command: str, deadline: Deadline, what: str = "") -> None:
        incoming = command == "migrate-incoming"
        what = what or ("restored" if incoming else "saved")
        try:
            ended = self._wait(lambda: self._status in ("completed", "failed"), deadline)
            if ended and self._status == "failed" and incoming:  # QEMU ends, having said why
                self._wait(lambda: False, deadline.sooner(LAST_WORDS))
        except HostError as error:
            words = _words(error.evidence.get("QEMU stderr", "")) or error.message
            raise SnapshotError(f"the state could not be {what}: {words}", evidence=error.evidence) from error
        if not ended:
            raise SnapshotError(f"the state was not {what} within {deadline.seconds:g} s")
        if self._status == "failed":
            answer: dict[str, Any] = self._qmp.execute("query-migrate")
            raise SnapshotError(f"the state could not be {what}: {answer.get('error-desc', 'QEMU does not say why')}")


def _words(stderr: str) -> str:
    """What QEMU said last, without its name before each line."""
    lines = [line.partition(": ")[2] or line for line in stderr.strip().splitlines()]
    return "; ".join(lines[-3:])
