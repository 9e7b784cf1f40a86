"""``vmtest image``: see, build, locate and remove images."""

from __future__ import annotations

import json
import shutil
from typing import Any

import click

from vmtest.errors import UsageError, VmtestError

# What works with images is imported by the commands, so that `vmtest --help` does not pay for it.

__all__ = ["image"]


@click.group()
def image() -> None:
    """See, build, locate and remove guest images.

    \b
      vmtest image list                      what there is
      vmtest image build linux-x86_64        build it now, not on first use
      vmtest image build --update            all, from the newest packages

    An image is built on first use and kept in the cache ($XDG_CACHE_HOME/vmtest, ~/.cache/vmtest by default);
    from then on nothing needs the network. NAME is one of `vmtest image list`, or the path of a folder of your
    own with an image.toml (with a / in it: ./my-image).
    """


@image.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
def list_(as_json: bool) -> None:
    """List the images: what they are, and which are built."""
    from tabulate import tabulate

    from vmtest import cache
    from vmtest.images import catalog

    rows = [_describe(name) for name in catalog.names()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = [
        {
            "name": row["name"],
            "arch": row["arch"],
            "memory": f"{row['memory']} MiB",
            "built": f"{row['size'] / 1e6:.1f} MB" if row["built"] else "no",
            "kernel": row["kernel"],
            "description": row["description"],
        }
        for row in rows
    ]
    click.echo(tabulate(table, headers="keys", disable_numparse=True))
    click.echo(f"\ncache: {cache.root()}")


def _describe(name: str) -> dict[str, Any]:
    from vmtest.images import catalog
    from vmtest.images.prepared import cached

    image = catalog.load(name)
    try:
        entry = cached(image)
    except VmtestError:  # such as an agent that is not compiled: listing still tells the rest
        entry = None
    packages = [origin for origin in entry.origins if "package" in origin] if entry else []
    return {
        "name": name,
        "arch": image.arch,
        "description": image.description,
        "memory": image.memory,
        "min_memory": image.min_memory,
        "built": entry is not None,
        "path": str(entry.path) if entry else None,
        "size": entry.size if entry else 0,
        "kernel": packages[0]["package"].removeprefix("linux-image-") if packages else "",
        "origins": entry.origins if entry else [],
    }


@image.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--update", is_flag=True, help="Build again, from the newest packages that the archive has now.")
def build(names: tuple[str, ...], update: bool) -> None:
    """Build images into the cache: those named, or all.

    What is built already stays as it is, also when the archive has a newer kernel since: --update takes that.
    """
    from vmtest.images import catalog, prepare
    from vmtest.report.progress import shown

    with shown() as progress:
        done = [prepare(catalog.load(name), progress=progress, update=update) for name in names or catalog.names()]
    for prepared in done:
        files = [prepared.kernel, prepared.initrd, prepared.disk]
        size = sum(file.stat().st_size for file in files if file)
        click.echo(f"{prepared.image.name}: ready, {size / 1e6:.1f} MB")


@image.command()
@click.argument("name")
def path(name: str) -> None:
    """Print the directory of a built image; its files are called kernel, initrd and disk.

    Builds nothing: an image that is not built is an error.
    """
    from vmtest.images import catalog
    from vmtest.images.prepared import cached

    entry = cached(catalog.load(name))
    if entry is None:
        raise UsageError(f"the image {name} is not built", hint=f"vmtest image build {name}")
    click.echo(entry.path)


@image.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="All images, all downloads and apt's lists.")
def rm(name: str | None, everything: bool) -> None:
    """Remove an image from the cache; it is built again when it is next used.

    The downloaded packages stay, so that this needs no network, unless --all is given.
    """
    from vmtest import cache
    from vmtest.images import catalog, store

    if (name is None) != everything:
        raise UsageError("what should be removed?", hint="vmtest image rm NAME, or vmtest image rm --all")
    if name is not None:
        freed = store.remove(catalog.load(name).name)
        click.echo(f"{name}: {freed / 1e6:.1f} MB freed" if freed else f"{name}: was not built")
        return
    freed = sum(store.remove(known) for known in store.names_in_cache())
    for directory in ("downloads", "apt"):
        tree = cache.root() / directory
        freed += sum(file.lstat().st_size for file in tree.rglob("*") if file.is_file())
        shutil.rmtree(tree, ignore_errors=True)
    click.echo(f"{freed / 1e6:.1f} MB freed")
