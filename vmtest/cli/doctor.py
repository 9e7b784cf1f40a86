"""``vmtest doctor``: what this host can run, and what is missing."""

from __future__ import annotations

import shutil

import click

__all__ = ["doctor"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--refresh", is_flag=True, help="Ask QEMU and measure again, whatever is remembered.")
def doctor(as_json: bool, refresh: bool) -> None:
    """Look at this host: QEMU, accelerators, CPU, tools, and what is missing.

    An accelerator "works" when a tiny guest really ran under it and answered right; MIPS is the speed at which
    that guest's loop ran, in million instructions a second, in kernel mode. Results are remembered until the host
    reboots or QEMU changes.

    \b
    Exit status:
      0  the default guest can run: QEMU, an accelerator that works, the tools and the cache are there
      1  it cannot; the last lines say what is missing and the commands that install it
      2  the command line is wrong
    """
    # Here, so that `vmtest --help` does not pay for them.
    from vmtest.host.checkup import checkup
    from vmtest.report import doctor as report
    from vmtest.report.progress import shown

    with shown() as progress:
        findings = checkup(refresh=refresh, progress=progress)
    if as_json:
        click.echo(report.as_json(findings))
    else:
        columns = min(160, max(80, shutil.get_terminal_size((110, 24)).columns))
        click.echo(report.as_text(findings, width=columns))
    raise SystemExit(0 if findings.ready else 1)
