"""One background thread with an asyncio loop: it starts every QEMU and reads all that they say.

A guest whose sockets nobody reads stalls, so they are read while the test does something else. The thread lives
as long as the interpreter: QEMU's parent-death signal fires when the *thread* that started it ends.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["call", "post", "run"]

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _background() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="vmtest-io", daemon=True).start()
        return _loop


def _forget() -> None:
    """A forked child has no thread: it makes its own when it needs one."""
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def run(coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
    """Run a coroutine in the background thread and wait for it. Raises TimeoutError after ``timeout`` seconds."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _background())
    try:
        return future.result(timeout)
    except BaseException:
        future.cancel()
        raise


def call(function: Callable[[asyncio.AbstractEventLoop], T]) -> T:
    """Call ``function(loop)`` in the background thread and wait for what it returns."""

    async def wrapped() -> T:
        return function(asyncio.get_running_loop())

    return run(wrapped())


def post(function: Callable[[asyncio.AbstractEventLoop], object]) -> None:
    """Call ``function(loop)`` in the background thread soon, without waiting for it."""
    running = _background()
    running.call_soon_threadsafe(function, running)
