"""A user's project, made anew for each test of the plugin."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A directory with an ini file of its own, so that this repository's settings do not reach it."""
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester
