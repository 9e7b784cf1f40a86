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
import os
import secrets
import shlex
import threading
from typing import TYPE_CHECKING

from vmtest.deadline import Deadline
from vmtest.errors import GuestError, VmtestError
from vmtest.model.machine import Channel
from vmtest.qemu.channel import Command, Exit, OnOutput
from vmtest.qemu.frames import RETRY, Frames
from vmtest.qemu.posix import BLOCK, HELPER, LOADER, PIECE, PLACES, PROBE, STOP, cksum, decoded, exit_of, octal, script
from vmtest.qemu.prompt import sync
from vmtest.qemu.verdict import Verdict

if TYPE_CHECKING:
    from vmtest.qemu.console import Console

__all__ = ["Shell"]

FILES = {"stdout": "o", "stderr": "e"}
ATTEMPTS = 1000
ASKED = 300
"""Broken lines asked for again at once, for a line that we type is limited."""
BATCH = 16
"""Lines typed without waiting: a tty whose reader is slow holds back 64 KiB."""
ECHO_OFF = 4096
"""More input than this is typed with the echo off, where the guest has stty."""
PATIENCE = 10.0
"""Seconds for cleaning up after a deadline has passed."""
PAUSE = threading.Event()  # never set


class Shell:
    """Runs commands through the console's shell, one at a time.

    The output is handed over when the command has ended, not while it runs. What the console printed meanwhile,
    kernel messages too, is in its log but no longer there to be expected: each run begins by discarding what is
    unread. A status above 128 is taken for a signal, as shells have it, so ``exit 137`` looks like SIGKILL. Where
    the guest lacks ``setsid``, what a killed command has started may survive it.
    """

    kind = Channel.CONSOLE

    def __init__(self, console: Console, verdict: Verdict) -> None:
        """Speak on ``console``, which stays the caller's, and which looks after the verdict."""
        self._console = console
        self._frames = Frames(console)
        self._running = threading.Lock()
        self._home = ""
        self._born = 0
        self._setsid = False
        self._decoder = ""

    # -- the channel -------------------------------------------------------------------------------------------

    def connect(self, deadline: Deadline) -> bool:
        """Wait for a prompt and try it. Raises GuestError where somebody has to log in first."""
        with self._running:
            self._home = ""
            self._frames.lost = False
            return sync(self._frames, deadline, since=self._born, at_once=False)

    def run(self, command: Command, *, deadline: Deadline, on_output: OnOutput) -> Exit:
        """Run a command; see CommandChannel. Output comes at the end. Raises GuestError where the shell is busy."""
        text = f"{script(command)}exec {shlex.join(command.argv)}\n"
        with self._running:
            self._console.discard()
            self._frames.lost = False
            self._begin(deadline)
            ended = False
            try:
                self._upload(os.fsencode(text), command.input, deadline)
                status, *sizes = self._execute(deadline)
                ended = True
                self._fetch(sizes, deadline, on_output)
            except BaseException as error:
                with contextlib.suppress(TimeoutError, VmtestError):
                    patience = Deadline(PATIENCE)
                    sizes = [] if ended else self._kill(patience)
                    if isinstance(error, TimeoutError):
                        self._fetch(sizes, patience, on_output)
                with contextlib.suppress(VmtestError):
                    self._leave()
                raise
            self._leave()
            return exit_of(status)

    def answers(self, deadline: Deadline) -> bool:
        """Whether the shell answers, or while a command runs its helper. It takes nothing that others want to read."""
        try:
            if not self._running.acquire(blocking=False):
                return self._helper_answers(deadline)
            try:
                return self._shell_answers(deadline)
            finally:
                self._running.release()
        except (TimeoutError, VmtestError):
            return False

    def _shell_answers(self, deadline: Deadline) -> bool:
        start = seen = self._console.total
        tag = secrets.token_hex(3)
        wanted = f"<{tag} up {tag}>".encode()
        again = Deadline(0)
        while not deadline.expired:
            if again.expired:
                self._frames.type(PROBE.format(tag), deadline)
                again = Deadline(RETRY)
            if (total := self._console.total) != seen:
                seen = total
                if wanted in self._console.tail[-(total - start) :]:
                    return True
            PAUSE.wait(min(0.02, deadline.remaining))
        return False

    def _helper_answers(self, deadline: Deadline) -> bool:
        heard, again = self._frames.heard, Deadline(0)
        while not deadline.expired:
            if again.expired and self._frames.ready:
                self._frames.type("0 ?", deadline)
                again = Deadline(RETRY)
            PAUSE.wait(min(0.02, deadline.remaining))
            if self._frames.heard != heard:  # by the thread that runs the command
                return True
        return False

    def forget(self) -> None:
        """The guest has been reset: a command that was running is gone."""
        self._frames.lost = True
        self._born = self._console.total

    def close(self) -> None:
        """Nothing to give up: the console is the caller's."""

    # -- to the prompt and into the helper ---------------------------------------------------------------------

    def _begin(self, deadline: Deadline) -> None:
        """Start the helper, and have it stored in the guest where it is not (any more)."""
        while True:
            if not self._home:
                self._install(deadline)
            tag = self._frames.begin()
            self._frames.type(f"\x15 sh {self._home}/h {tag} || echo '<'{tag} 0 missing {tag}'>'", deadline)
            words = self._frames.answer(b"0", deadline, 2 * RETRY)
            if words and words[0] == b"ready":
                self._frames.ready = True
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
        lines = ["+" + line for line in HELPER.strip().splitlines()]
        size = sum(map(len, lines))
        while True:
            tag = self._frames.begin()
            loader = LOADER % (secrets.token_hex(4), tag, tag, tag, tag)
            self._frames.type(f"\x15 sh -c '{loader}'", deadline)
            words = self._frames.answer(b"0", deadline, 2 * RETRY)
            if words == [b"none"]:
                raise GuestError(f"commands cannot run over the console: the guest can write in none of {PLACES}")
            if words:
                home = words[0].decode()
                self._frames.type("\n".join([*lines, STOP]), deadline)
                while words and words[0] != b"got":
                    words = self._frames.answer(b"0", deadline, 2 * RETRY)
                if words == [b"got", b"%d" % size]:
                    self._home = home
                    return
            self._find_prompt(deadline)

    def _find_prompt(self, deadline: Deadline) -> None:
        with contextlib.suppress(TimeoutError):
            self._frames.type(STOP, deadline)
        if not sync(self._frames, deadline, at_once=True):
            raise GuestError(
                f"the shell on the console did not answer within {deadline.seconds:g} s",
                hint="something else may be running in the foreground of the console",
                evidence={"console tail": self._console.tail_text()},
            )

    # -- talking to the helper ---------------------------------------------------------------------------------

    def _upload(self, text: bytes, stdin: bytes, deadline: Deadline) -> None:
        if len(text) + len(stdin) > ECHO_OFF:
            self._frames.ask("e", deadline)
        pieces = [("c", piece) for piece in octal(text)]
        if self._decoder == "base64":
            self._upload_base64(stdin, deadline)
        else:
            pieces += [("i", piece) for piece in octal(stdin)]
        for number, (name, piece) in enumerate(pieces, 1):
            request = f"p {name} {number} {len(piece)} {piece.decode()}"
            self._until(request, number, deadline, RETRY)

    def _upload_base64(self, stdin: bytes, deadline: Deadline) -> None:
        """By many lines at once, which dd reads: an emulated CPU takes a system call a byte to ``read`` them."""
        size = PIECE // 4 * 3
        lines = [binascii.b2a_base64(stdin[i : i + size]).decode() for i in range(0, len(stdin), size)]
        for number in range(0, len(lines), BATCH):
            batch = lines[number : number + BATCH]
            text = "".join(batch)
            self._until(f"b 64.{number:07} {len(batch)}\n{text[:-1]}", len(text), deadline, 3 * RETRY)

    def _until(self, request: str, wanted: int, deadline: Deadline, pause: float) -> None:
        for _ in range(5):
            if self._frames.ask(request, deadline, pause) == [b"%d" % wanted]:
                return
        raise GuestError("the guest could not store the command or its input", hint="is its disk full?")

    def _execute(self, deadline: Deadline) -> list[int]:
        """Let the helper run what was uploaded; the exit status and the sizes of stdout and stderr."""
        self._frames.say("x", deadline)
        pause = RETRY
        while True:
            words = self._frames.next(deadline.sooner(pause))
            if words is None:
                if deadline.expired:
                    raise TimeoutError
                self._frames.say("?", deadline)  # its last answer may have been broken
                pause = min(2 * pause, 30.0)
            elif words[1:2] == [b"done"]:
                return [int(word) for word in words[2:]]
            elif words[1:] == [b"idle"]:
                self._frames.say("x", deadline)

    def _kill(self, patience: Deadline) -> list[int]:
        """Kill the command; the sizes of its stdout and stderr."""
        if not self._setsid:
            self._frames.type("\x03", patience, end="")  # reaches its children too, unless they ignore it
        while not patience.expired:
            self._frames.say("kill", patience)  # again each second: the command may not have told its pid yet
            again = patience.sooner(RETRY)
            while words := self._frames.next(again):
                if words[1:2] == [b"done"]:
                    return [int(word) for word in words[3:]]
                if words[1:] == [b"idle"]:
                    return [0, 0]
        raise TimeoutError

    def _fetch(self, sizes: list[int], deadline: Deadline, on_output: OnOutput) -> None:
        for (stream, name), size in zip(FILES.items(), sizes, strict=False):
            for block in range(-(-size // BLOCK)):
                # A child that is left may write on: what counts is what was there when the command ended.
                on_output(stream, self._block(name, block, deadline)[: size - block * BLOCK])

    def _block(self, name: str, number: int, deadline: Deadline) -> bytes:
        lines, wanted = self._frames.lines, ""
        lines.clear()
        for _ in range(ATTEMPTS):
            count, *sums = map(int, self._frames.ask(f"g {name} {number} {wanted}", deadline))
            missing = [i for i in range(count) if i not in lines]
            if missing:
                wanted = f",{','.join(map(str, missing[:ASKED]))},"
                continue
            texts = [lines[i] for i in range(count)]
            with contextlib.suppress(ValueError):
                if not sums or cksum(b"\n".join(texts)) == sums[0]:
                    return decoded(self._decoder, texts)
            lines.clear()
            wanted = ""
        raise GuestError("the console garbles what the guest prints: no block of output arrived whole")

    def _leave(self) -> None:
        """Let the helper clean up and give back the prompt; Ctrl-C where it does not."""
        patience = Deadline(PATIENCE)
        with self._frames.sending:  # nobody asks it anything from here on
            self._frames.ready = False
        with contextlib.suppress(TimeoutError):
            # Repeated it would reach the shell that comes after the helper: a probe gets on with either.
            if self._frames.answer(self._frames.say("q", patience), patience, 2 * RETRY):
                return
            if not sync(self._frames, patience, at_once=True):
                self._frames.type("\x03", Deadline(PATIENCE), end="")
                sync(self._frames, Deadline(PATIENCE), at_once=True)
