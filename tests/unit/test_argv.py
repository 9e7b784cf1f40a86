"""A machine's command line: what people copy from an error and run by hand. VMTEST_UPDATE_GOLDEN=1 writes it anew."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from vmtest.errors import UsageError
from vmtest.model.machine import Channel, Drive, Machine, Nic
from vmtest.qemu.argv import Ram, Wiring, argv, escape, shown

GOLDEN = Path(__file__).parents[2] / "fixtures" / "argv"
SOCKETS = Wiring.sockets(console=10, qmp=11, agent=12)
LINUX = {"kernel": Path("/images/vmlinuz"), "initrd": Path("/images/initrd"), "append": "quiet panic=-1"}
DRIVES = (
    Drive(path=Path("/disks/a, b and c.img")),
    Drive(path=Path("/disks/d.qcow2"), format="qcow2", snapshot=False),
    Drive(path=Path("/disks/e.img"), readonly=True),
)
NICS = (Nic(), Nic(model="e1000e", backend="user,hostfwd=tcp:127.0.0.1:0-:22,restrict=on", mac="52:54:00:12:34:56"))


def _in_memory(ram: Ram, *, incoming: bool) -> Wiring:
    return Wiring.sockets(console=10, qmp=11, agent=12, ram=ram, incoming=incoming)


CASES: dict[str, tuple[Machine, Wiring]] = {
    **{
        f"{arch}-{accel}": (Machine(arch=arch, accel=accel, **LINUX), SOCKETS)
        for arch in ("x86_64", "aarch64", "riscv64")
        for accel in ("tcg", "kvm")
    },
    "drives-and-nics": (Machine(accel="tcg", drives=DRIVES, nics=NICS, **LINUX), SOCKETS),
    "paths-with-commas-and-spaces": (
        Machine(
            accel="tcg",
            kernel=Path("/a b,c/bz=Image"),
            initrd=Path("/a b,c/init rd"),
            firmware=Path("/a b,c/bios.bin"),
            append="x=\"a b\" y='z'",
            drives=(Drive(path=Path("/it's,here.img")),),
        ),
        SOCKETS,
    ),
    "by-hand": (Machine(accel="tcg", **LINUX), Wiring.by_hand(agent=True)),
    "by-hand-without-agent": (Machine(accel="tcg", channel=Channel.CONSOLE, **LINUX), Wiring.by_hand(agent=False)),
    "qga": (Machine(accel="tcg", channel=Channel.QGA, **LINUX), SOCKETS),
    "console-only": (Machine(accel="tcg", **LINUX), Wiring.sockets(console=10, qmp=11, agent=None)),
    # A template boots in a shared file; its clones have the file privately, read-only where QEMU can do that, and are
    # given their state; a snapshot of a machine that was booted plainly knows its memory by the machine type's name.
    "template": (Machine(accel="tcg", **LINUX), _in_memory(Ram(path="/t/a,b/ram", shared=True), incoming=False)),
    "clone": (
        Machine(accel="tcg", drives=DRIVES, **LINUX),
        _in_memory(Ram(path="/proc/self/fd/13", shared=False), incoming=True),
    ),
    "clone-readonly": (
        Machine(accel="kvm", memory=1024, nics=NICS, **LINUX),
        _in_memory(Ram(path="/proc/self/fd/13", shared=False, readonly=True), incoming=True),
    ),
    "clone-of-a-booted-machine": (
        Machine(arch="aarch64", accel="tcg", **LINUX),
        _in_memory(Ram(path="/proc/self/fd/13", shared=False, block="mach-virt.ram"), incoming=True),
    ),
    "clone-with-firmware": (
        Machine(accel="tcg", machine="pc", firmware=Path("/usr/share/seabios/bios.bin"), channel=Channel.CONSOLE),
        Wiring.sockets(
            console=10, qmp=11, agent=None, ram=Ram(path="/ram", shared=True, block="pc.ram"), incoming=True
        ),
    ),
    "firmware": (Machine(accel="tcg", firmware=Path("/usr/share/seabios/bios.bin")), SOCKETS),
    "everything-asked-for": (
        Machine(
            accel="kvm",
            machine="pc,smm=on",
            cpu="qemu64,+avx2",
            memory=1024,
            smp=4,
            qemu="/opt/qemu/bin/qemu-system-x86_64",
            extra=("-device", "edu", "-d", "int"),
            **LINUX,
        ),
        SOCKETS,
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden(name: str) -> None:
    """The command line of each of these machines is exactly the one that was reviewed."""
    machine, wiring = CASES[name]
    text = "".join(f"{word}\n" for word in one_option_a_line(argv(machine, wiring)))
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("VMTEST_UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def one_option_a_line(command: tuple[str, ...]) -> list[str]:
    """An option and its value on one line, as a shell takes it."""
    lines: list[list[str]] = []
    for word in command:
        if word.startswith("-") or not lines or len(lines[-1]) > 1 or not lines[-1][0].startswith("-"):
            lines.append([])
        lines[-1].append(word)
    return [shlex.join(line) for line in lines]


def test_no_golden_file_is_left_over() -> None:
    """Each golden file belongs to a case."""
    assert {file.stem for file in GOLDEN.glob("*")} == set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_shown_is_what_a_shell_reads(name: str) -> None:
    """The command that errors show gives the same words when it is pasted into a shell."""
    command = argv(*CASES[name])
    assert tuple(shlex.split(shown(command))) == command


def test_a_restored_machine_loads_nothing() -> None:
    """A machine that waits for its state is told neither kernel nor initrd, and is otherwise the one that was saved."""
    machine = Machine(accel="tcg", drives=DRIVES, nics=NICS, **LINUX)
    ram = Ram(path="/ram", shared=False)
    saved, restored = (list(argv(machine, _in_memory(ram, incoming=incoming))) for incoming in (False, True))
    for option in ("-kernel", "-initrd", "-append"):
        at = saved.index(option)
        del saved[at : at + 2]
    at = restored.index("-incoming")
    assert restored[at : at + 2] == ["-incoming", "defer"]
    del restored[at : at + 2]
    assert restored == saved


def test_escape() -> None:
    """A comma in a value is doubled, and nothing else is changed."""
    assert escape(Path("/a,b c=d,,e")) == "/a,,b c=d,,,,e"


def test_binary_and_sandbox() -> None:
    """The resolved binary replaces the name, and builds without seccomp get no -sandbox."""
    command = argv(Machine(accel="tcg"), SOCKETS, binary="/usr/bin/q", sandbox=False)
    assert command[0] == "/usr/bin/q"
    assert "-sandbox" not in command


def test_unresolved_accelerator() -> None:
    """The word auto is no accelerator: whoever forgets to resolve it is told."""
    with pytest.raises(UsageError, match="unknown accelerator 'auto'"):
        argv(Machine(), SOCKETS)


def test_no_network_unless_asked() -> None:
    """A machine without NICs has no network at all."""
    command = argv(Machine(accel="tcg", **LINUX), SOCKETS)
    assert "-nodefaults" in command
    assert not any("net" in word for word in command)
