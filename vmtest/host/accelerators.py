"""Which accelerator works for which guest, how fast it is, and which one to take."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from vmtest.errors import AcceleratorUnavailable
from vmtest.host import store
from vmtest.host.binaries import Qemu
from vmtest.host.devices import device_state
from vmtest.host.system import boot_id, host_arch, install_hint, require_linux
from vmtest.model.accel import ACCELERATORS, AUTO, Accelerator, accelerator
from vmtest.model.arch import arch as arch_row
from vmtest.model.probe import PROBES
from vmtest.progress import SILENT, Progress

__all__ = ["AccelStatus", "choose", "fastest", "measure"]

TCG = "tcg"


@dataclass(frozen=True, kw_only=True)
class AccelStatus:
    """An accelerator on this host, for guests of one architecture.

    ``present``: this QEMU was built with it and the host has what it needs. ``works``: a guest really ran under it
    and answered right (for TCG asked for by name: taken for granted). ``mips`` is its measured speed in million
    instructions a CPU second of the probe's loop, in the guest's kernel mode; None where it was not measured. ``why``
    says why it does not work, ``hint`` what to do about it. ``cpu`` is the CPU model to ask QEMU for where the
    default one fails here, else "".
    """

    accel: str
    arch: str
    present: bool
    works: bool
    mips: float | None = None
    why: str = ""
    hint: str = ""
    cpu: str = ""


def measure(qemu: Qemu, accel: str, *, refresh: bool = False, progress: Progress = SILENT) -> AccelStatus:
    """Whether a guest really runs under that accelerator, and how fast.

    What needs no guest (the build, the device, permissions) is looked at each time. The result of a run is
    remembered for this boot of the host, this QEMU and this state of the device; ``refresh`` runs again.
    A second process that asks at the same time waits for the first one's result.
    Raises UsageError for an accelerator that does not exist.
    """
    row = accelerator(accel)
    obstacle = _obstacle(qemu, row)
    if obstacle is not None:
        return obstacle
    name = f"accel-{row.name} {qemu.arch} {qemu.path}"
    key = _key(qemu, row)
    memory = (name, tuple(key.items()))
    status = None if refresh else (_MEASURED.get(memory) or _from_stored(store.load(name, key)))
    if status is None:
        store.asking()
        # One lock for all: two measurements at once on a small host would slow each other down.
        with store.locked("host-measure"):
            status = None if refresh else _from_stored(store.load(name, key))
            if status is None:
                progress.step(f"measuring {row.name} for {qemu.arch} guests")
                status, keep = _measured(qemu, row)
                if keep:
                    store.save(name, key, asdict(status))
    if status.works:
        _MEASURED[memory] = status
    return status


_MEASURED: dict[tuple[str, tuple[tuple[str, Any], ...]], AccelStatus] = {}


def choose(accel_name: str, arch: str, qemu: Qemu, *, progress: Progress = SILENT) -> AccelStatus:
    """The accelerator to boot a guest of that architecture with.

    "auto" is the fastest that was measured to work; nothing is measured where only TCG comes into question. A name
    means that accelerator and no other: raises AcceleratorUnavailable, saying why and what to do, where it does
    not work. Raises UsageError for a name that is none.
    """
    require_linux()
    if accel_name == AUTO:
        return _automatic(arch_row(arch).name, qemu, progress)
    row = accelerator(accel_name)
    # An emulator needs nothing of the host: no reason to spend a probe on it.
    taken = (_obstacle(qemu, row) or _granted(qemu)) if row.name == TCG else None
    status = taken or measure(qemu, row.name, progress=progress)
    if not status.works:
        raise AcceleratorUnavailable(
            f"the accelerator {row.name} cannot run this {qemu.arch} guest: {status.why}", hint=status.hint
        )
    return status


def fastest(statuses: Iterable[AccelStatus]) -> AccelStatus | None:
    """The working one with the highest measured speed; one without a speed loses to any that has one."""
    return max((s for s in statuses if s.works), key=lambda s: s.mips or 0.0, default=None)


def _automatic(arch: str, qemu: Qemu, progress: Progress) -> AccelStatus:
    obstacles = {name: _obstacle(qemu, row) for name, row in ACCELERATORS.items()}
    possible = [name for name, obstacle in obstacles.items() if obstacle is None]
    if possible == [TCG]:
        return _granted(qemu)
    statuses = [obstacles[name] or measure(qemu, name, progress=progress) for name in ACCELERATORS]
    best = fastest(s for s in statuses if s is not None)
    if best is None:
        raise AcceleratorUnavailable(
            f"no accelerator works for {arch} guests with {qemu.path}",
            hint="`vmtest doctor` shows more",
            evidence={s.accel: f"{s.why}\n{s.hint}" for s in statuses if s is not None and s.accel in qemu.accels},
        )
    return best


def _granted(qemu: Qemu) -> AccelStatus:
    return AccelStatus(accel=TCG, arch=qemu.arch, present=True, works=True)


def _obstacle(qemu: Qemu, row: Accelerator) -> AccelStatus | None:
    """What rules the accelerator out before any guest is started; None where only a guest can tell."""

    def ruled_out(why: str, hint: str = "", *, present: bool = False) -> AccelStatus:
        return AccelStatus(accel=row.name, arch=qemu.arch, present=present, works=False, why=why, hint=hint)

    if row.host_system not in (None, os.uname().sysname):
        return ruled_out(row.elsewhere)
    if row.native_only and qemu.arch != host_arch():
        return ruled_out(
            f"the guest is {qemu.arch} and the host {host_arch()}: "
            f"{row.name.upper()} runs only guests of the host's architecture",
            "use --accel tcg, or a host of the guest's architecture",
        )
    if row.name not in qemu.accels:
        board = arch_row(qemu.arch)
        return ruled_out(
            f"this QEMU was built without it: {qemu.path} has {', '.join(qemu.accels) or 'none'}",
            f"name another with --vm-qemu, or {install_hint(board.qemu_package, board.qemu)}",
        )
    if row.device is not None:
        state = device_state(row.device)
        if state.why:
            return ruled_out(state.why, state.hint, present=state.exists)
    return None


def _measured(qemu: Qemu, row: Accelerator) -> tuple[AccelStatus, bool]:
    """Run the probe, and whether its result is worth remembering."""
    from vmtest.host.prober import probe

    def status(**rest: Any) -> AccelStatus:
        return AccelStatus(accel=row.name, arch=qemu.arch, present=True, **rest)

    program = PROBES.get(qemu.arch)
    if program is None:
        if row.name == TCG:
            return _granted(qemu), False
        return status(works=False, why=f"vmtest has no probe program for {qemu.arch} guests"), False
    first = answer = probe(qemu, row, row.cpu or "", program)
    cpu = ""
    for fallback in row.cpu_fallbacks:
        # Only where QEMU gave up by itself: another CPU model does not mend a guest that ran wrong.
        if not answer.prompt:
            break
        cpu, answer = fallback, probe(qemu, row, fallback, program)
    if answer.mips is not None:
        return status(works=True, mips=round(answer.mips, 3), cpu=cpu), True
    return status(works=False, why=first.why, hint="`vmtest doctor --refresh` tries again"), not first.prompt


def _key(qemu: Qemu, row: Accelerator) -> dict[str, Any]:
    program = PROBES.get(qemu.arch)
    image = zlib.crc32(program.image()) if program else 0
    device = device_state(row.device).identity if row.device else ""
    return {
        "boot": boot_id(),
        "qemu": qemu.fingerprint,
        "device": device,
        "program": image,
        "cpu": " ".join((row.cpu or "", *row.cpu_fallbacks)),
    }


def _from_stored(value: dict[str, Any] | None) -> AccelStatus | None:
    try:
        status = AccelStatus(**value) if value else None
    except TypeError:
        return None
    if status is None or not isinstance(status.works, bool) or not isinstance(status.mips, float | None):
        return None
    return status
