"""``vmtest import`` and ``vmtest reproducer``: crashes of devices, from upstream's form to ours and back."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import click

from vmtest.errors import UsageError

if TYPE_CHECKING:
    from vmtest.devices.reproducer import Reproducer
    from vmtest.host import Qemu

__all__ = ["can_be_written", "import_", "reproducer", "run_again", "write_text"]


@click.command(name="import")
@click.argument("path", metavar="SCRIPT", type=Path)
@click.option("-o", "--output", metavar="FILE", type=Path, help="where to  [SCRIPT with the suffix .toml]")
@click.option("--qemu", metavar="BINARY", help="run it on that QEMU  [the one that the script names]")
@click.option("--title", default="", help="what it is, in a line")
@click.option("--source", default="", help="where it is from: an issue's address")
def import_(path: Path, output: Path | None, qemu: str | None, title: str, source: str) -> int:
    """Make a reproducer of a shell script.

    SCRIPT holds a here-document for -qtest stdio, as reports to QEMU have it:

    \b
      cat << EOF | qemu-system-x86_64 -M q35 -nodefaults -device edu -qtest stdio
      outl 0xcf8 0x80000804
      EOF

    It is run, in lockstep and as fast as QEMU takes it, and written down with what came of it. The exit code is 0 where
    QEMU ends by it, and 1 where it lives.
    """
    from dataclasses import replace

    from vmtest.devices.reproducer import confirmed
    from vmtest.devices.upstream import from_shell
    from vmtest.host import find_emulator

    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        found = replace(from_shell(text), title=title, source=source)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None
    output = output or path.with_suffix(".toml")
    if output.exists():
        raise UsageError(f"{output} is there already", hint="-o FILE names another one; remove it to have it made anew")
    can_be_written(output)
    found = confirmed(found, find_emulator(qemu or found.binary))
    write_text(output, found.dumps())
    (how,) = found.seen.values()
    mode = "in lockstep" if found.lockstep else "as fast as QEMU takes it"
    click.echo(f"{output}: {len(found.accesses)} operations; " + (f"{how}, {mode}" if how else "QEMU lives"))
    return 0 if how else 1


@click.command()
@click.argument("path", metavar="FILE", type=Path)
@click.option("--c", "as_c", is_flag=True, help="a test in C for QEMU's own suite")
def reproducer(path: Path, as_c: bool) -> None:
    """Print a reproducer in a form that upstream takes.

    It is a here-document for -qtest stdio, which needs a QEMU that has the accelerator qtest; with --c a test for
    tests/qtest/.
    """
    from vmtest.devices import upstream
    from vmtest.devices.reproducer import read

    found = read(path)
    try:
        click.echo(upstream.as_c(found, path.stem) if as_c else upstream.as_shell(found), nl=False)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None


def can_be_written(path: Path) -> None:
    """Raises UsageError where a file cannot."""
    if path.is_dir():
        raise UsageError(f"{path} cannot be written: it is a directory")
    try:
        with TemporaryFile(dir=path.parent):
            return
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Write a file, the whole of it or nothing. Raises UsageError where it cannot be written."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def run_again(found: Reproducer, qemu: Qemu) -> tuple[str, bool]:
    """What a reproducer comes to on that QEMU, in a line, and whether it is what it is to end with."""
    from vmtest.devices.reproducer import run
    from vmtest.devices.requests import until

    crash = run(found, qemu)
    version = f"{qemu.path.name} {'.'.join(map(str, qemu.version))}"
    if crash is None or crash.is_clean:
        ended = "QEMU lives" if crash is None else f"QEMU ends in order ({crash.signature})"
        return f"{version}: {'it is gone' if found.signature else 'as it is to be'}: {ended}", False
    where = f"operation {len(until(found.accesses, crash.done))} of {len(found.accesses)}"
    if found.is_same(crash, qemu):
        return f"{version}: it is still there, at {where}", True
    return f"{version}: it ends otherwise, at {where}: {crash.kind}: {crash.key}", True
