"""The host's end of vmtest's own agent (images/_agent/agent.c): commands over one port, raw bytes in frames.

A frame is a 12-byte little-endian header {u32 type, u32 id, u32 length} and its payload, at most 64 KiB. ``id`` is
the host's number for a command.

    type        sent by  payload
    HELLO       host     a nonce of 16 bytes: the guest kills what it runs and answers
                guest    the nonce and the u32 protocol version
    SPAWN       host     u32 arguments, u32 variables, then cwd, each argument, each NAME=value, all ended by NUL
    STDIN       host     standard input; without payload its end. At most 64 KiB may be unconfirmed
    STDIN_DONE  guest    u32 bytes of standard input that the command has taken
    KILL        host     u32 signal, sent to the command's process group
    STDOUT      guest    what the command wrote
    STDERR      guest    likewise
    EXIT        guest    u32 status, u32 signal (0 where it exited)
    REFUSED     guest    why the command could not be started
    PING        both     the guest answers with the same
    WAKE        host     u64 seconds and u64 nanoseconds since 1970, and random bytes, at most 256: the guest sets its
                         clock, and renews its random numbers with these
                guest    u32 error number of the random numbers, u32 of the clock (0: done)
    HOLD        host     nothing: no other program of the guest's runs until a WAKE, or a HOLD with a payload
                guest    u32 error number (0: done)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from vmtest.deadline import Deadline
from vmtest.errors import GuestError, GuestGone, UsageError, VmtestError
from vmtest.model.machine import Channel
from vmtest.qemu import loop
from vmtest.qemu.channel import Command, Exit, OnOutput
from vmtest.qemu.verdict import Verdict

__all__ = ["Agent"]

HELLO, SPAWN, STDIN, KILL, STDIN_DONE, STDOUT, STDERR, EXIT, REFUSED, PING, WAKE, HOLD = range(1, 13)
RESET = 0  # not of the protocol: put into a queue when the guest was reset
STREAMS = {STDOUT: "stdout", STDERR: "stderr"}
HEADER = struct.Struct("<III")
TWO = struct.Struct("<II")
RANDOM = 64
"""Bytes with which a guest renews its random numbers: twice what the kernel's generator holds."""
HELLO_ID = 0x74736D76
PROTOCOL = 3
PAYLOAD = 1 << 16
WINDOW = 1 << 16
"""Bytes of standard input that may be under way: what the guest keeps room for."""
INPUT_PIECE = 1 << 15
BACKLOG = 1 << 24
"""Bytes of output waiting for a slow caller at which the guest is made to wait."""
READ = 1 << 18
SIGKILL = 9


class Agent:
    """Runs commands through the agent; several threads may run one each at the same time."""

    kind = Channel.AGENT

    def __init__(self, sock: socket.socket, verdict: Verdict) -> None:
        """Speak on ``sock``, which is ours from here on; wake up with the verdict's error when there is one."""
        self._sock = sock
        self._verdict = verdict
        self._ids = itertools.count(1)
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._queues: dict[int, deque[tuple[int, bytes]]] = {}
        self._backlog = 0
        self._paused = False
        self._closed = False
        self._received = bytearray()
        self._unsent = b""
        self._unsent_of = self._lives = 0
        self._awaited: bytes | None = None
        verdict.on_set(self._wake)
        sock.setblocking(False)
        loop.call(self._listen)

    # -- reading, in the background thread ---------------------------------------------------------------------

    def _listen(self, running: asyncio.AbstractEventLoop) -> None:
        if not (self._closed or self._paused):  # either may have come since this was asked for
            running.add_reader(self._sock.fileno(), self._readable, running)

    def _readable(self, running: asyncio.AbstractEventLoop) -> None:
        try:
            data = self._sock.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        with self._changed:
            self._received += data
            if not data:  # never back to False: close() may have come first
                self._closed = True
            self._parse()
            self._paused = self._backlog > BACKLOG
            if self._closed or self._paused:
                running.remove_reader(self._sock.fileno())
            self._changed.notify_all()

    def _parse(self) -> None:
        buffer, at = self._received, 0
        if self._awaited is not None:  # what comes before the answer to our HELLO is of another life
            found = buffer.find(self._awaited)
            if found < 0:
                del buffer[: -len(self._awaited)]
                return
            at, self._awaited = found, None
        while len(buffer) - at >= HEADER.size:
            kind, number, size = HEADER.unpack_from(buffer, at)
            if len(buffer) - at - HEADER.size < size:
                break
            start = at + HEADER.size
            at = start + size
            if number in self._queues:
                self._queues[number].append((kind, bytes(buffer[start:at])))
                self._backlog += size
        del buffer[:at]

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- the channel -------------------------------------------------------------------------------------------

    def connect(self, deadline: Deadline) -> bool:
        """Say HELLO and wait for the answer, discarding what an earlier life of the guest had left.

        A HELLO that has not been answered yet is not said again: QEMU holds it until the guest opens its port.
        """
        if self._awaited is None:
            try:
                self._say_hello(deadline)
            except TimeoutError:
                return False
        return self._answered_hello(deadline)

    def _say_hello(self, deadline: Deadline) -> None:
        nonce = os.urandom(16)
        with self._changed:
            self._awaited = HEADER.pack(HELLO, HELLO_ID, 20) + nonce
            self._received.clear()
            self._queues[HELLO_ID] = deque()
        try:
            self._send(HELLO, HELLO_ID, nonce, deadline)
        except TimeoutError:
            self._awaited = None
            raise

    def _answered_hello(self, deadline: Deadline) -> bool:
        answer = self._next(HELLO_ID, deadline)
        if answer is None:
            return False
        version = struct.unpack_from("<I", answer[1], 16)[0]
        if version != PROTOCOL:
            raise UsageError(
                f"the guest's agent speaks protocol {version}, this vmtest speaks {PROTOCOL}",
                hint="build the image again: vmtest image rm NAME",
            )
        return True

    def wake(self, go_on: Callable[[], None], deadline: Deadline, *, connected: bool) -> None:
        """Have a guest that stands still begin with the time of now and new random numbers, before anything else that
        is asked of it; ``go_on`` lets it run. Raises GuestError where it cannot, TimeoutError.
        """
        number = next(self._ids)
        with self._changed:
            self._queues[number] = deque()
        try:
            if not connected:
                self._say_hello(deadline)
            now = time.time_ns()
            payload = struct.pack("<QQ", *divmod(now, 10**9)) + os.urandom(RANDOM)
            self._send(WAKE, number, payload, deadline)
            go_on()
            if not connected and not self._answered_hello(deadline):
                raise TimeoutError
            frame = self._next(number, deadline)
            if frame is None:
                raise TimeoutError
        finally:
            with self._changed:
                self._taken(sum(len(data) for _, data in self._queues.pop(number)))
        for what, error in zip(("random numbers", "clock"), TWO.unpack(frame[1]), strict=True):
            if error:
                raise GuestError(f"the guest's {what} could not be set anew: {os.strerror(error)}")

    @contextlib.contextmanager
    def held(self, deadline: Deadline) -> Iterator[None]:
        """While it lasts no other program of the guest's runs, and nothing is sent to it: the moment of a snapshot,
        whose clones are woken before anything in them draws a random number. Raises GuestError, TimeoutError.
        """
        number = next(self._ids)
        with self._changed:
            self._queues[number] = deque()
        try:
            self._send(HOLD, number, b"", deadline)
            # A frame that is torn by the snapshot would be completed by what is sent to its clones.
            if not self._sending.acquire(timeout=min(deadline.remaining, threading.TIMEOUT_MAX)):
                raise TimeoutError
            try:
                self._flush(deadline, judged=True)
                frame = self._next(number, deadline)
                if frame is None:
                    raise TimeoutError
                if error := struct.unpack("<I", frame[1])[0]:
                    raise GuestError(f"the guest's other programs could not be held: {os.strerror(error)}")
                yield
            finally:
                self._sending.release()
        finally:
            with self._changed:
                self._taken(sum(len(data) for _, data in self._queues.pop(number)))
            with contextlib.suppress(VmtestError, TimeoutError):
                self._send(HOLD, number, b"\1", deadline, judged=False)

    def forget(self) -> None:
        """The guest has been reset: whoever waits for a command gets GuestGone; ``connect`` begins anew."""
        with self._changed:
            self._lives += 1
            self._awaited = None
            for number, queue in self._queues.items():
                if number != HELLO_ID:
                    queue.append((RESET, b""))
            self._changed.notify_all()

    def answers(self, deadline: Deadline) -> bool:
        """Whether the agent answers a PING. Unlike everything else this ignores the verdict."""
        number = next(self._ids)
        with self._changed:
            self._queues[number] = deque()
        try:
            self._send(PING, number, b"", deadline, judged=False)
            with self._changed:
                return bool(self._changed.wait_for(lambda: self._queues[number], deadline.timeout))
        except (TimeoutError, GuestGone):
            return False
        finally:
            with self._changed:
                del self._queues[number]

    def run(self, command: Command, *, deadline: Deadline, on_output: OnOutput) -> Exit:
        """Run a command; see CommandChannel. Raises GuestError where the guest cannot start any."""
        number = next(self._ids)
        payload = _spawn_payload(command)
        with self._changed:
            self._queues[number] = deque()
        try:
            self._send(SPAWN, number, payload, deadline)
            outcome = self._follow(number, command.input, deadline, on_output)
        except BaseException as error:  # a timeout, Ctrl-C, an error in on_output: nobody wants the command any more
            if not (isinstance(error, GuestGone) or self._verdict.is_set):
                self._end(number)
            raise
        finally:
            with self._changed:
                self._taken(sum(len(data) for _, data in self._queues.pop(number)))
        if isinstance(outcome, GuestError):
            raise outcome
        return outcome

    def _follow(self, number: int, stdin: bytes, deadline: Deadline, on_output: OnOutput) -> Exit | GuestError:
        """Feed and read a command to its end; how it ended, or why it never began."""
        sent = taken = 0
        open_ = True
        while True:
            while open_ and sent - taken < WINDOW:
                piece = stdin[sent : sent + min(INPUT_PIECE, WINDOW - (sent - taken))]
                self._send(STDIN, number, piece, deadline)
                sent += len(piece)
                open_ = bool(piece)
            frame = self._next(number, deadline)
            if frame is None:
                raise TimeoutError
            kind, data = frame
            if kind in STREAMS:
                on_output(STREAMS[kind], data)
            elif kind == STDIN_DONE:
                taken += struct.unpack("<I", data)[0]
            elif kind == EXIT:
                status, signal = TWO.unpack(data)
                return Exit(status, signal or None)
            elif kind == REFUSED:
                return GuestError(f"the guest could not start the command: {data.decode()}")
            if deadline.expired:  # here too: a command that prints without end never leaves the queue empty
                raise TimeoutError

    def _end(self, number: int) -> None:
        """Kill a command that is no longer wanted; its EXIT is waited for, so that it is gone when we return."""
        patience = Deadline(5)
        try:
            self._send(KILL, number, struct.pack("<I", SIGKILL), patience)
            while (frame := self._next(number, patience)) and frame[0] != EXIT:
                pass
        except (VmtestError, TimeoutError):
            return

    def _next(self, number: int, deadline: Deadline) -> tuple[int, bytes] | None:
        with self._changed:
            queue = self._queues[number]
            while not queue:
                self._verdict.check()
                if self._closed:
                    raise GuestGone("the guest's agent port closed")
                if deadline.expired:
                    return None
                self._changed.wait(deadline.timeout)
            kind, data = queue.popleft()
            if kind == RESET:
                raise GuestGone("the guest was reset, or its agent was killed, while a command ran")
            self._taken(len(data))
            return kind, data

    def _taken(self, size: int) -> None:
        self._backlog -= size
        if self._paused and self._backlog < BACKLOG // 2:
            self._paused = False
            loop.post(self._listen)

    def _send(self, kind: int, number: int, payload: bytes, deadline: Deadline, *, judged: bool = True) -> None:
        """Send a frame. Raises TimeoutError; what then is left of it goes before the next one, or that would be torn.

        ``judged`` says that a verdict ends the waiting.
        """
        if not self._sending.acquire(timeout=min(deadline.remaining, threading.TIMEOUT_MAX)):
            raise TimeoutError
        try:
            if self._unsent_of != self._lives:  # its beginning has gone with the life that it was sent to
                self._unsent = b""
            self._flush(deadline, judged)
            self._unsent, self._unsent_of = HEADER.pack(kind, number, len(payload)) + payload, self._lives
            self._flush(deadline, judged)
        finally:
            self._sending.release()

    def _flush(self, deadline: Deadline, judged: bool) -> None:
        size = len(self._unsent)
        while self._unsent:
            if self._unsent_of != self._lives:
                self._unsent = b""
                raise GuestGone("the guest was reset, or its agent was killed, while something was sent to it")
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except BlockingIOError:
                if judged:
                    self._verdict.check()
                if deadline.expired:
                    raise TimeoutError(f"{size - len(self._unsent)} of {size} bytes") from None
                poller = select.poll()  # and not select(): descriptors may be above 1023
                with contextlib.suppress(ValueError):  # closed by another thread: the next send says so
                    poller.register(self._sock, select.POLLOUT)
                    poller.poll(min(100.0, deadline.remaining * 1000))
            except OSError:
                if judged:
                    self._verdict.check()
                raise GuestGone("the guest's agent port closed") from None

    def close(self) -> None:
        """Stop reading and close the socket."""

        def forget(running: asyncio.AbstractEventLoop) -> None:
            if self._sock.fileno() >= 0:
                running.remove_reader(self._sock.fileno())
            self._sock.close()

        with self._changed:
            self._closed = True
            self._changed.notify_all()
        loop.call(forget)


def _spawn_payload(command: Command) -> bytes:
    variables = [f"{name}={value}" for name, value in command.env.items()]
    texts = [command.cwd, *command.argv, *variables]
    if any("\0" in text for text in texts):
        raise UsageError("a command's arguments, variables and directory cannot hold a NUL byte")
    body = b"".join(os.fsencode(text) + b"\0" for text in texts)
    payload = TWO.pack(len(command.argv), len(variables)) + body
    if len(payload) > PAYLOAD or len(texts) > 2000:
        raise UsageError(
            f"the command line and environment have {len(body)} bytes in {len(texts)} strings; the agent takes "
            f"{PAYLOAD - TWO.size} bytes in 2000",
            hint="pass long data as input=, or push a file",
        )
    return payload
