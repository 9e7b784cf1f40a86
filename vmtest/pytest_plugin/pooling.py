"""The session's pool of clones: how many, and until when."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vmtest.pytest_plugin.settings import SETTINGS

if TYPE_CHECKING:
    from vmtest.pool import Pool

__all__ = ["pool_of", "pytest_collection_finish", "pytest_sessionfinish", "share"]

_POOL = pytest.StashKey["Pool | None"]()
_WANTED = pytest.StashKey[int]()


def share(total: int, workers: int, index: int) -> int:
    """What worker ``index`` of ``workers`` may keep of a session's pool: together they keep ``total``."""
    return total // workers + (index < total % workers)


def pool_of(config: pytest.Config) -> Pool | None:
    """The pool, made at the first test that boots a guest; called once a test that does."""
    if _POOL not in config.stash:
        config.stash[_POOL] = _made(config)
    pool = config.stash[_POOL]
    if pool is not None:
        config.stash[_WANTED] = max(0, config.stash.get(_WANTED, 1) - 1)
        pool.wanted = config.stash[_WANTED]  # a lower number than its test takes leaves nobody waiting
    return pool


def _made(config: pytest.Config) -> Pool | None:
    from vmtest.booting import use_pool
    from vmtest.host import memory

    worker = getattr(config, "workerinput", {})
    workers, index = int(worker.get("workercount", 1)), int(worker.get("workerid", "gw0").removeprefix("gw"))
    total = config.stash[SETTINGS].pool
    if total is None:
        cores = len(os.sched_getaffinity(0))
        idle = cores if workers == 1 else max(0, cores - workers)  # what workers keep busy is not there for clones
        total = min(idle, max(0, memory.available() - memory.RESERVE) // (2 * memory.CLONE))
    size = share(total, workers, index)
    return use_pool(size) if size else None


def pytest_collection_finish(session: pytest.Session) -> None:
    # Of several workers each counts all tests: their pools may make a clone too many at the end, and end it.
    session.config.stash[_WANTED] = sum(
        1 for item in session.items if {"guest", "boot"} & set(getattr(item, "fixturenames", ()))
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    pool = session.config.stash.get(_POOL, None)
    if pool is not None:
        pool.close()
