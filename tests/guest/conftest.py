"""Guests for tests that look and do not touch: booted once a worker, instead of once a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vmtest


@pytest.fixture(scope="session")
def shared() -> Iterator[vmtest.Guest]:
    """The default guest, shared by tests that leave it as it was."""
    with vmtest.boot() as guest:
        yield guest


@pytest.fixture(scope="session", params=["linux-aarch64", "linux-riscv64"])
def foreign(request: pytest.FixtureRequest) -> Iterator[vmtest.Guest]:
    """A guest of each other architecture, shared likewise."""
    with vmtest.boot(request.param, cold=True) as guest:
        yield guest
