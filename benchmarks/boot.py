"""From the start of a guest to the first command that it answered, against the same machine driven by hand.

    python benchmarks/boot.py [--runs N] [--guest NAME ...] [--peer PYTHON]

Every case starts the same QEMU with the same kernel, initramfs, command line, accelerator, memory and devices, and
waits until `true` has ended in the guest. Killing the guest is not timed. The cases:

    vmtest              boot(NAME, cold=True), run(["true"]); clones are in pristine.py
    bare QEMU           the same command line, its agent spoken to by a minimal loop (bare.py)
    vmtest --no-trim    boot(NAME, trim=False): how much the trimming of the kernel's command line buys
    vmtest on console   boot(NAME, channel="console"): no agent port, the shell on the serial console, as labgrid's
    vmtest, new process python -c "import vmtest; ..." until it has exited: imports, and QEMU's end, too
    labgrid             QEMUDriver and ShellDriver.run_check("true") (peer_labgrid.py)

labgrid is looked for in this Python, else in the one of --peer; its row is left out where it is in neither. It
registers a pytest plugin, so that an environment of its own is better.

The other peer that was tried, virtme-ng 1.42, cannot boot the same machine: it mounts the host's files as the guest's
root by 9p or virtiofs. Debian's cloud kernel is built without 9p (CONFIG_NET_9P is not set), and for virtiofs it
wants the virtiofsd written in Rust, which Debian 12 does not have; QEMU 7.2's own refuses its options, and vng falls
back to 9p. --root-disk still exports vng's own tools to the guest in one of those ways.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bare
from common import interleaved, median, ratio, table, verdict

import vmtest
from vmtest.images import load
from vmtest.images.prepared import cached
from vmtest.model.machine import Machine
from vmtest.model.spec import DEFAULT_GUEST, GuestSpec
from vmtest.qemu.argv import Wiring, argv
from vmtest.resolve import plan

GUESTS = (DEFAULT_GUEST, "linux-aarch64", "linux-riscv64")
OURS, BY_HAND = "vmtest", "bare QEMU"
RATIO, SECONDS = 1.10, 3.0


def ours(name: str, *, trim: bool | None = None, channel: str | None = None) -> float:
    start = time.perf_counter()
    with vmtest.boot(name, cold=True, trim=trim, channel=channel) as guest:
        guest.run(["true"]).check()
        return time.perf_counter() - start


def by_hand(machine: Machine, sandbox: bool) -> float:
    start = time.perf_counter()
    pairs = {port: socket.socketpair() for port in ("console", "qmp", "agent")}
    wiring = Wiring.sockets(**{port: theirs.fileno() for port, (_, theirs) in pairs.items()})
    command = argv(machine, wiring, sandbox=sandbox)
    descriptors = [theirs.fileno() for _, theirs in pairs.values()]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=descriptors) as qemu:
        for _, theirs in pairs.values():
            theirs.close()
        bare.drain(pairs["console"][0])
        try:
            agent = pairs["agent"][0]
            agent.settimeout(120)
            bare.hello(agent)
            bare.spawn(agent, 1, ["true"])
            return time.perf_counter() - start
        finally:
            qemu.kill()
            qemu.wait()
            for port in ("qmp", "agent"):
                pairs[port][0].close()


def new_process(name: str) -> float:
    code = f"import vmtest\nwith vmtest.boot({name!r}, cold=True) as guest: guest.run(['true']).check()"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


class Labgrid:
    """A process that boots by labgrid whenever it is asked to."""

    def __init__(self, python: str, machine: Machine, sandbox: bool) -> None:
        command = [python, str(Path(__file__).with_name("peer_labgrid.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ask(json.dumps(described(machine, sandbox)))

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def boot(self) -> float:
        assert self._process.stdout is not None
        self._ask("boot")
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def described(machine: Machine, sandbox: bool) -> dict[str, object]:
    """The machine in QEMUDriver's terms: what it has no word for, the agent's port too, goes into extra_args."""
    command = argv(machine, Wiring.by_hand(agent=True), sandbox=sandbox)
    words = {"-machine": "machine", "-cpu": "cpu", "-m": "memory", "-kernel": "", "-append": "boot_args"}
    # QEMUDriver connects the console and a monitor itself.
    left_out = {"-display", "-serial", "-mon"}
    qemu: dict[str, str] = {"qemu_bin": "qemu", "kernel": "kernel"}
    extra: list[str] = []
    rest = iter(command[1:])
    for option in rest:
        if option in ("-nodefaults", "-no-user-config"):
            extra.append(option)
            continue
        value = next(rest)
        if option in words:
            qemu[words[option] or "kernel"] = value if words[option] else "kernel"
        elif option not in left_out and "id=console" not in value:
            extra += [option, value]
    return {"binary": command[0], "kernel": str(machine.kernel), "qemu": {**qemu, "extra_args": shlex.join(extra)}}


def peer_python(asked: str | None) -> str | None:
    """A Python that has labgrid."""
    return sys.executable if importlib.util.find_spec("labgrid") else asked


def measure(name: str, runs: int, peer: str | None, whole: bool) -> dict[str, list[float]]:
    """``whole``: every case, and not only the two that the target is about."""
    machine, qemu, _ = plan(GuestSpec(image=name))
    cases: dict[str, Callable[[], float]] = {
        BY_HAND: lambda: by_hand(machine, qemu.sandbox),
        OURS: lambda: ours(name),
    }
    labgrid = None
    if whole:
        cases["vmtest --no-trim"] = lambda: ours(name, trim=False)
        cases["vmtest on console"] = lambda: ours(name, channel="console")
        cases["vmtest, new process"] = lambda: new_process(name)
        if peer is not None:
            labgrid = Labgrid(peer, machine, qemu.sandbox)
            cases["labgrid"] = labgrid.boot
    try:
        return interleaved(cases, runs)
    finally:
        if labgrid is not None:
            labgrid.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--guest", nargs="+", help="by default those of the three Linux images that are built")
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that has labgrid")
    options = parser.parse_args()
    peer = peer_python(options.peer)
    verdicts = []
    guests = options.guest or [name for name in GUESTS if name == DEFAULT_GUEST or cached(load(name))]
    for name in guests:
        seconds = measure(name, options.runs, peer, whole=name == DEFAULT_GUEST)
        print(f"{name}: from the start to the first answered command\n\n{table(seconds, BY_HAND)}\n")
        verdicts.append(verdict(f"{name}: vmtest against bare QEMU", ratio(seconds, OURS, BY_HAND), RATIO))
        if name == DEFAULT_GUEST:
            verdicts.append(verdict(f"{name}: seconds until it answers", median(seconds[OURS]), SECONDS))
    if peer is None and DEFAULT_GUEST in guests:
        print("labgrid is not installed here: name a Python that has it with --peer\n")
    print(*verdicts, sep="\n")


if __name__ == "__main__":
    main()
