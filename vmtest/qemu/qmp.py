"""QMP over the qemu.qmp library, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vmtest.deadline import Deadline
from vmtest.errors import QmpError
from vmtest.qemu import loop

__all__ = ["Event", "Qmp"]

Event = dict[str, Any]

# The library logs every disconnect as an error with a traceback; ours say it once, with what led to it.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Qmp:
    """A QMP connection on an inherited socket.

    ``on_event`` is called with each event, in the background thread: it must not block. Commands may be given
    from any thread.
    """

    def __init__(self, sock: socket.socket, *, on_event: Callable[[Event], None], deadline: Deadline) -> None:
        """Negotiate on ``sock``, which is ours from here on. Raises QmpError if QEMU does not answer in time."""
        self._on_event = on_event
        try:
            loop.run(self._connect(sock), deadline.timeout)
        except Exception as error:
            raise QmpError(f"QEMU did not answer on its QMP monitor: {_reason(error)}") from error

    async def _connect(self, sock: socket.socket) -> None:
        # Imported here: asyncio and the library would cost every user of `import vmtest` 40 ms.
        from qemu.qmp import EventListener, QMPClient

        self._client = QMPClient("vmtest")
        self._events = EventListener()
        self._client.register_listener(self._events)
        await self._client.connect(sock)
        self._pump_task = asyncio.create_task(self._pump())

    async def _pump(self) -> None:
        async for event in self._events:
            self._on_event(dict(event))

    def execute(self, command: str, *, timeout: float = 30.0, **arguments: object) -> Any:
        """Run a QMP command (``_`` in argument names stands for ``-``) and return what it returns.

        Raises QmpError if QEMU refuses it, does not answer within ``timeout`` seconds, or the connection broke.
        """
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return loop.run(self._client.execute(command, arguments or None), timeout)
        except Exception as error:
            raise QmpError(f"the QMP command {command} failed: {_reason(error)}") from None

    def execute_all(self, commands: Sequence[tuple[str, Mapping[str, object]]], *, timeout: float = 30.0) -> None:
        """Run commands one after another, all sent at once. Raises QmpError for the first that QEMU refuses."""

        async def run() -> list[object]:
            calls = (self._client.execute(name, arguments or None) for name, arguments in commands)
            return await asyncio.gather(*calls, return_exceptions=True)

        try:
            answers = loop.run(run(), timeout)
        except Exception as error:
            raise QmpError(f"the QMP command {commands[0][0]} failed: {_reason(error)}") from None
        for (name, _), answer in zip(commands, answers, strict=True):
            if isinstance(answer, BaseException):
                raise QmpError(f"the QMP command {name} failed: {_reason(answer)}")

    def send_descriptor(self, descriptor: int, name: str) -> None:
        """Give QEMU a copy of an open file, which it then knows by that name. Raises QmpError."""

        async def send() -> object:
            self._client.send_fd_scm(descriptor)
            return await self._client.execute("getfd", {"fdname": name})

        try:
            loop.run(send(), 30)
        except Exception as error:
            raise QmpError(f"the QMP command getfd failed: {_reason(error)}") from None

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._pump_task.done() or self._client.runstate.name != "RUNNING"

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        with contextlib.suppress(Exception):
            loop.run(self._disconnect(), 5)

    async def _disconnect(self) -> None:
        self._pump_task.cancel()
        await self._client.disconnect()


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
