"""A Machine as a QEMU command line: pure, so that it can be printed, copied and run by hand."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from vmtest.host.binaries import SANDBOX
from vmtest.model.accel import accelerator
from vmtest.model.arch import arch
from vmtest.model.machine import Channel, Drive, Machine

__all__ = ["AGENT_PORTS", "Ram", "Wiring", "argv", "escape", "shown"]

AGENT_PORTS = {Channel.AGENT: "org.vmtest.agent", Channel.QGA: "org.qemu.guest_agent.0"}
"""The virtio-serial port by which the guest finds each kind of agent."""


@dataclass(frozen=True, kw_only=True)
class Ram:
    """The file that is a guest's memory. ``shared``: what the guest writes goes there; else it is the guest's own.

    ``readonly`` opens it so, which QEMU before 9.0 cannot do for memory that is not shared. ``block`` is the name that
    a state has for it where that is a machine type's own, "" for ours.
    """

    path: str
    shared: bool
    readonly: bool = False
    block: str = ""


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What QEMU's character devices are connected to, each as ``-chardev`` takes it, without the id.

    ``agent`` is None for a machine without a virtio-serial port. ``ram`` is None for memory that is in no file. With
    ``incoming`` the machine waits for a state that it is to have: what it would boot from is left out, since it would
    only cost the memory and the time to load it.
    """

    console: str
    qmp: str | None
    agent: str | None
    ram: Ram | None = None
    incoming: bool = False

    @classmethod
    def sockets(
        cls, *, console: int, qmp: int, agent: int | None, ram: Ram | None = None, incoming: bool = False
    ) -> Wiring:
        """Inherited sockets, by file descriptor: nothing in the file system, nothing to clean up."""
        return cls(
            console=f"socket,fd={console}",
            qmp=f"socket,fd={qmp}",
            agent=None if agent is None else f"socket,fd={agent}",
            ram=ram,
            incoming=incoming,
        )

    @classmethod
    def by_hand(cls, *, agent: bool) -> Wiring:
        """The console on the terminal, for a person who runs the command; Ctrl-A X leaves."""
        return cls(console="stdio,mux=on,signal=off", qmp=None, agent="null" if agent else None)


def escape(value: object) -> str:
    """A value inside a comma-separated QEMU option: a comma in it is doubled."""
    return str(value).replace(",", ",,")


def argv(machine: Machine, wiring: Wiring, *, binary: str = "", sandbox: bool = True) -> tuple[str, ...]:
    """The command line of that machine; ``machine.accel`` must be resolved ("auto" is no accelerator).

    ``binary`` is the resolved path of QEMU, by default the machine's own name for it. ``sandbox`` turns on QEMU's
    seccomp filter, for builds that have it.
    """
    row, accel = arch(machine.arch), accelerator(machine.accel)
    kind = machine.machine or row.machine
    if accel.name == "kvm" and row.machine_kvm and "smm=" not in kind:
        kind = f"{kind},{row.machine_kvm}"
    out = [binary or machine.qemu_binary, "-nodefaults", "-no-user-config", "-display", "none"]
    if wiring.ram is not None:
        out += ["-object", _memory(machine, wiring.ram)]
        kind = f"{kind},memory-backend={wiring.ram.block or 'ram'}"
    out += ["-machine", kind, "-accel", ",".join([accel.name, *accel.properties])]
    out += ["-cpu", machine.cpu or accel.cpu or row.cpu]
    out += ["-m", f"{machine.memory}M", "-smp", str(machine.smp)]
    if machine.firmware:
        out += ["-bios", str(machine.firmware)]
    if wiring.incoming:
        out += ["-incoming", "defer"]
    elif machine.kernel:
        out += ["-kernel", str(machine.kernel)]
        if machine.initrd:
            out += ["-initrd", str(machine.initrd)]
        out += ["-append", f"{row.console_append} {machine.append}".strip()]
    out += ["-chardev", _chardev("console", wiring.console), "-serial", "chardev:console"]
    if "mux=on" in wiring.console:
        out += ["-mon", "chardev=console,mode=readline"]
    if wiring.qmp is not None:
        out += ["-chardev", _chardev("qmp", wiring.qmp), "-mon", "chardev=qmp,mode=control"]
    if wiring.agent is not None:
        port = AGENT_PORTS[Channel.QGA if machine.channel is Channel.QGA else Channel.AGENT]
        out += ["-device", "virtio-serial-pci", "-chardev", _chardev("agent", wiring.agent)]
        out += ["-device", f"virtserialport,id=agent,chardev=agent,name={port}"]
    for number, drive in enumerate(machine.drives):
        out += _drive(number, drive)
    for number, nic in enumerate(machine.nics):
        kind, *options = nic.backend.split(",", 1)
        out += ["-netdev", ",".join([kind, f"id=net{number}", *options])]
        mac = f",mac={nic.mac}" if nic.mac else ""
        rom = "" if nic.model.endswith("-device") or nic.model.startswith("usb") else ",romfile="
        # No boot ROM on PCI cards: nobody boots from the network here, and it is a package of its own.
        out += ["-device", f"{nic.model},netdev=net{number}{mac}{rom}"]
    # A panicked guest stays as it is, so that its console and memory can still be read.
    out += ["-action", "panic=none"]
    if sandbox:
        out += ["-sandbox", SANDBOX]
    return (*out, *machine.extra)


def _memory(machine: Machine, ram: Ram) -> str:
    readonly = ",readonly=on,rom=off" if ram.readonly else ""
    # Without this QEMU names the block after the object's path, and the state of a plain machine does not fit.
    name = f"id={ram.block},x-use-canonical-path-for-ramblock-id=off" if ram.block else "id=ram"
    file = f"mem-path={escape(ram.path)},share={_switch(ram.shared)}{readonly}"
    return f"memory-backend-file,{name},size={machine.memory}M,{file}"


def _chardev(name: str, backend: str) -> str:
    kind, *options = backend.split(",", 1)
    return ",".join([kind, f"id={name}", *options])


def _drive(number: int, drive: Drive) -> list[str]:
    switches = f"readonly={_switch(drive.readonly)},snapshot={_switch(drive.snapshot and not drive.readonly)}"
    backend = f"if=none,id=drive{number},file={escape(drive.path)},format={drive.format},{switches}"
    return ["-drive", backend, "-device", f"virtio-blk-pci,drive=drive{number}"]


def _switch(value: bool) -> str:
    return "on" if value else "off"


def shown(command: Sequence[str]) -> str:
    """The command as a person pastes it into a shell."""
    return shlex.join(command)
