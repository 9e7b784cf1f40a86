"""A person's terminal connected to a guest's console."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmtest.deadline import Deadline
from vmtest.errors import GuestGone, UsageError, VmtestError

if TYPE_CHECKING:
    from vmtest.qemu.console import Console

__all__ = ["connect"]

ESCAPE = b"\x1d"
"""Ctrl-], as telnet and pexpect have it."""
TYPED = 1 << 12
"""Bytes typed that wait for a guest which does not read; what is typed beyond is answered by a beep."""
SLICE = 0.1
"""Seconds after which each side looks whether the other has ended."""


class _Printer(threading.Thread):
    """Copies the console to the terminal until the guest ends; ``error`` is why, where it did not just power off."""

    def __init__(self, console: Console, stdout: int) -> None:
        super().__init__(name="vmtest-terminal", daemon=True)
        self.console = console
        self.stdout = stdout
        self.stop = threading.Event()
        self.error: VmtestError | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                data = self.console.read(1 << 16, Deadline(SLICE))
                while data:
                    data = data[os.write(self.stdout, data) :]
        except (EOFError, GuestGone, OSError):  # OSError: the terminal is gone
            pass
        except VmtestError as error:
            self.error = error
        finally:
            self.stop.set()


def connect(console: Console) -> None:
    """Connect standard input and output to ``console`` until Ctrl-] is typed or the guest ends.

    Raises UsageError where standard input is no terminal, and GuestPanicked or QemuDied when that happens.
    """
    with console.attended(), _raw_terminal() as (stdin, stdout):
        printer = _Printer(console, stdout)
        printer.start()
        try:
            _type_until_escape(console, stdin, stdout, printer.stop)
        finally:
            printer.stop.set()
            printer.join(1)  # not for ever: a terminal that was stopped with Ctrl-S takes nothing
    if printer.error is not None:
        raise printer.error


@contextlib.contextmanager
def _raw_terminal() -> Iterator[tuple[int, int]]:
    try:
        stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
        saved = termios.tcgetattr(stdin)
    except (AttributeError, OSError, ValueError, termios.error) as error:
        raise UsageError(
            "the console can be connected to a terminal only, and standard input is none",
            hint="in a script use console.expect and console.send",
        ) from error
    try:
        tty.setraw(stdin)
        yield stdin, stdout
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, saved)


def _type_until_escape(console: Console, stdin: int, stdout: int, stop: threading.Event) -> None:
    poller = select.poll()  # and not select(): descriptors may be above 1023
    poller.register(stdin, select.POLLIN)
    waiting = b""
    with contextlib.suppress(VmtestError):  # the guest has ended: the printer knows why
        while not stop.is_set():
            if poller.poll(10 if waiting else SLICE * 1000):
                typed = os.read(stdin, 1024)
                before, escape, _ = typed.partition(ESCAPE)
                waiting += before
                if escape or not typed:
                    if waiting:
                        console.offer(waiting)
                    return
            if waiting:
                waiting = waiting[console.offer(waiting) :]
            if len(waiting) > TYPED:
                waiting = waiting[:TYPED]
                os.write(stdout, b"\a")
