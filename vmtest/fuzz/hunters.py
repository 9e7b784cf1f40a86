"""Several processes that work on one target, each with a seed and a QEMU of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from multiprocessing.connection import Connection, wait
from typing import Any

from vmtest.devices.reproducer import Reproducer
from vmtest.devices.target import Target
from vmtest.errors import HostError, VmtestError
from vmtest.fuzz.children import deaf_children
from vmtest.fuzz.device import Hunt, Report, by_itself
from vmtest.host import Qemu

__all__ = ["hunt"]

COUNTS = tuple(field.name for field in fields(Report) if field.type == "int" and field.name not in ("seed", "jobs"))
"""What is added up. Of kinds of events, and of what was new, the most is told: they have mostly seen the same."""
MOST = ("events", "features")
LAST_WORDS = 5.0
"""Seconds in which a process that is to end does."""

Told = Callable[[Report, Reproducer | None], None]


def hunt(
    target: Target, qemu: Qemu, *, seed: int, seconds: float, told: Told, jobs: int = 1, feedback: bool = True
) -> Report:
    """Fuzz for so many seconds. ``told`` is called now and then, and with crashes as of a Hunt.

    The first process has ``seed``, the next one a higher one. Ctrl-C is the caller's. Raises HostError.
    """
    if jobs == 1:
        one = Hunt(target, qemu, seed, feedback=feedback)
        return one.run(seconds=seconds, told=told)
    report, begin = Report(target=target, seed=seed, jobs=jobs), time.monotonic()
    context = multiprocessing.get_context("spawn")
    parts = dict[Connection, dict[str, Any]]()
    processes = []
    try:
        with deaf_children():
            for job in range(jobs):
                ours, theirs = context.Pipe()
                parts[ours] = {}
                given = (os.getpid(), theirs, target, qemu, seed + job, seconds, feedback)
                processes.append(context.Process(target=_work, args=given))
                processes[-1].start()
                theirs.close()
        running = set(parts)
        while running:
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                try:
                    said = pipe.recv()
                except (EOFError, OSError):  # it has ended, and not said so
                    said = None
                if said is None:
                    running.remove(pipe)
                    pipe.close()
                else:
                    _take(said, pipe, parts, report, told)
                report.seconds = time.monotonic() - begin
    finally:
        for pipe in parts:
            pipe.close()  # which ends who still works
        for process in processes:
            process.join(LAST_WORDS)
            process.kill()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise HostError(f"a process of the run has ended (exit status {failed[0]})")
    return report


def _take(
    said: tuple[Mapping[str, Any], str, Reproducer | None] | VmtestError,
    pipe: Connection,
    parts: Mapping[Connection, dict[str, Any]],
    report: Report,
    told: Told,
) -> None:
    """What a process tells goes into the report; of a crash the others hear, and of what ends QEMU by itself."""
    if isinstance(said, VmtestError):
        raise said
    numbers, key, made = said
    parts[pipe].update(numbers)
    rows = [part for part in parts.values() if part]
    for name in COUNTS:
        setattr(report, name, (max if name in MOST else sum)(part[name] for part in rows))
    report.fuzzing = max(part["fuzzing"] for part in rows)
    report.shrinking = sum(part["shrinking"] for part in rows)
    report.doing = "; ".join(part["doing"] for part in rows if part["doing"])
    report.seen = dict(sum((Counter(part["seen"]) for part in rows), Counter[str]()))
    tried = sum((Counter(part["unconfirmed"]) for part in rows), Counter[str]())
    report.unconfirmed = {name: times for name, times in tried.items() if name not in report.crashes}
    alone = made and by_itself(made, report.target)
    if made is not None and (alone or key not in report.crashes):
        for other in parts:
            with suppress(OSError):  # one that is done
                if other is not pipe:
                    other.send((key, alone))
    if made is not None and len(made.accesses) > len(report.crashes.get(key, made).accesses):
        made = None  # another process has it smaller
    if made is not None:
        report.crashes[key] = made
    told(report, made)


def _work(parent: int, pipe: Connection, target: Target, qemu: Qemu, seed: int, seconds: float, feedback: bool) -> None:
    """In a process of its own, which ends when who started it has gone, or does not listen any more."""
    one = Hunt(target, qemu, seed, feedback=feedback)
    listener = threading.Thread(target=_listen, args=(parent, pipe, one), daemon=True)
    listener.start()
    names = (*COUNTS, "fuzzing", "shrinking", "doing", "seen", "unconfirmed")

    def told(report: Report, made: Reproducer | None) -> None:
        key = next((key for key, one in report.crashes.items() if one is made), "")
        say(({name: getattr(report, name) for name in names}, key, made))

    def say(what: object) -> None:
        try:
            pipe.send(what)
        except OSError:  # nobody listens any more
            one.stop()

    try:
        one.run(seconds=seconds, told=told)
    except VmtestError as error:
        say(error)
    say(None)


def _listen(parent: int, pipe: Connection, one: Hunt) -> None:
    try:
        while os.getppid() == parent:
            if pipe.poll(0.5):
                one.learn(*pipe.recv())
    except (EOFError, OSError):
        pass
    one.stop()
    threading.Event().wait(LAST_WORDS / 2)
    os._exit(0)  # it does not end
