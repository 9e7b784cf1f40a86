"""Processes that a run starts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

__all__ = ["deaf_children"]


@contextmanager
def deaf_children() -> Iterator[None]:
    """What is started within never hears a Ctrl-C, which goes to all processes of a terminal: ending them is for us."""
    resource_tracker.ensure_running()  # which the first process to be started does, and unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
