"""``vmtest list``: what can be booted."""

from __future__ import annotations

import json
from pathlib import Path

import click
from tabulate import tabulate

from vmtest import config, images
from vmtest.model.accel import ACCELERATORS
from vmtest.model.arch import ARCHES

__all__ = ["list"]


@click.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="as JSON, for programs")
def list(as_json: bool) -> None:
    """List the guests (images, and those that your project declares), architectures and accelerators."""
    found = config.find(Path.cwd())
    guests = [
        {"guest": name, "arch": (image := images.load(name)).arch, "what": image.description} for name in images.names()
    ]
    for name, spec in found.guests.items():
        guests.append({"guest": name, "arch": spec.arch or "", "what": f"declared in {found.path}"})
    for row in guests:
        row["default"] = "yes" if row["guest"] == found.default else ""
    arches = [{"arch": row.name, "qemu": row.qemu, "machine": row.machine, "cpu": row.cpu} for row in ARCHES.values()]
    accels = [{"accelerator": row.name, "what": row.what} for row in ACCELERATORS.values()]
    if as_json:
        click.echo(json.dumps({"guests": guests, "architectures": arches, "accelerators": accels}, indent=2))
        return
    for rows in (guests, arches, accels):
        click.echo(tabulate(rows, headers="keys") + "\n")
    click.echo("What works on this host, and how fast: vmtest doctor")
