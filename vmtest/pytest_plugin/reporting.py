"""What the reports say: which accelerator ran, and for a failed test the guest's console and how to start it again."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmtest.errors import VmtestError
from vmtest.pytest_plugin.fixtures import GUESTS, TOLD
from vmtest.pytest_plugin.settings import SETTINGS

if TYPE_CHECKING:
    from vmtest.guest import Guest

__all__ = ["pytest_report_header", "pytest_runtest_makereport", "pytest_terminal_summary"]

OURS = Path(__file__).parents[1]


def pytest_report_header(config: pytest.Config) -> str:
    settings = config.stash[SETTINGS]
    spec = settings.spec(None, {}, where="the command line")
    return (
        f"vmtest: {version('pytest-vmtest')}, guest {settings.name or settings.project.default}, {_accelerator(spec)}"
    )


def _accelerator(spec: object) -> str:
    from vmtest.booting import foresee
    from vmtest.model.spec import GuestSpec

    assert isinstance(spec, GuestSpec)
    try:
        return foresee(spec)
    except VmtestError as error:
        return f"{error.whose}: {error.message}"


def _ours(excinfo: pytest.ExceptionInfo[BaseException]) -> bool:
    return isinstance(excinfo.value, VmtestError)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    if call.excinfo is not None and isinstance(call.excinfo.value, VmtestError):
        # Our own frames say nothing to the user; the error's text says it all. A module's hide flag is pytest's way.
        for entry in call.excinfo.traceback:
            if Path(entry.path).is_relative_to(OURS):
                entry.frame.f_globals["__tracebackhide__"] = _ours
    report = yield
    guests = item.stash.get(GUESTS, [])
    if report.failed:
        item.stash[FAILED] = True
        error = call.excinfo.value if call.excinfo else None
        shown = item.stash.get(TOLD, False) or "QEMU command line" in getattr(error, "evidence", ())
        for guest in guests:
            report.sections.append((f"vmtest: {guest.name} under {guest.accel}", _about(guest, brief=shown)))
    if (
        report.when == "teardown"
        and item.config.stash[SETTINGS].artifacts is None
        and not item.stash.get(FAILED, False)
    ):
        for guest in guests:  # nobody will look for the logs of a test that passed
            shutil.rmtree(guest.logs, ignore_errors=True)
    return report


FAILED = pytest.StashKey[bool]()
"""Whether a phase of the item has failed, on the item."""


def _about(guest: Guest, *, brief: bool) -> str:
    """The section of a guest in a failed test's report; brief where the error's own text has the evidence."""
    parts = [f"QEMU {guest.qemu_version}, accelerator {guest.accel}", f"whole console log: {guest.console.log_path}"]
    if guest.origin:
        advice = "" if guest.from_named else "; --vm-cold boots it anew"
        parts.insert(1, f"{guest.origin}{advice}")
    if not brief:
        parts += [f"QEMU command line: {guest.command_line}", "console tail:", guest.console.tail_text() or "(nothing)"]
    parts += [f"kernel report: {report.title}" for report in guest.reports]
    return "\n".join(parts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once which accelerators ran: under xdist as well, where no process but the workers' boots guests."""
    used: dict[str, int] = {}
    clones = 0
    notes: dict[str, None] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, value in report.user_properties:
                    if name == "vm_accel":
                        used[value] = used.get(value, 0) + 1
                    clones += name == "vm_clone"
            if getattr(report, "when", "") == "teardown":
                notes.update((value, None) for name, value in report.user_properties if name == "vm_note")
    if used:
        counts = ", ".join(f"{count} under {accel}" for accel, count in sorted(used.items()))
        terminalreporter.write_line(f"vmtest: guests: {counts}; {clones or 'none'} of them clones")
    for note in notes:
        terminalreporter.write_line(f"vmtest: {note}")
