"""QEMU, any version of it: a whole machine in which nothing runs but a runner of ours (images/_executors), which takes
batches of cases out of memory that it shares with us. Cases run in user mode.

A vector is the exception's number as the architecture has it: on x86 that of the Intel SDM, on aarch64 the exception
class (ESR_EL1.EC), on riscv64 the cause (scause). A system call is "unsupported", as with ``native``, on x86; on the
others it is an exception.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import subprocess
from collections.abc import Callable, Sequence
from importlib import import_module

from vmtest.errors import HostError
from vmtest.executors import base
from vmtest.executors.programs import lacks_program
from vmtest.executors.qemu_board import SLOTS, Board
from vmtest.host.binaries import SANDBOX, Qemu, find_qemu
from vmtest.host.system import UNLESS_ORPHANED, guarded, install_hint
from vmtest.model.arch import ARCHES
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import Isa

__all__ = ["Engine", "describe", "lacks"]

_BOARDS = {
    "x86_64": ("vmtest.executors.qemu_x86", "X86"),
    "aarch64": ("vmtest.executors.qemu_arm", "Arm"),
    "riscv64": ("vmtest.executors.qemu_riscv", "Riscv"),
}
_TRANSLATED = 32
"""MiB for translated code: each case has its own, and QEMU would take a gigabyte for them before it throws any away."""
_LOOK = 20
"""Milliseconds after which we look how far the guest has come."""


def lacks(isa: Isa, argument: str = "") -> str:
    """Why it cannot be had here, "" where it can."""
    if guarded(()) == ():
        return f"setpriv is missing, without which QEMU could outlive us ({install_hint('util-linux', 'setpriv')})"
    try:
        find(isa, argument)
    except HostError as error:
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return lacks_program(f"runner_{isa.name}", isa.name)


def describe(isa: Isa, argument: str = "") -> str:
    """Its version, and the CPU that it emulates."""
    version = ".".join(map(str, find(isa, argument).version))
    return f"QEMU {version}, TCG, -cpu {_board(isa).cpu}"


def find(isa: Isa, argument: str) -> Qemu:
    return find_qemu(argument, ARCHES[isa.name].name)


def _board(isa: Isa) -> type[Board]:
    module, name = _BOARDS[isa.name]
    board: type[Board] = getattr(import_module(module), name)
    return board


_PATIENCE, _PATIENCE_AT_START = 1.0, 4.0
"""Seconds. A start takes 0.04 on an idle host."""


class Engine(base.Engine):
    """One QEMU for all cases; another one when a case has killed it, or has stopped it for good.

    ``argument`` is the QEMU to run, as ``find_qemu`` takes it.
    """

    accelerator = f"tcg,tb-size={_TRANSLATED}"
    cpu = ""  # the board's
    # The runner's own timer ends what loops: this is for a guest that does not come so far.
    patience = _PATIENCE

    def __init__(self, isa: Isa, argument: str = "") -> None:
        super().__init__(isa)
        self._qemu = find(isa, argument)
        kind = _board(isa)
        self._ram, self._firmware = os.memfd_create("ram"), os.memfd_create("firmware")
        os.truncate(self._ram, kind.size)
        os.write(self._firmware, kind.firmware)
        self._board = kind(isa, mmap.mmap(self._ram, kind.size))
        self._stopped = self._again = False
        self._process = self._start()

    def _command(self) -> list[str]:
        board = self._board
        file = "/proc/self/fd/{}".format
        ram = f"memory-backend-file,id=ram,size={board.size},share=on,mem-path={file(self._ram)}"
        command = [str(self._qemu.path), "-object", ram, "-M", f"{board.machine},memory-backend=ram"]
        command += ["-m", f"{board.size}B", "-cpu", self.cpu or board.cpu, "-accel", self.accelerator]
        command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        command += ["-chardev", "stdio,id=bell,signal=off", "-serial", "chardev:bell"]
        command += ["-bios", file(self._firmware)] if board.firmware else board.arguments
        return [*command, "-sandbox", SANDBOX] if self._qemu.sandbox else command

    def _start(self) -> subprocess.Popen[bytes]:
        self._board.load()
        self.patience = _PATIENCE_AT_START
        words = os.memfd_create("words")
        try:
            self._process = subprocess.Popen(
                guarded((*UNLESS_ORPHANED, str(os.getpid()), *self._command())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                pass_fds=(self._ram, self._firmware),
                bufsize=0,
            )
            if not self._wait(lambda: None):
                self._bury()
                said = os.pread(words, 4000, 0).decode(errors="replace")
                raise HostError(f"{self._qemu.path} does not come up: {said}")
        finally:
            os.close(words)
            self.patience = _PATIENCE
        return self._process

    def _wait(self, look: Callable[[], None]) -> bool:
        """Wait until the runner says that it waits for cases; False where QEMU has ended."""
        output = self._process.stdout
        assert output is not None
        poller = select.poll()
        poller.register(output, select.POLLIN)
        while not poller.poll(_LOOK):
            look()
        return output.read(1) == b"."

    def _bury(self) -> int:
        """By which signal QEMU has ended."""
        with self._process as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)  # one that ends by itself has closed its output a little earlier
            process.kill()
        return max(0, -process.returncode)

    def run(self, case: Case) -> Outcome:
        """See Engine."""
        return self.run_all([case], lambda index: None)[0]

    def run_all(self, cases: Sequence[Case], mark: Callable[[int], None]) -> list[Outcome]:
        """See Engine."""
        outcomes: list[Outcome] = []
        while (begun := len(outcomes)) < len(cases):
            mark(begun)
            outcomes += self._run(cases[begun : begun + SLOTS], begun, mark)
        return outcomes

    def _run(self, batch: Sequence[Case], begun: int, mark: Callable[[int], None]) -> list[Outcome]:
        """The outcomes as far as QEMU came, and that of the case that it died of. It may be none."""
        board = self._board
        self._stopped = alive = begins = False
        board.give(batch)
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it while it waited
            assert self._process.stdin is not None
            begins = bool(self._process.stdin.write(b"."))
            alive = self._wait(lambda: mark(begun + board.progress()))
        number = len(batch) if alive else board.progress()
        outcomes = [board.outcome(index, case) for index, case in enumerate(batch[:number])]
        self._again = self._again and not outcomes
        if not alive:
            killed_by = self._bury()
            if self._stopped and self._again:
                outcomes.append(Outcome("timeout"))
            # Without a signal it was the runner that ended it, behind a case whose traces it cannot remove.
            elif begins and not self._stopped and number < len(batch) and (killed_by or not number):
                outcomes.append(Outcome("died", signal=killed_by))
            self._again = self._stopped and not self._again  # once more: perhaps the host was just too busy
            self._process = self._start()
        return outcomes

    def stop(self) -> None:
        """See Engine."""
        self._stopped = True
        self._process.kill()
