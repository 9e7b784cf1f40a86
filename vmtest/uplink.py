"""Which way commands reach a guest, found out while it boots."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vmtest.deadline import Deadline
from vmtest.errors import GuestError, GuestGone
from vmtest.model.machine import Channel
from vmtest.qemu.agent import Agent
from vmtest.qemu.channel import CommandChannel
from vmtest.qemu.qga import Qga
from vmtest.qemu.shell import Shell
from vmtest.running import Running

__all__ = ["Uplink"]

READY = b"vmtest-init: ready"
"""Printed by images/_init/init once it has started its agent, if it could."""
GRACE = 2.0
"""Seconds that an agent may take after that line: it was started before it."""

RESTARTED = 1.0
"""Seconds of silence after which an agent whose port has opened anew is another one."""


class Uplink:
    """The command channel of a guest, chosen once and found again after each reset.

    ``channel`` is None until ``connect`` has succeeded.
    """

    def __init__(self, running: Running, *, expects_agent: bool, announces: bool) -> None:
        self.channel: CommandChannel | None = None
        self._running = running
        self._candidate = self._first(running.machine.channel, expects_agent)
        self._ready = threading.Event()
        self._seen = b""
        self._announces = announces
        running.on_text = self._look
        running.on_reset = self._forget
        running.on_port = self._on_port
        running.alive = self._alive

    def _first(self, wanted: Channel, expects_agent: bool) -> CommandChannel:
        running = self._running
        if wanted is Channel.CONSOLE or (wanted is Channel.AUTO and not expects_agent):
            return Shell(running.console, running.verdict)
        assert running.agent_socket is not None
        kind = Qga if wanted is Channel.QGA else Agent
        return kind(running.agent_socket, running.verdict)

    def _look(self, data: bytes) -> None:
        if not self._ready.is_set():
            self._seen = self._seen[-len(READY) :] + data
            if READY in self._seen:
                self._ready.set()

    def _forget(self) -> None:
        self.channel = None
        self._seen = b""
        self._ready.clear()
        self._candidate.forget()

    def _on_port(self, is_open: bool) -> None:
        if not is_open:
            self._agent_has_ended()
        elif self.channel is not None:
            # QEMU tells of one change a second at most, the last one: a port that opens although we were connected may
            # have been closed before. The agent that we knew would answer.
            threading.Thread(target=self._look_for_agent, name="vmtest-port", daemon=True).start()

    def _look_for_agent(self) -> None:
        resets = self._running.resets
        if not self._alive(Deadline(RESTARTED * self._running.scale)) and resets == self._running.resets:
            self._agent_has_ended()

    def _agent_has_ended(self) -> None:
        """The guest's end of the port closed: its agent was killed. Whoever waits is told; init starts it again."""
        self.channel = None
        self._candidate.forget()

    def _alive(self, deadline: Deadline) -> bool:
        return self.channel is not None and self.channel.answers(deadline)

    def connect(self, deadline: Deadline) -> bool:
        """Wait for the guest to answer; whether it did before the deadline. Raises its panic or its end at once."""
        may_change = self._running.machine.channel is Channel.AUTO and isinstance(self._candidate, Agent)
        grace: Deadline | None = None
        if isinstance(self._candidate, Shell) and self._announces:
            # What is typed before the kernel's driver has taken the UART over can block it for good (PL011).
            self._wait_ready(deadline)
        while not deadline.expired:
            resets = self._running.resets
            try:
                if self._candidate.connect(deadline.sooner(0.2) if may_change else deadline):
                    self.channel = self._candidate
                    return True
            except GuestGone:
                # Reset once more while it came up, as some machines are by one reboot; else it has ended.
                if not self._running.wait_reset(resets, Deadline(2)):
                    raise
            if may_change and self._ready.is_set():
                grace = grace or deadline.sooner(GRACE * self._running.scale)
                if grace.expired:  # its init is up and found no agent port: a kernel without virtio, say
                    self._candidate = Shell(self._running.console, self._running.verdict)
                    may_change = False
        if self._running.machine.channel is Channel.AGENT and self._ready.is_set():
            raise GuestError(
                "the guest is up, but its agent does not answer",
                hint="its kernel needs CONFIG_VIRTIO_PCI and CONFIG_VIRTIO_CONSOLE, built in or as modules of "
                "the image; or use the console as channel",
            )
        return False

    @property
    def agent(self) -> Agent | None:
        """vmtest's agent, if it is what commands go through, or will."""
        return self._candidate if isinstance(self._candidate, Agent) else None

    def wake(self, go_on: Callable[[], None], deadline: Deadline) -> None:
        """Let a guest that was restored run (``go_on`` does it). With the agent it begins with the time of now and
        random numbers of its own, and answers commands from here on. Raises GuestError.
        """
        if self.agent is None:
            self._ready.set()  # its init said so before it was saved, and does not say it again
            go_on()
            return
        try:
            self.agent.wake(go_on, deadline, connected=self.channel is not None)
        except TimeoutError:
            raise GuestError(f"the restored guest did not answer within {deadline.seconds:g} s") from None
        self.channel = self._candidate

    def _wait_ready(self, deadline: Deadline) -> None:
        while not (self._ready.wait(min(0.2, deadline.remaining)) or deadline.expired):
            self._running.verdict.check()

    def close(self) -> None:
        """Give up the connection."""
        self._candidate.close()
