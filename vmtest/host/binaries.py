"""QEMU binaries: found, checked, described once and remembered as long as the file does not change."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmtest.deadline import Deadline
from vmtest.errors import HostError, UsageError
from vmtest.host import store
from vmtest.host.system import host_arch, install_hint, require_linux
from vmtest.model.arch import ARCHES, Arch
from vmtest.model.arch import arch as arch_row

__all__ = ["MINIMUM", "SANDBOX", "Qemu", "find_emulator", "find_qemu", "parse_accels", "parse_version"]

MINIMUM = (7, 2, 0)
"""The oldest QEMU that vmtest supports: Debian 12's."""

_ANSWER_SECONDS = 10.0
"""A QEMU that does not answer a question about itself in this time is given up. Usual: 30 ms."""

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""The strictest value of ``-sandbox``, which all guests here can do with (qemu(1))."""

_ELSEWHERE = "/usr/libexec/qemu-kvm"
"""Where Red Hat's distributions have the QEMU of the host's own architecture, off PATH."""


@dataclass(frozen=True, kw_only=True)
class Qemu:
    """A QEMU system emulator.

    ``path`` is absolute, without symbolic links. ``version`` is (major, minor, micro) and ``version_text`` the
    whole of what it says of itself. ``arch`` names the row of ARCHES that it was looked up for, or is what it says it
    emulates where it was looked up for none. ``accels`` are the accelerators that this build knows, which does not mean
    that they work here. ``sandbox`` says whether it starts with ``-sandbox SANDBOX``. ``fingerprint`` changes when the
    file does: path, bytes, mtime in ns.
    """

    path: Path
    version: tuple[int, int, int]
    version_text: str
    arch: str
    accels: tuple[str, ...]
    sandbox: bool
    fingerprint: str

    @property
    def name(self) -> str:
        """By which it is found again: its file's name where that is what PATH leads to, else its path."""
        found = shutil.which(self.path.name)
        return self.path.name if found and Path(found).resolve() == self.path else str(self.path)


def parse_version(text: str) -> tuple[int, int, int] | None:
    """The version in what ``qemu-system-X --version`` prints; None where that is not a QEMU system emulator."""
    found = re.match(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def parse_accels(text: str) -> tuple[str, ...]:
    """The names in what ``-accel help`` prints: one a line, under a heading."""
    return tuple(line.strip() for line in text.splitlines()[1:] if re.fullmatch(r"\w+", line.strip()))


def find_qemu(binary: str, arch: str, *, refresh: bool = False) -> Qemu:
    """The QEMU for guests of that architecture: ``binary`` is a name on PATH, a path, or "" for the default.

    Raises UsageError for a path that is no file, not executable, not a QEMU or a QEMU of another architecture;
    HostError where the name is not on PATH (the hint is the command that installs it) or the QEMU is older than
    MINIMUM. With ``refresh`` the binary is asked again even if it is known.
    """
    require_linux()
    row = arch_row(arch)
    return _known(_locate(binary or row.qemu, row), row, refresh=refresh)


def find_emulator(binary: str) -> Qemu:
    """That QEMU, by a name on PATH or a path, whatever it emulates. Raises as ``find_qemu``."""
    require_linux()
    row = next((row for row in ARCHES.values() if row.qemu == binary), None)
    return _known(_locate(binary, row), None)


def _known(path: Path, row: Arch | None, *, refresh: bool = False) -> Qemu:
    stat = path.stat()
    fingerprint = f"{path} {stat.st_size} {stat.st_mtime_ns}"
    key = fingerprint, row.name if row else ""
    known = None if refresh else _KNOWN.get(key)
    if known is None:
        known = _KNOWN[key] = _described(path, row, fingerprint, refresh=refresh)
    return known


_KNOWN: dict[tuple[str, str], Qemu] = {}


def _locate(binary: str, row: Arch | None) -> Path:
    if "/" not in binary:
        found = shutil.which(binary)
        is_usual = row is not None and binary == row.qemu and row.name == host_arch()
        if found is None and is_usual and os.access(_ELSEWHERE, os.X_OK):
            found = _ELSEWHERE
        if found is None and row is not None:
            raise HostError(
                f"{binary} is not on PATH: QEMU for {row.name} guests is not installed",
                hint=install_hint(row.qemu_package, row.qemu),
            )
        if found is None:
            raise HostError(f"{binary} is not on PATH", hint="install the package of your distribution that has it")
        return Path(found).resolve()
    hint = f"usual is {row.qemu}, from PATH" if row else "name one like qemu-system-x86_64"
    try:
        path = Path(binary).expanduser().resolve(strict=True)
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"the QEMU binary {binary} cannot be used: {why}", hint=hint) from None
    if not is_file:
        raise UsageError(f"the QEMU binary {binary} is not a file", hint=hint)
    if not os.access(path, os.X_OK):
        raise UsageError(f"the QEMU binary {binary} is not executable", hint=f"chmod +x {path}, or: {hint}")
    return path


def _described(path: Path, row: Arch | None, fingerprint: str, *, refresh: bool) -> Qemu:
    name = f"qemu {path}"
    key = {"fingerprint": fingerprint}
    facts = None if refresh else store.load(name, key)
    qemu = _from_facts(facts, path, row, fingerprint) if facts else None
    if qemu is None:
        store.asking()
        facts, whole = _ask(path)
        qemu = _from_facts(facts, path, row, fingerprint)
        assert qemu is not None
        # A QEMU that answered only in part (no memory left, no permission) may answer better next time.
        if whole:
            store.save(name, key, facts)
    _check(qemu, str((facts or {}).get("target", "")), row)
    return qemu


def _from_facts(facts: dict[str, Any], path: Path, row: Arch | None, fingerprint: str) -> Qemu | None:
    text, accels, sandbox = facts.get("version"), facts.get("accels"), facts.get("sandbox")
    version = parse_version(text) if isinstance(text, str) else None
    if version is None or not isinstance(text, str) or not isinstance(accels, list):
        return None
    return Qemu(
        path=path,
        version=version,
        version_text=text,
        arch=row.name if row else str(facts.get("target", "")),
        accels=tuple(map(str, accels)),
        sandbox=bool(sandbox),
        fingerprint=fingerprint,
    )


def _check(qemu: Qemu, target: str, row: Arch | None) -> None:
    if qemu.version < MINIMUM:
        raise HostError(
            f"{qemu.path} is QEMU {'.'.join(map(str, qemu.version))}, and vmtest needs 7.2 or later",
            hint="install a newer QEMU (Debian: from backports), or name one with --vm-qemu",
        )
    if row and target and target not in (row.name, row.qemu.removeprefix("qemu-system-")):
        raise UsageError(
            f"{qemu.path} emulates {target}, and the guest is {row.name}",
            hint=f"usual for {row.name} is {row.qemu}",
        )


def _ask(path: Path) -> tuple[dict[str, Any], bool]:
    """What the binary says of itself, and whether it answered everything."""
    status, text = _output(path, ("--version",))
    first = text.partition("\n")[0].strip()
    if parse_version(first) is None:
        raise UsageError(
            f"{path} is not a QEMU system emulator",
            hint="name one like qemu-system-x86_64",
            evidence={f"what it printed for --version (status {status})": text[:500]},
        )
    accels = parse_accels(_output(path, ("-accel", "help"))[1])
    # Whether -sandbox holds depends on the build and on the host's seccomp: only a start tells.
    for sandbox in (True, False):
        target = _target(path, accels[:1], ("-sandbox", SANDBOX) if sandbox else ())
        if target:
            break
    facts = {"version": first, "accels": list(accels), "sandbox": bool(target) and sandbox, "target": target}
    return facts, bool(target)


def _target(path: Path, accels: tuple[str, ...], arguments: tuple[str, ...]) -> str:
    """The architecture that it says it emulates, asked over QMP of a QEMU without a machine; "" if it cannot."""
    start = ("-M", "none", *(("-accel", accels[0]) if accels else ()), "-nodefaults", "-no-user-config")
    talk = ("qmp_capabilities", "query-target", "quit")
    status, text = _output(
        path,
        (*start, "-display", "none", "-S", "-qmp", "stdio", *arguments),
        "".join(json.dumps({"execute": command}) for command in talk),
    )
    found = re.search(r'"arch": *"(\w+)"', text)
    return found[1] if found and status == 0 else ""


def _output(path: Path, arguments: tuple[str, ...], text: str = "") -> tuple[int | None, str]:
    """Exit status and output (both streams) of a short run. Whatever it is, it gets _ANSWER_SECONDS and 64 KiB."""
    # Not at the top: a warm start needs no process and must not pay for subprocess.
    from vmtest.host.child import running

    deadline = Deadline(_ANSWER_SECONDS)
    said = b""
    try:
        with running((str(path), *arguments), text=text.encode()) as child:
            for chunk in child.chunks(deadline):
                said += chunk
                if len(said) > 0x10000:
                    return None, said.decode(errors="replace")
            return child.end(deadline), f"{said.decode(errors='replace')}{child.errors()}"
    except OSError as error:
        return None, str(error)
