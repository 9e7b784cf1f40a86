"""The pytest plugin: options, fixtures and reports. Nothing is started, probed or built before a test needs a guest."""

from __future__ import annotations

import pytest

from vmtest.errors import VmtestError
from vmtest.pytest_plugin.fixtures import boot, guest, session_boot, template
from vmtest.pytest_plugin.fuzzing import executors
from vmtest.pytest_plugin.pooling import pytest_collection_finish, pytest_sessionfinish
from vmtest.pytest_plugin.qtest import MARKER as QTEST_MARKER
from vmtest.pytest_plugin.qtest import qtest
from vmtest.pytest_plugin.reporting import (
    pytest_report_header,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)
from vmtest.pytest_plugin.settings import SETTINGS, add_options, read_settings

__all__ = [
    "boot",
    "executors",
    "guest",
    "pytest_addoption",
    "pytest_collection_finish",
    "pytest_configure",
    "pytest_report_header",
    "pytest_runtest_makereport",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "qtest",
    "session_boot",
    "template",
]

MARKER = """guest(name, *, memory=..., smp=..., accel=..., kernel=..., append=..., channel=..., ...): \
the guest that the `guest` fixture boots for this test: its name (an image, or one declared in [tool.vmtest.guests]), \
and vmtest.GuestSpec's fields as keywords. What it says goes before the project's declaration, and after what is given \
on the command line."""


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    config.addinivalue_line("markers", QTEST_MARKER)
    try:
        config.stash[SETTINGS] = read_settings(config)
    except VmtestError as error:
        raise pytest.UsageError(str(error)) from None
