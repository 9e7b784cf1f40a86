"""Commands through QEMU's guest agent, as distributions ship it: its standard protocol on a port of its own.

Facts, from its reference and source: a request is a line of JSON and so is its answer, in order; after a byte 0xFF
and guest-sync-delimited the answer follows a byte 0xFF, which tells it from what was left before. guest-exec keeps up
to 16 MiB of each stream in memory, hands them over when the command has ended *and* everybody has closed its output,
replaces the whole environment when given one, and has no event: its end must be polled for.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import select
import shlex
import socket
import threading
from typing import Any

from vmtest.deadline import Deadline
from vmtest.errors import GuestError, GuestGone, UsageError
from vmtest.model.machine import Channel
from vmtest.qemu.channel import Command, Exit, OnOutput
from vmtest.qemu.posix import exit_of, octal, script
from vmtest.qemu.verdict import Verdict

__all__ = ["Qga"]

READ = 1 << 18
FIRST_POLL, LAST_POLL = 0.005, 0.25
"""Seconds between looks at a running command: few for a short one, and no load on the guest by a long one."""
AGAIN = 1.0
"""Seconds after which an unanswered synchronisation is sent again: the agent may have started meanwhile."""
PATIENCE = 10.0
"""Seconds for killing a command after its deadline."""
INPUT = 32 << 20
"""Bytes of standard input: the agent refuses JSON above 64 MiB."""
# In a session of its own, so that it can be killed with its children.
START = 'type setsid >/dev/null 2>&1 && exec setsid sh -c "$1"; exec sh -c "$1"'
# The output goes through files, so that a child that holds it open is not waited for.
RUN = """\
exec 3>&2 2>/dev/null
for d in "${TMPDIR:-/tmp}" /tmp /run /dev/shm /var/tmp; do
 f=$d/.vmtest-%(name)s
 (umask 077; : >"$f.o" && : >"$f.e") && break
 f=
done
[ "$f" ] || exec 2>&3 3>&-
[ "$f" ] || { %(command)s
}
(%(command)s
) >"$f.o" 2>"$f.e" 3>&-
s=$?
cat "$f.o"
cat "$f.e" >&3
rm -f "$f.o" "$f.e"
exit $s
"""
KILL = """\
kill -9 -%(pid)d || kill -9 %(pid)d
for f in "${TMPDIR:-/tmp}" /tmp /run /dev/shm /var/tmp; do
 f=$f/.vmtest-%(name)s
 [ -f "$f.o" ] && cat "$f.o" && cat "$f.e" >&2 && rm -f "$f.o" "$f.e"
done
"""


class Qga:
    """Runs commands through the guest agent; several threads may run one each at the same time.

    The output is handed over when the command has ended. A status above 128 is taken for a signal, as shells have it.
    """

    kind = Channel.QGA

    def __init__(self, sock: socket.socket, verdict: Verdict) -> None:
        """Speak on ``sock``, which is ours from here on; wake up with the verdict's error when there is one."""
        self._sock = sock
        self._verdict = verdict
        self._talking = threading.Lock()
        self._synced = False
        self._life = 0
        self._heard = 0
        self._rest = b""
        self._woken, self._waker = socket.socketpair()
        for end in (sock, self._woken, self._waker):
            end.setblocking(False)
        verdict.on_set(self._wake)

    # -- the channel -------------------------------------------------------------------------------------------

    def connect(self, deadline: Deadline) -> bool:
        """Wait for the agent to answer, discarding what an earlier life of the guest had left."""
        try:
            with self._talking:
                self._sync(deadline)
        except TimeoutError:
            return False
        return True

    def run(self, command: Command, *, deadline: Deadline, on_output: OnOutput) -> Exit:
        """Run a command; see CommandChannel. Output comes at the end.

        Raises GuestError where the agent may not run commands, and for output of more than 16 MiB.
        """
        if len(command.input) > INPUT:
            raise UsageError(
                f"the guest agent takes {INPUT >> 20} MiB of input, not {len(command.input)} bytes",
                hint="push a file in pieces, or use vmtest's own agent as channel",
            )
        name, life = secrets.token_hex(6), self._life
        text = f"{script(command)}exec {shlex.join(command.argv)}"
        body = _json_safe(RUN % {"name": name, "command": text})
        pid = self._spawn(["-c", START, "sh", body], command.input, deadline)
        try:
            status = self._wait(pid, deadline, life)
        except (TimeoutError, KeyboardInterrupt) as error:
            with contextlib.suppress(TimeoutError, GuestError):
                patience = Deadline(PATIENCE)
                killer = self._spawn(["-c", KILL % {"pid": pid, "name": name}], b"", patience)
                written = self._wait(killer, patience, life)
                self._wait(pid, patience, life)
                if isinstance(error, TimeoutError):
                    _deliver(written, on_output)
            raise
        if status.get("out-truncated") or status.get("err-truncated"):
            raise GuestError(
                "the command wrote more than the guest agent keeps, 16 MiB a stream: the rest is lost",
                hint="let it write to a file of the guest and read that in pieces, or use vmtest's own agent",
            )
        _deliver(status, on_output)
        if "signal" in status:
            return Exit(128 + status["signal"], status["signal"])
        return exit_of(status.get("exitcode", 0))

    def answers(self, deadline: Deadline) -> bool:
        """Whether the agent answers. Unlike everything else this ignores the verdict."""
        heard = self._heard
        while not deadline.expired:
            if self._talking.acquire(timeout=min(0.05, deadline.remaining)):
                try:
                    self._sync(deadline, heedless=True)
                except (TimeoutError, GuestGone):
                    return False
                else:
                    return True
                finally:
                    self._talking.release()
            if self._heard != heard:  # by a thread that runs a command
                return True
        return False

    def forget(self) -> None:
        """The guest has been reset: whoever waits for a command gets GuestGone; ``connect`` begins anew."""
        self._life += 1
        self._synced = False
        self._wake()

    def close(self) -> None:
        """Close the socket."""
        self.forget()
        with self._talking:
            for end in (self._sock, self._woken, self._waker):
                end.close()

    # -- commands ----------------------------------------------------------------------------------------------

    def _spawn(self, arguments: list[str], stdin: bytes, deadline: Deadline) -> int:
        wanted: dict[str, Any] = {"path": "/bin/sh", "arg": arguments, "capture-output": True}
        if stdin:
            wanted["input-data"] = base64.b64encode(stdin).decode()
        return int(self._ask("guest-exec", wanted, deadline)["pid"])

    def _wait(self, pid: int, deadline: Deadline, life: int) -> dict[str, Any]:
        pause = FIRST_POLL
        while True:
            status: dict[str, Any] = self._ask("guest-exec-status", {"pid": pid}, deadline, life)
            if status["exited"]:
                return status
            if deadline.expired:
                raise TimeoutError
            _poll(min(pause, deadline.remaining), self._woken)
            self._drain()
            self._check(life)
            pause = min(1.5 * pause, LAST_POLL)

    def _ask(self, name: str, arguments: dict[str, Any], deadline: Deadline, life: int | None = None) -> Any:
        with self._talking:
            if life is None:
                life = self._life
            self._check(life)
            if not self._synced:
                self._sync(deadline)
            self._synced = False  # until the answer is there: an exception leaves one to be skipped
            self._send({"execute": name, "arguments": arguments}, deadline, life)
            answer = json.loads(self._line(deadline, life))
            self._synced = True
        if "return" in answer:
            return answer["return"]
        error = answer.get("error", {})
        if error.get("class") == "CommandNotFound":
            raise GuestError(
                f"the guest agent may not run commands: {error.get('desc')}",
                hint="allow guest-exec and guest-exec-status in the guest: block-rpcs or allow-rpcs in "
                "/etc/qemu/qemu-ga.conf; BLACKLIST_RPC, BLOCK_RPCS or FILTER_RPC_ARGS in /etc/sysconfig/qemu-ga on "
                "RHEL and Fedora; then restart qemu-guest-agent",
            )
        raise GuestError(f"the guest agent refused {name}: {error.get('desc')}")

    # -- lines -------------------------------------------------------------------------------------------------

    def _sync(self, deadline: Deadline, *, heedless: bool = False) -> None:
        """Have a number said back. A new one each time, or late answers to the old ones would be left over."""
        life = self._life
        while not deadline.expired:
            number = secrets.randbelow(1 << 31)
            request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
            self._send(request, deadline, life, heedless, before=b"\xff")
            with contextlib.suppress(TimeoutError):
                again = deadline.sooner(AGAIN)
                while True:
                    _, found, answer = self._line(again, life, heedless).rpartition(b"\xff")
                    with contextlib.suppress(ValueError):
                        if found and json.loads(answer).get("return") == number:
                            self._synced = True
                            return
        raise TimeoutError

    def _send(
        self, request: dict[str, Any], deadline: Deadline, life: int, heedless: bool = False, *, before: bytes = b""
    ) -> None:
        rest = memoryview(before + json.dumps(request).encode() + b"\n")
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                if not heedless:
                    self._check(life)
                if deadline.expired:
                    raise TimeoutError from None
                _poll(min(0.1, deadline.remaining), self._sock, events=select.POLLOUT)
            except OSError:
                if not heedless:
                    self._verdict.check()
                raise GuestGone("the guest agent's port closed") from None

    def _line(self, deadline: Deadline, life: int, heedless: bool = False) -> bytes:
        """The next line of JSON. What has been read of it is looked through once only, however long it is."""
        parts = []
        data = self._rest
        while (end := data.find(b"\n")) < 0:
            parts.append(data)
            data = self._receive(deadline, life, heedless, parts)
        self._rest = data[end + 1 :]
        return b"".join([*parts, data[:end]])

    def _receive(self, deadline: Deadline, life: int, heedless: bool, parts: list[bytes]) -> bytes:
        while True:
            if not heedless:
                self._check(life)
            try:
                data = self._sock.recv(READ)
            except BlockingIOError:
                if deadline.expired:
                    self._rest = b"".join(parts)
                    raise TimeoutError from None
                _poll(min(60.0, deadline.remaining), self._sock, self._woken)
                self._drain()
                continue
            except OSError:
                data = b""
            if not data:
                raise GuestGone("the guest agent's port closed")
            self._heard += 1
            return data

    def _check(self, life: int) -> None:
        self._verdict.check()
        if life != self._life:
            raise GuestGone("the guest was reset")

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def _drain(self) -> None:
        with contextlib.suppress(OSError):  # nothing there, or closed by another thread
            self._woken.recv(READ)


def _poll(seconds: float, *ends: socket.socket, events: int = select.POLLIN) -> None:
    """Wait until something can be done with one of them. Not select(): descriptors may be above 1023."""
    poller = select.poll()
    with contextlib.suppress(ValueError):  # closed by another thread: the next use of it says so
        for end in ends:
            poller.register(end, events)
        poller.poll(seconds * 1000)


def _deliver(status: dict[str, Any], on_output: OnOutput) -> None:
    for stream, key in (("stdout", "out-data"), ("stderr", "err-data")):
        if data := base64.b64decode(status.get(key, "")):
            on_output(stream, data)


def _json_safe(text: str) -> str:
    """JSON is UTF-8: what is not goes as octal through the shell's printf."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"eval \"$(printf '{b''.join(octal(os.fsencode(text))).decode()}')\""
    return text
