"""Runs a probe program under an accelerator: did it answer what it must, and how fast was it?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vmtest.deadline import Deadline
from vmtest.host.binaries import Qemu
from vmtest.host.child import Child, running
from vmtest.model.accel import Accelerator
from vmtest.model.arch import arch
from vmtest.model.probe import Probe, checksum, iterations

__all__ = ["SECONDS", "Answer", "argv", "probe"]

SECONDS = 10.0
"""A probe that has not shown enough by then is killed. Usual: 0.2 to 0.5 s from start to end."""

_ENOUGH = 0.1
"""CPU seconds of a stage that make its speed trustworthy: a hundred times the jitter of a read."""
_RECORD = 6
"""Bytes that a stage prints: "S", "E", and x in four."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a probe showed. ``mips`` is in million instructions a second, None where it did not work, then ``why``.

    ``prompt`` says that QEMU ended by itself: trying again costs little, so that is not worth remembering.
    """

    mips: float | None = None
    why: str = ""
    prompt: bool = False


def argv(qemu: Qemu, row: Accelerator, cpu: str, program: Probe, image: str) -> tuple[str, ...]:
    """The command line that boots ``image`` on the architecture's default machine, its serial port on stdout."""
    board = arch(qemu.arch)
    machine = board.machine
    if row.name == "kvm" and board.machine_kvm:
        machine += f",{board.machine_kvm}"
    accel = ",".join((row.name, *row.properties))
    fixed = ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none")
    load = tuple(argument.format(image=image) for argument in program.arguments)
    where = ("-machine", machine, "-accel", accel, "-cpu", cpu or board.cpu, "-m", "64")
    return (str(qemu.path), *fixed, *where, "-serial", "stdio", *load)


def probe(qemu: Qemu, row: Accelerator, cpu: str, program: Probe, *, seconds: float = SECONDS) -> Answer:
    """Boot the program and watch it; never raises for what the guest or QEMU do. It is gone when this returns."""
    deadline = Deadline(seconds)
    with _in_memory(program.image()) as fd:
        command = argv(qemu, row, cpu, program, f"/proc/self/fd/{fd}")
        try:
            with running(command, fds=(fd,)) as child:
                return _watch(child, program, deadline)
        except OSError as error:
            return Answer(why=f"{qemu.path} does not start: {error.strerror}", prompt=True)


def _watch(child: Child, program: Probe, deadline: Deadline) -> Answer:
    said = bytearray()
    began = 0.0
    for chunk in child.chunks(deadline):
        # CPU time and not wall time: a busy host does not make an accelerator slow.
        now = child.cpu_seconds()
        for byte in chunk:
            said.append(byte)
            stage, position = divmod(len(said) - 1, _RECORD)
            count = iterations(stage)
            record = b"SE" + checksum(count).to_bytes(4, "little")
            if byte != record[position]:
                shown, meant = bytes(said[-1 - position :]), record[: position + 1]
                return Answer(why=_says(child, f"the guest answered {shown!r} where {meant!r} is right"))
            if position == 0:
                began = now
            elif position == 1:
                took = now - began
            elif position == _RECORD - 1 and took >= _ENOUGH:
                return Answer(mips=count * program.loop / took / 1e6)
    stages = f"{len(said) // _RECORD} stages" if said else "anything"
    if deadline.expired:
        return Answer(why=_says(child, f"the guest hung: in {deadline.seconds:g} s it did not get beyond {stages}"))
    status = child.end(deadline)
    how = f"was killed by signal {-status}" if status is not None and status < 0 else f"exited with {status}"
    return Answer(why=_says(child, f"QEMU {how} before the guest had answered {stages}"), prompt=True)


def _says(child: Child, why: str) -> str:
    words = child.errors()
    # Warnings come first, a register dump last; neither is the cause.
    lines = [line for line in words.splitlines() if line.strip() and "warning:" not in line][:2]
    return f"{why}; QEMU says: {' / '.join(lines)}" if lines else why


@contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """A file without a name, to be opened as /proc/self/fd/N by a child that inherits it."""
    fd = os.memfd_create("probe")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)
