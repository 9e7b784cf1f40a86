"""A user's project, made anew for each test of the plugin."""

from __future__ import annotations

import pytest

from vmtest import cache

# pytester gives each run a home of its own; images and measurements are this session's all the same.
CACHE = cache.root().parent


@pytest.fixture(autouse=True)
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with an ini file of its own, so that this repository's settings do not reach it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE))
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester
