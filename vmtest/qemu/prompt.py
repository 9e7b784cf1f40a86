"""Finding out whether a shell listens on the console, without disturbing what else may be there."""

from __future__ import annotations

import re
import secrets
import time

from vmtest.deadline import Deadline
from vmtest.errors import GuestError
from vmtest.qemu.frames import Frames
from vmtest.qemu.posix import PROBE

__all__ = ["sync"]

ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[ -/]*[@-~]|\].*?(\x07|\x1b\\))|\x1b[=>78]|[\0\r]")
PROMPT = re.compile(rb"[#$%>~] *\Z")
LOGIN = re.compile(rb"(login|[Pp]assword): *(\[ *\d+\.\d+\][^\n]*\n+)*\Z")


def sync(frames: Frames, deadline: Deadline, *, since: int = 0, at_once: bool) -> bool:
    """Type echo commands, at most one a second, until the newest is answered; whether that was before the deadline.

    Unless ``at_once``, first wait for what looks like a prompt, or for silence: what is typed while a guest
    boots may stop its boot loader.
    """
    before = min(1000, frames.console.total - since)
    seen = frames.console.tail[-before:] if before else b""
    heard = typed = time.monotonic()
    wanted = None
    while not deadline.expired:
        data = frames.read(deadline.sooner(0.0 if at_once else 0.15))
        now = time.monotonic()
        if data:
            heard, seen = now, seen + data
            if wanted and wanted in seen:
                return True
            seen = seen[-8192:]
        elif not at_once and LOGIN.search(ESCAPES.sub(b"", seen[-1000:])):
            raise GuestError(
                f"the console asks for a login: {frames.console.tail_text(1)!r}",
                hint="log in first: guest.console.expect('login:'), guest.console.sendline('root'), …",
            )
        prompt = not data and PROMPT.search(ESCAPES.sub(b"", seen[-1000:]))
        waited = now - typed
        if at_once or (waited >= 1 and (prompt or now - heard >= 1 or waited >= 3)) or (prompt and not wanted):
            tag = secrets.token_hex(3)
            wanted = f"<{tag} up {tag}>".encode()
            typed, at_once = now, False
            try:
                frames.type(PROBE.format(tag), deadline)
            except TimeoutError:
                return False
    return False
