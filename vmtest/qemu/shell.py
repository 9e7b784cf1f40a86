"""Commands through the shell on the serial console, for guests that have a UART and nothing else.

Whatever sits at the prompt (ash, dash, bash with colours and bracketed paste) is only asked to start HELPER, a small
POSIX script kept in a file of the guest. The helper then reads one request a line in the tty's canonical mode, where
neither line editors nor prompts interfere, and answers in frames ``<TAG words TAG>``. TAG is random and a frame holds
no newline, so a kernel message in the middle of one breaks it and can never change it; what we type has no frame in
it, so an echo cannot look like one. Answers are printed twice, and asked for again where both were broken.

The command's output goes into files, which are then sent in blocks of numbered lines: lines that a kernel message
has broken are asked for again, and a POSIX cksum confirms each block.
"""

from __future__ import annotations

import binascii
import contextlib
import itertools
import os
import re
import secrets
import shlex
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from vmtest.deadline import Deadline
from vmtest.errors import GuestError, GuestGone, VmtestError
from vmtest.model.machine import Channel
from vmtest.qemu.channel import Command, Exit, OnOutput
from vmtest.qemu.posix import BLOCK, HELPER, LOADER, PIECE, PLACES, PROBE, cksum, decoded, exit_of, octal, script
from vmtest.qemu.verdict import Verdict

if TYPE_CHECKING:
    from vmtest.qemu.console import Console

__all__ = ["Shell"]

ASKED = 300
"""Broken lines asked for again at once, for the same reason."""
ECHO_OFF = 4096
"""More input than this is typed with the echo off, where the guest has stty."""
RETRY = 1.0
"""Seconds of silence after which a question is repeated, at first."""
PATIENCE = 10.0
"""Seconds for cleaning up after a deadline has passed."""
READ = 1 << 16
ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[ -/]*[@-~]|\].*?(\x07|\x1b\\))|\x1b[=>78]|[\0\r]")
PROMPT = re.compile(rb"[#$%>~] *\Z")
LOGIN = re.compile(rb"(login|[Pp]assword): *(\[ *\d+\.\d+\][^\n]*\n+)*\Z")


class Shell:
    """Runs commands through the console's shell, one at a time.

    The output is handed over when the command has ended, not while it runs. What the console printed meanwhile,
    kernel messages too, is in its log but no longer there to be expected: each run begins by discarding what is
    unread. A status above 128 is taken for a signal, as shells have it, so ``exit 137`` looks like SIGKILL. Where
    the guest lacks ``setsid``, what a killed command has started may survive it.
    """

    kind = Channel.CONSOLE

    def __init__(self, console: Console, verdict: Verdict) -> None:
        """Speak on ``console``, which stays the caller's."""
        self._console = console
        self._verdict = verdict
        self._running = threading.Lock()
        self._sending = threading.Lock()
        self._numbers = itertools.count(1)
        self._home = ""
        self._born = 0
        self._lost = False
        self._setsid = False
        self._tag = b""
        self._frame = re.compile(b"")
        self._decoder = ""
        self._received = b""
        self._frames: deque[bytes] = deque()
        self._lines: dict[int, bytes] = {}

    # -- the channel -------------------------------------------------------------------------------------------

    def connect(self, deadline: Deadline) -> bool:
        """Wait for a prompt and try it. Raises GuestError where somebody has to log in first."""
        with self._running:
            self._home = ""
            return self._sync(deadline, at_once=False)

    def run(self, command: Command, *, deadline: Deadline, on_output: OnOutput) -> Exit:
        """Run a command; see CommandChannel. Output comes at the end. Raises GuestError where the shell is busy."""
        text = f'echo $$ >"${{0%.c}}.p"\n{script(command)}exec {shlex.join(command.argv)}\n'
        with self._running:
            self._console.discard()
            self._lost = False
            self._begin(deadline)
            ended = False
            try:
                self._upload(os.fsencode(text), command.input, deadline)
                status, *sizes = self._execute(deadline)
                ended = True
                for stream, size in zip(("stdout", "stderr"), sizes, strict=True):
                    self._fetch(stream, size, deadline, on_output)
            except (TimeoutError, KeyboardInterrupt):
                patience = Deadline(PATIENCE)
                with contextlib.suppress(TimeoutError, VmtestError):
                    if not ended:
                        sizes = self._kill(patience)
                        for stream, size in zip(("stdout", "stderr"), sizes, strict=True):
                            self._fetch(stream, size, patience, on_output)
                with contextlib.suppress(VmtestError):
                    self._leave()
                raise
            self._leave()
            return exit_of(status)

    def answers(self, deadline: Deadline) -> bool:
        """Whether the shell, or the helper while a command runs, still answers. It takes nothing that others read."""
        start, tag = self._console.total, secrets.token_hex(3)
        line = PROBE.format(tag)
        wanted = f"<{tag} up {tag}>".encode()
        if self._running.locked():
            line, wanted = "0 ?", b"<%s 0 " % self._tag
        try:
            self._type(line, deadline)
        except VmtestError:
            return False
        seen, pause = start, threading.Event()
        while not deadline.expired:
            if (total := self._console.total) != seen:
                seen = total
                if wanted in self._console.tail[-(total - start) :]:
                    return True
            pause.wait(min(0.02, deadline.remaining))
        return False

    def forget(self) -> None:
        """The guest has been reset: a command that was running is gone."""
        self._lost = True
        self._born = self._console.total

    def close(self) -> None:
        """Nothing to give up: the console is the caller's."""

    # -- to the prompt and into the helper ---------------------------------------------------------------------

    def _sync(self, deadline: Deadline, *, at_once: bool) -> bool:
        """Type echo commands, at most one a second, until the newest is answered; whether that was before the deadline.

        Unless ``at_once``, first wait for what looks like a prompt, or for silence: what is typed while a guest
        boots may stop its boot loader.
        """
        before = min(1000, self._console.total - self._born)
        seen = self._console.tail[-before:] if before else b""
        heard = typed = time.monotonic()
        wanted = None
        while not deadline.expired:
            data = self._read(deadline.sooner(0.0 if at_once else 0.15))
            now = time.monotonic()
            if data:
                heard, seen = now, seen + data
                if wanted and wanted in seen:
                    return True
                seen = seen[-8192:]
            elif not at_once and LOGIN.search(ESCAPES.sub(b"", seen[-1000:])):
                raise GuestError(
                    f"the console asks for a login: {self._console.tail_text(1)!r}",
                    hint="log in first: guest.console.expect('login:'), guest.console.sendline('root'), …",
                )
            prompt = not data and PROMPT.search(ESCAPES.sub(b"", seen[-1000:]))
            waited = now - typed
            if at_once or (waited >= 1 and (prompt or now - heard >= 1 or waited >= 3)) or (prompt and not wanted):
                tag = secrets.token_hex(3)
                wanted = f"<{tag} up {tag}>".encode()
                typed, at_once = now, False
                self._type(PROBE.format(tag), deadline)
        return False

    def _begin(self, deadline: Deadline) -> None:
        """Start the helper, and have it stored in the guest where it is not (any more)."""
        while True:
            if not self._home:
                self._install(deadline)
            tag = self._new_tag()
            self._type(f"\x15 sh {self._home}/h {tag} || echo '<'{tag} 0 missing {tag}'>'", deadline)
            words = self._answer(b"0", deadline, 2 * RETRY)
            if words and words[0] == b"ready":
                break
            if words:
                self._home = ""
            else:
                self._find_prompt(deadline)
        self._decoder, self._setsid = words[1].decode(), words[2] == b"setsid"
        if self._decoder == "none":
            self._leave()
            raise GuestError(
                "commands cannot run over the console: the guest lacks a program that is needed for it",
                hint="needed are a POSIX sh, dd, wc, rm and one of base64, od, hexdump; or use another channel",
            )

    def _install(self, deadline: Deadline) -> None:
        text = HELPER.strip() + "\n.\n"
        size = sum(map(len, HELPER.strip().splitlines()))
        while True:
            tag = self._new_tag()
            loader = LOADER % (secrets.token_hex(4), tag, tag, tag, tag)
            self._type(f"\x15 sh -c '{loader}'", deadline)
            words = self._answer(b"0", deadline, 2 * RETRY)
            if words == [b"none"]:
                raise GuestError(f"commands cannot run over the console: the guest can write in none of {PLACES}")
            if words:
                home = words[0].decode()
                self._type(text, deadline, end="")
                while words and words[0] != b"got":
                    words = self._answer(b"0", deadline, 2 * RETRY)
                if words == [b"got", b"%d" % size]:
                    self._home = home
                    return
            self._find_prompt(deadline)

    def _find_prompt(self, deadline: Deadline) -> None:
        if not self._sync(deadline, at_once=True):
            raise GuestError(
                f"the shell on the console did not answer within {deadline.seconds:g} s",
                hint="something else may be running in the foreground of the console",
                evidence={"console tail": self._console.tail_text()},
            )

    # -- talking to the helper ---------------------------------------------------------------------------------

    def _upload(self, text: bytes, stdin: bytes, deadline: Deadline) -> None:
        if len(text) + len(stdin) > ECHO_OFF:
            self._ask("e", deadline)
        pieces = [("p c", piece) for piece in octal(text)]
        if stdin and self._decoder == "base64":
            whole = range(0, len(stdin), PIECE // 4 * 3)
            pieces += [("t 64", binascii.b2a_base64(stdin[i : i + PIECE // 4 * 3], newline=False)) for i in whole]
        else:
            pieces += [("p i", piece) for piece in octal(stdin)]
        for number, (verb, piece) in enumerate(pieces, 1):
            for _ in range(5):
                answer = self._ask(f"{verb} {number} {len(piece)} {piece.decode()}", deadline)
                if answer == [b"%d" % number]:
                    break
            else:
                raise GuestError("the guest could not store the command or its input", hint="is its disk full?")

    def _execute(self, deadline: Deadline) -> list[int]:
        """Let the helper run what was uploaded; the exit status and the sizes of stdout and stderr."""
        self._say("x", deadline)
        pause = RETRY
        while True:
            words = self._next(deadline.sooner(pause))
            if words is None:
                if deadline.expired:
                    raise TimeoutError
                self._say("?", deadline)  # its last answer may have been broken
                pause = min(2 * pause, 30.0)
            elif words[1:2] == [b"done"]:
                return [int(word) for word in words[2:]]
            elif words[1:] == [b"idle"]:
                self._say("x", deadline)

    def _kill(self, patience: Deadline) -> list[int]:
        """Kill the command; the sizes of its stdout and stderr."""
        if not self._setsid:
            self._type("\x03", patience, end="")  # reaches its children too, unless they ignore it
        while not patience.expired:
            self._say("kill", patience)  # again each second: the command may not have told its pid yet
            again = patience.sooner(RETRY)
            while words := self._next(again):
                if words[1:2] == [b"done"]:
                    return [int(word) for word in words[3:]]
                if words[1:] == [b"idle"]:
                    return [0, 0]
        raise TimeoutError

    def _fetch(self, stream: str, size: int, deadline: Deadline, on_output: OnOutput) -> None:
        for block in range(-(-size // BLOCK)):
            on_output(stream, self._block(stream[3], block, deadline)[: size - block * BLOCK])

    def _block(self, name: str, number: int, deadline: Deadline) -> bytes:
        wanted = ""
        self._lines.clear()
        for _ in range(1000):
            count, *sums = map(int, self._ask(f"g {name} {number} {wanted}", deadline))
            missing = [i for i in range(count) if i not in self._lines]
            if missing:
                wanted = f",{','.join(map(str, missing[:ASKED]))},"
                continue
            lines = [self._lines[i] for i in range(count)]
            with contextlib.suppress(ValueError):
                if not sums or cksum(b"\n".join(lines)) == sums[0]:
                    return decoded(self._decoder, lines)
            self._lines.clear()
            wanted = ""
        raise GuestError("the console garbles what the guest prints: no block of output arrived whole")

    def _leave(self) -> None:
        """Let the helper clean up and give back the prompt; Ctrl-C where it does not."""
        patience = Deadline(PATIENCE)
        try:
            self._ask("q", patience)
        except TimeoutError:
            self._type("\x03", patience, end="")
            self._sync(Deadline(PATIENCE), at_once=True)

    def _ask(self, request: str, deadline: Deadline) -> list[bytes]:
        """What the helper answers to a request that may be repeated. Raises TimeoutError."""
        pause = RETRY
        while True:
            answer = self._answer(self._say(request, deadline), deadline, pause)
            if answer is not None:
                return answer
            if deadline.expired:
                raise TimeoutError
            pause = min(2 * pause, 10.0)

    def _say(self, request: str, deadline: Deadline) -> bytes:
        number = next(self._numbers)
        self._type(f"{number} {request}", deadline)
        return b"%d" % number

    def _answer(self, number: bytes, deadline: Deadline, pause: float) -> list[bytes] | None:
        """The answer to a request; None after ``pause`` seconds of silence. Lines of output are kept as they come."""
        while words := self._next(deadline.sooner(pause)):
            if words[0] == b"=":
                self._lines[int(words[1])] = words[2]
            elif words[0] == number:
                return words[1:]
        return None

    # -- frames ------------------------------------------------------------------------------------------------

    def _new_tag(self) -> str:
        tag = secrets.token_hex(3)
        self._tag = tag.encode()
        self._frame = re.compile(rb"<%s ([^<>\r\n]*) %s>" % (self._tag, self._tag))
        self._received = b""
        self._frames.clear()
        return tag

    def _next(self, deadline: Deadline) -> list[bytes] | None:
        """The words of the next whole frame; None at the deadline."""
        while not self._frames:
            data = self._read(deadline)
            if not data:
                return None
            data = self._received + data
            end = data.rfind(b"\n") + 1
            for match in self._frame.finditer(data):
                self._frames.append(match[1])
                end = max(end, match.end())
            self._received = data[end:][-BLOCK:]
        body = self._frames.popleft()
        return body.split(b" ", 2) if body.startswith(b"=") else body.split()

    def _read(self, deadline: Deadline) -> bytes:
        if self._lost:
            raise GuestGone("the guest was reset")
        try:
            return self._console.read(READ, deadline)
        except EOFError:
            raise GuestGone("the guest's console closed") from None

    def _type(self, text: str, deadline: Deadline, end: str = "\n") -> None:
        with self._sending:
            self._console.send(text + end, timeout=deadline.remaining)
