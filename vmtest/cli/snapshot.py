"""``vmtest snapshot``: guests in a state that is kept."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from vmtest.cli.options import guest_options, spec_of
from vmtest.cli.run import WithCommand
from vmtest.errors import SnapshotError, UsageError

# What works with snapshots is imported by the commands, so that `vmtest --help` does not pay for it.

__all__ = ["snapshot"]


@click.group()
def snapshot() -> None:
    """Make, list, show and remove snapshots of guests.

    \b
      vmtest snapshot create ready -- 'mkdir /srv; touch /srv/file'
      vmtest run --from ready -- ls /srv          (pytest --vm-from ready, boot(snapshot="ready"))
      vmtest snapshot list

    A snapshot is a guest's whole state: memory, devices, disks. Those that people name are kept until they are removed.
    Templates, which each guest that is booted twice is cloned from, are snapshots without a name; the least recently
    used go when all take more than VMTEST_SNAPSHOT_LIMIT (4G).
    """


@snapshot.command(cls=WithCommand)
@click.argument("name")
@click.argument("guest", required=False)
@guest_options
@click.pass_context
def create(ctx: click.Context, /, name: str, guest: str | None, **said: Any) -> int:
    """Boot GUEST, run COMMAND in it, if one is given, and keep its state under NAME.

    Where COMMAND fails nothing is kept, and the exit code is COMMAND's.
    """
    from vmtest.booting import boot
    from vmtest.cli.run import run_shown
    from vmtest.model.snapshot import unsavable
    from vmtest.report.progress import shown
    from vmtest.resolve import plan
    from vmtest.snapshots import store

    if store.named_path(name).exists():
        raise UsageError(f"there is a snapshot named {name!r} already", hint=f"vmtest snapshot rm {name}")
    spec = spec_of(guest, said)
    if spec.snapshot is None:
        machine, qemu, _ = plan(spec)
        if why := unsavable(machine, qemu.version):
            raise UsageError(f"this guest cannot be saved: {why}")
    with shown() as progress:
        started = boot(spec, progress=progress)
    with started:
        if command := ctx.meta.get("command"):
            result = run_shown(started, command, spec)
            if not result.ok:
                click.echo(f"vmtest: the command failed (exit code {result.exit_code}): nothing is kept", err=True)
                return result.exit_code
        with shown() as progress:
            progress.step(f"saving {started.name}")
            kept = started.snapshot(name)
    click.echo(f"{name}: {store.size(kept.path) / 1e6:.0f} MB; vmtest run --from {name} -- COMMAND")
    return 0


@snapshot.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
def list_(as_json: bool) -> None:
    """List the snapshots, the templates too."""
    from tabulate import tabulate

    from vmtest.snapshots import store

    rows = [_row(path) for path in store.all_snapshots()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        row["size"] = f"{row['size'] / 1e6:.0f} MB"
        row["used"] = f"{_ago(row['used'])} ago"
    click.echo(tabulate(rows, headers="keys", disable_numparse=True) if rows else "no snapshots yet")


def _row(path: Path) -> dict[str, Any]:
    from vmtest.snapshots import OtherFormat, Snapshot, store

    row: dict[str, Any] = {"name": path.name, "size": store.size(path), "used": store.last_use(path)}
    try:
        found = Snapshot.peek(path)
    except SnapshotError as error:
        state = "of another vmtest" if isinstance(error, OtherFormat) else f"damaged: {error.message}"
        return {**row, "guest": "", "accel": "", "memory": "", "what": state}
    machine = found.machine
    return {
        **row,
        "guest": found.manner.name,
        "accel": machine.accel,
        "memory": f"{machine.memory} MiB",
        "what": found.origin if found.name else f"template: {found.origin}",
    }


def _ago(then: float) -> str:
    seconds = max(0.0, time.time() - then)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


@snapshot.command()
@click.argument("name")
def show(name: str) -> None:
    """Show what a snapshot is, as JSON, and check it against its hashes. NAME may be a template's key."""
    from vmtest.snapshots import Snapshot

    path = _path(name)
    found = Snapshot(path)  # raises where it is damaged
    click.echo((path / "manifest.json").read_text().rstrip())
    found.close()


@snapshot.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Remove snapshots, by name or key. Guests that run as their clones go on."""
    from vmtest.snapshots import store

    for path in [_path(name) for name in names]:
        click.echo(f"{path.name}: {store.remove(path) / 1e6:.0f} MB freed")


@snapshot.command()
@click.option(
    "--max-size", metavar="SIZE", help="what may remain, such as 1G or 0 (default: VMTEST_SNAPSHOT_LIMIT, 4G)"
)
@click.option("--named", "named_too", is_flag=True, help="count and remove snapshots that were named, too")
def prune(max_size: str | None, named_too: bool) -> None:
    """Remove the least recently used templates until the rest take at most SIZE. Those in use stay."""
    from vmtest.snapshots import store

    most = store.limit() if max_size is None else store.size_of(max_size, where="--max-size")
    removed = store.prune(most, named_too=named_too)
    for name, size in removed:
        click.echo(f"{name}: {size / 1e6:.0f} MB freed")
    if not removed:
        click.echo("nothing to remove")


def _path(name: str) -> Path:
    from vmtest.snapshots import store

    for path in store.all_snapshots():
        if path.name == name:
            return path
    raise store.unknown(name)
