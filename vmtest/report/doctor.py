"""A checkup of the host, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vmtest.host.checkup import DEFAULT_ARCH, Checkup, Missing

__all__ = ["as_json", "as_text"]


def as_json(checkup: Checkup) -> str:
    """The findings as a JSON object; its keys are stable. Sizes in bytes, speeds in million instructions/s."""
    return json.dumps(
        {
            "ready": checkup.ready,
            "default_arch": DEFAULT_ARCH,
            "host": {"system": checkup.system, "machine": checkup.machine},
            "qemu": [_qemu(checkup, row.arch) for row in checkup.qemus],
            "accelerators": [
                {**asdict(status), "auto": status == checkup.auto(status.arch)} for status in checkup.accels
            ],
            "virtualization": asdict(checkup.virtualization),
            "cache": {"path": checkup.cache_path, "free_bytes": checkup.free_bytes},
            "tools": [asdict(tool) for tool in checkup.tools],
            "missing": [asdict(entry) for entry in checkup.missing],
        },
        indent=2,
    )


def as_text(checkup: Checkup, *, width: int = 110) -> str:
    """The findings as tables for a terminal of that many columns."""
    parts = [
        _title("QEMU", _qemu_table(checkup, width)),
        _title("Accelerators", _accel_table(checkup, width)),
        _title("Virtualization", _virtualization(checkup, width)),
        _title("Tools and cache", _tools(checkup, width)),
        _title("What is missing", _missing(checkup.missing, width)),
        _verdict(checkup),
    ]
    return "\n\n".join(parts)


def _qemu(checkup: Checkup, arch: str) -> dict[str, Any]:
    row = next(row for row in checkup.qemus if row.arch == arch)
    qemu = row.qemu
    return {
        "arch": row.arch,
        "binary": row.binary,
        "found": qemu is not None,
        "path": str(qemu.path) if qemu else None,
        "version": ".".join(map(str, qemu.version)) if qemu else None,
        "version_text": qemu.version_text if qemu else None,
        "accels": list(qemu.accels) if qemu else [],
        "sandbox": qemu.sandbox if qemu else None,
        "why": row.why,
        "hint": row.hint,
    }


def _qemu_table(checkup: Checkup, width: int) -> str:
    rows = [
        (
            row.arch,
            row.binary,
            ".".join(map(str, row.qemu.version)) if row.qemu else "missing",
            _yes(row.qemu.sandbox) if row.qemu else "",
            str(row.qemu.path) if row.qemu else row.why,
        )
        for row in checkup.qemus
    ]
    return _table(("guests", "binary", "version", "sandbox", "path"), rows, width)


def _accel_table(checkup: Checkup, width: int) -> str:
    rows = []
    for status in checkup.accels:
        speed = "" if status.mips is None else f"{status.mips:,.0f}" if status.mips >= 10 else f"{status.mips:.1f}"
        remark = status.why or (f"with -cpu {status.cpu}" if status.cpu else "")
        auto = "auto" if status == checkup.auto(status.arch) else ""
        rows.append((status.arch, status.accel, _yes(status.present), _yes(status.works), speed, auto, remark))
    return _table(("guests", "accel", "present", "works", "MIPS", "choice", "remark"), rows, width)


def _virtualization(checkup: Checkup, width: int) -> str:
    seen = checkup.virtualization
    rows = [
        ("the CPU shows", seen.extension),
        ("/dev/kvm", seen.kvm or "opens"),
        ("this host runs", f"under {seen.hypervisor}" if seen.hypervisor else "on hardware, as far as can be seen"),
        *(("note", note) for note in seen.notes),
    ]
    return _table((), rows, width)


def _tools(checkup: Checkup, width: int) -> str:
    rows = [(tool.name, tool.path or "missing", tool.purpose) for tool in checkup.tools]
    room = "" if checkup.free_bytes is None else f"{checkup.free_bytes / 2**30:.1f} GiB free"
    return _table((), [*rows, ("cache", checkup.cache_path or "missing", room)], width)


def _missing(entries: Sequence[Missing], width: int) -> str:
    if not entries:
        return "nothing"
    # Not in a table: a command must be whole to be copied.
    return "\n".join(f"{entry.what}\n    {entry.command}" for entry in entries)


def _verdict(checkup: Checkup) -> str:
    best = checkup.auto(DEFAULT_ARCH)
    if checkup.ready and best is not None:
        return f"Ready: the default guest ({DEFAULT_ARCH}) runs here, by default under {best.accel}."
    return f"Not ready: the default guest ({DEFAULT_ARCH}) cannot run here; see what is missing."


def _title(text: str, body: str) -> str:
    return f"{text}\n{'─' * len(text)}\n{body}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    from tabulate import tabulate

    # The last column takes the width that the others leave.
    others = (
        sum(max((len(row[i]) for row in (*rows, headers) if row), default=0) for i in range(len(rows[0]) - 1))
        if rows
        else 0
    )
    last = max(20, width - others - 2 * (len(rows[0]) - 1)) if rows else width
    limits = [None] * (len(rows[0]) - 1) + [last] if rows else None
    return tabulate(
        rows, headers=headers, tablefmt="simple" if headers else "plain", maxcolwidths=limits, disable_numparse=True
    )
