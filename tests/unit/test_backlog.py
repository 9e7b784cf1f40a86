"""What is done beside a run on a device, and in which order: with a stand-in for what asks QEMU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import cast

import pytest

from vmtest.devices.access import Access, In, Out
from vmtest.devices.board import Board
from vmtest.devices.crash import Crash
from vmtest.devices.layout import Area
from vmtest.devices.reproducer import Reproducer
from vmtest.devices.target import Target
from vmtest.errors import HostError
from vmtest.fuzz.backlog import LAST, SAMPLES, TURN, Backlog, Came
from vmtest.fuzz.confirm import Confirmer, Found, Stopped
from vmtest.fuzz.device import TRIES, Hunt, Report, by_itself
from vmtest.fuzz.hunters import _take
from vmtest.host import Qemu

BEGIN = (Out(0xCF8, 1, 4),)
TARGET = Target(name="x", board=Board(arguments=()), areas=(Area(name="a", address=0, size=8),), arena=(0, 1))


class Asked:
    """Stands for a Confirmer: a crash of n operations is n pieces, and ``smaller`` says what becomes of it."""

    def __init__(self, smaller: Callable[[Found], Found] = lambda found: found._replace(is_smallest=True)) -> None:
        self.done: list[tuple[str, float]] = []
        self._smaller = smaller
        self.goes_on = threading.Event()
        self.goes_on.set()
        self._is_stopped = False

    def confirmed(
        self, pieces: Sequence[Sequence[Access]], kind: str, known: Collection[str], alone: Access | None
    ) -> Found | str | None:
        self.goes_on.wait()
        if self._is_stopped:
            raise Stopped
        key = "a" if not pieces else f"{kind} {pieces[0]}"
        self.done.append((f"confirm {key}", 0.0))
        return key if key in known else found_of(key, kind, len(pieces), alone is not None) if pieces else None

    def smaller(self, found: Found, *, seconds: float) -> Found:
        self.done.append((found.crash.key, seconds))
        return self._smaller(found)

    def stop(self) -> None:
        self._is_stopped = True
        self.goes_on.set()


def found_of(key: str, kind: str, length: int, by_itself: bool = False) -> Found:
    """A crash by so many operations."""
    made = Reproducer(binary="q", board=Board(arguments=()), accesses=(In(1, 1),) * length, signature=key)
    return Found(Crash(kind, key, "", 0), made, by_itself=by_itself)


def backlog(asked: Asked, known: Collection[str] = ()) -> Backlog:
    """With the stand-in."""
    return Backlog(cast(Confirmer, asked), known)


def pieces(name: str, length: int = 3) -> Sequence[Sequence[Access]]:
    """What the stand-in takes for a crash with that name, by so many operations; by none it does not come again."""
    return cast(Sequence[Sequence[Access]], [name] * length)


def rest(found: Backlog, seconds: float = 0.0) -> list[Came]:
    """What comes when the run is over."""
    return [came for came in found.rest(seconds) if came]


def test_hangs_are_for_the_end() -> None:
    """Crashes are confirmed as they come, and made smaller; a hang when the run is over, for longer."""
    asked = Asked()
    asked.goes_on.clear()
    with backlog(asked) as found:
        for kind, name in (("hang", "h"), ("signal", "s"), ("abort", "t")):
            found.add(f"{kind} {name}", kind, pieces(name))
        asked.goes_on.set()
        keys = [came.key for came in rest(found, 60.0)]
    assert [what for what, _ in asked.done][:3] == ["confirm hang h", "confirm signal s", "confirm abort t"]
    assert keys[-1] == "hang h"
    assert dict(asked.done)["hang h"] == LAST
    assert sorted(keys) == sorted(2 * ["hang h", "signal s", "abort t"])


def test_each_has_its_turn() -> None:
    """Of two that take long each has a turn as soon as it is confirmed, neither waits for the other's end, and the end
    of the run ends both.
    """
    turns = threading.Semaphore(0)

    def smaller(found: Found) -> Found:
        turns.release()
        return found_of(found.crash.key, found.crash.kind, len(found.accesses) - 1)

    asked = Asked(smaller)
    asked.goes_on.clear()
    with backlog(asked) as found:
        found.add("signal s", "signal", pieces("s", 10**6))
        found.add("signal t", "signal", pieces("t", 10**6))
        asked.goes_on.set()
        for _ in range(6):
            assert turns.acquire(timeout=60)
        rest(found)
    order = [what for what, seconds in asked.done if seconds == TURN]
    assert [what for what, _ in asked.done][:4] == ["confirm signal s", "signal s", "confirm signal t", "signal t"]
    assert order[2:6] in (["signal s", "signal t"] * 2, ["signal t", "signal s"] * 2)
    assert [seconds for what, seconds in asked.done[-2:]] != [TURN, TURN]


def test_one_operation_is_small() -> None:
    """What ends QEMU by one operation alone is made simpler when the others have had their turn."""
    asked = Asked()
    asked.goes_on.clear()
    with backlog(asked) as found:
        found.add("signal s", "signal", pieces("s"), In(1, 1))
        found.add("signal t", "signal", pieces("t"))
        asked.goes_on.set()
        rest(found, 60.0)
    assert [what for what, _ in asked.done] == ["confirm signal s", "confirm signal t", "signal t", "signal s"]


def test_what_gets_no_smaller_is_taken_anew() -> None:
    """It is wanted again where it is as small as it gets by what it came by, and not without end."""
    asked = Asked()
    with backlog(asked) as found:
        for sample in range(1, SAMPLES + 1):
            assert found.wants("signal s") == (sample > 1)
            found.add("signal s", "signal", pieces("s"))
            heard: list[Came] = []
            while len(heard) < 2:  # confirmed, and made smaller
                heard += found.came()
        assert not found.wants("signal s")


def test_what_is_known_and_what_does_not_come_again() -> None:
    """They are told apart: the one has the other crash's key, the other nothing."""
    with backlog(Asked(), {"signal s"}) as found:
        found.add("abort", "signal", pieces("s"))
        found.add("gone", "signal", pieces("gone", 0))
        assert rest(found) == [Came("abort", "signal s"), Came("gone", None)]


def test_an_error_is_the_runs() -> None:
    """What goes wrong in the thread is raised where the run asks what has come of it."""

    def smaller(found: Found) -> Found:
        raise HostError("no room")

    with backlog(Asked(smaller)) as found:
        found.add("signal s", "signal", pieces("s"))
        with pytest.raises(HostError, match="no room"):
            rest(found)


def test_close_ends_what_is_under_way() -> None:
    """In the middle of confirming, with more that waits, it ends at once; and a second time does nothing."""
    asked = Asked()
    asked.goes_on.clear()
    found = backlog(asked)
    found.add("signal s", "signal", pieces("s"))
    found.add("signal t", "signal", pieces("t"))
    found.close()
    found.close()
    assert asked.done == []


def test_one_operation_that_ends_qemu() -> None:
    """It is told apart from what takes more than the machine's being made ready."""
    target = Target(name="x", board=Board(arguments=()), areas=TARGET.areas, arena=(0, 1), begin=BEGIN)
    made = {n: found_of("s", "signal", n).reproducer for n in (1, 2)}
    assert by_itself(made[1], target) == In(1, 1)
    assert by_itself(made[2], target) is None


def test_processes_hear_of_each_others_crashes() -> None:
    """The others do, not the one that has found it: it may find it smaller; and by which operation alone it comes."""

    class Pipe:
        def __init__(self) -> None:
            self.heard: list[object] = []

        def send(self, what: object) -> None:
            self.heard.append(what)

    one, other = Pipe(), Pipe()
    numbers = dict.fromkeys(("operations", "sequences", "resets", "ends", "clean", "events", "features", "corpus"), 1)
    said = {**numbers, "fuzzing": 1.0, "shrinking": 1.0, "doing": "", "seen": {"s": 1}, "unconfirmed": {}}
    report = Report(target=TARGET, seed=1, jobs=2)
    parts = {one: {}, other: dict(said)}
    for length in (3, 1, 1):
        made = found_of("s", "signal", length).reproducer
        _take((said, "s", made), one, parts, report, lambda report, made: None)  # type: ignore[arg-type]
    assert one.heard == []
    assert other.heard[:2] == [("s", None), ("s", In(1, 1))]
    assert (report.operations, report.seen, len(report.crashes["s"].accesses)) == (2, {"s": 2}, 1)


def test_what_came_to_another_crash_is_tried_again() -> None:
    """That it came to a known one, once, does not hide it: it is tried as often as one that did not come at all."""
    hunt = Hunt(TARGET, cast(Qemu, None), 1)
    crash = Crash("signal", "s", "", 0)
    with backlog(Asked()) as waiting:
        for _ in range(TRIES):
            assert hunt._is_asked(crash, waiting)
            hunt._crash(Came("s", "a"))
        assert not hunt._is_asked(crash, waiting)
    assert hunt.report.unconfirmed == {}
