"""Plain facts of the host: its system and architecture, its package manager, its boot."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from vmtest.errors import HostError
from vmtest.model.arch import ARCHES

__all__ = [
    "UNLESS_ORPHANED",
    "boot_id",
    "guarded",
    "host_arch",
    "install_hint",
    "process_cpu_seconds",
    "require_linux",
    "small_pages",
    "unhurried",
]

_INSTALL = {
    "dnf": "dnf install -y /usr/bin/{program}",
    "zypper": "zypper install -y --capability /usr/bin/{program}",
    "pacman": "pacman -S qemu-full",
}
"""How the other package managers find a program without its package's name being known (pacman: all of QEMU)."""


def require_linux() -> None:
    """Raises HostError where the host does not run Linux."""
    system = os.uname().sysname if hasattr(os, "uname") else os.name
    if system != "Linux":
        raise HostError(
            f"vmtest runs on Linux hosts, and this one runs {system}",
            hint="run it in a Linux machine or virtual machine",
        )


def host_arch() -> str:
    """The host's architecture by its name in ARCHES where it has one ("amd64" is "x86_64"), else the kernel's."""
    machine = os.uname().machine
    for row in ARCHES.values():
        if machine == row.name or machine in row.aliases:
            return row.name
    return machine


def install_hint(package: str, program: str) -> str:
    """The command that installs the program: by Debian's package name where apt exists, else by the program."""
    if shutil.which("apt-get"):
        return f"apt-get install -y {package}"
    for manager, command in _INSTALL.items():
        if shutil.which(manager):
            return command.format(program=program)
    return f"install the package of your distribution that has {program} (Debian calls it {package})"


def boot_id() -> str:
    """What tells this boot of the host from every other (random(4)); "" where it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_cpu_seconds(pid: int) -> float:
    """The CPU time that all threads of a process have used so far. Raises OSError where there is none."""
    # clock_getcpuclockid(3) as the kernel defines it (include/linux/posix-timers_types.h): the process number
    # inverted, and CPUCLOCK_SCHED. In ns, where /proc/PID/stat has ticks of 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


UNLESS_ORPHANED = ("/bin/sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
"""Between ``guarded`` and a command, with our process number: runs it after the signal was asked for, since a parent
that was killed before that moment has sent none."""


def guarded(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command line behind ``setpriv`` (util-linux), so that the kernel kills it when our process dies.

    Without util-linux's setpriv the command line itself: it then lives at most until its deadline, unless we die.
    """
    setpriv = shutil.which("setpriv")
    # BusyBox has a setpriv that knows no --pdeathsig.
    if setpriv is None or Path(setpriv).resolve().name.startswith("busybox"):
        return argv
    return (setpriv, "--pdeathsig", "KILL", "--", *argv)


PR_SET_CHILD_SUBREAPER, PR_SET_THP_DISABLE, PR_GET_THP_DISABLE = 36, 41, 42


def adopt_orphans() -> None:
    """Be the parent of what children leave behind, and not init, which may take seconds to wait for it (prctl(2))."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextlib.contextmanager
def small_pages() -> Iterator[None]:
    """What is started inside gets no transparent huge pages (prctl(2)); where the kernel cannot, it does."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    before = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0)
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_THP_DISABLE, max(before, 0), 0, 0, 0)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """This thread does not take the CPU from who has something for it (SCHED_BATCH, sched(7)): who waits for many
    answers of a process on the same CPU gets them at once, instead of changing places with it for each.
    """
    if os.sched_getscheduler(0) != os.SCHED_OTHER:  # the user's own choice, to which there may be no way back
        yield
        return
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
