"""Decoders as executors, and what they say against what really happened."""

from __future__ import annotations

import pytest
from oncase import run

from vmtest.compare.decoding import decoding
from vmtest.compare.outcomes import aspects, verdict
from vmtest.compare.pairs import difference
from vmtest.errors import HostError
from vmtest.executors import EXECUTORS, available, executor
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import PAGE, isa

DECODERS = [name for name, row in EXECUTORS.items() if row.decodes]


def _places(outcome: Outcome) -> list[int]:
    return [at for at in range(64) if outcome.begins >> at & 1]


# Code, where its instructions begin, where the decoder stops, and whether it is cut off there: Intel SDM, volume 2; Arm
# ARM; RISC-V unprivileged manual; MIPS32, volume II.
DECODED = [
    ("x86_64 4801d890c3", [0, 3, 4], 5, False),
    ("x86_64 f3a490", [0, 2], 3, False),  # rep movsb; nop
    ("x86_64 4801d848", [0], 3, True),
    ("x86_64 48b8", [], 0, True),
    ("x86_64 9006", [0], 1, False),  # push es is none in 64-bit mode
    ("x86_32 4090", [0, 1], 2, False),
    ("x86_32 b800000000", [0], 5, False),
    ("x86_16 b80000", [0], 3, False),
    ("x86_16 b800", [], 0, True),
    ("aarch64 2000028bffffffff", [0], 4, False),
    ("arm 020081e000009de5", [0, 4], 8, False),
    ("thumb 891800ee100a", [0, 2], 6, False),  # of two and of four bytes
    ("thumb 00ee", [], 0, True),
    ("riscv64 130500018505", [0, 4], 6, False),
    ("riscv32 1305", [], 0, True),
    ("mips32 21106400", [0], 4, False),
    ("mips32 ffffffff", [], 0, False),
]


KNOWN = [(name, *row) for row in DECODED for name in DECODERS if row[0].split()[0] in EXECUTORS[name].isas]


@pytest.mark.parametrize(("name", "line", "places", "stop", "is_cut"), KNOWN)
def test_where_instructions_begin(name: str, line: str, places: list[int], stop: int, is_cut: bool) -> None:
    """A decoder tells where each instruction begins, where it stopped, and whether more bytes would make it one."""
    case = Case.parse(line)
    (outcome,) = run(name, line)
    assert (outcome.status, _places(outcome), outcome.end) == ("decoded", places, case.start + stop)
    assert (outcome.address == case.isa.code + PAGE) == is_cut


def _outcome(line: str, status: str, end: int | None, vector: int | None = None, address: int | None = None) -> Outcome:
    start = Case.parse(line).start
    at = None if address is None else start + address
    return Outcome(status=status, end=None if end is None else start + end, vector=vector, address=at)


def _decoded(line: str, *places: int, stop: int, is_cut: bool = False) -> Outcome:
    case = Case.parse(line)
    end = case.isa.code + PAGE if is_cut else None
    return Outcome(status="decoded", begins=sum(1 << at for at in places), end=case.start + stop, address=end)


ADDS = "x86_64 4801d84801d8"  # 3 + 3 bytes
BAD = "x86_64 4801d8f04801d8"  # the second one has a LOCK that it must not have
JUMP = "x86_64 7401904801d8"  # je over a nop
RULES = [  # what happened, what is decoded, whether that cannot be
    (ADDS, _outcome(ADDS, "ok", 6), _decoded(ADDS, 0, 3, stop=6), False),
    (ADDS, _outcome(ADDS, "ok", 6), _decoded(ADDS, 0, stop=3), True),
    (ADDS, _outcome(ADDS, "ok", 6), _decoded(ADDS, 0, stop=3, is_cut=True), True),
    (ADDS, _outcome(ADDS, "exception", 3, 14), _decoded(ADDS, 0, 3, stop=6), False),
    (ADDS, _outcome(ADDS, "exception", 3, 14), _decoded(ADDS, 0, stop=6), True),  # one of 6 bytes
    (ADDS, _outcome(ADDS, "exception", 3, 14), _decoded(ADDS, 0, stop=3), True),
    (ADDS, _outcome(ADDS, "exception", 3, 6), _decoded(ADDS, 0, 3, stop=6), False),  # the CPU may not have it
    (BAD, _outcome(BAD, "exception", 3, 6), _decoded(BAD, 0, stop=3), False),
    (BAD, _outcome(BAD, "exception", 3, 6), _decoded(BAD, 0, 3, stop=7), True),
    (BAD, _outcome(BAD, "exception", 3, 14, 7), _decoded(BAD, 0, 3, stop=7), True),  # it is cut off
    (BAD, _outcome(BAD, "exception", 3, 14, 7), _decoded(BAD, 0, stop=3), False),
    (JUMP, _outcome(JUMP, "ok", 6), _decoded(JUMP, 0, stop=2), False),  # may not have come there
    (JUMP, _outcome(JUMP, "ok", 6), _decoded(JUMP, stop=0), True),
    (JUMP, _outcome(JUMP, "exception", 3, 13), _decoded(JUMP, 0, 2, stop=6), False),
    (JUMP, _outcome(JUMP, "exception", 0, 13), _decoded(JUMP, stop=0), True),
]


@pytest.mark.parametrize(("line", "happened", "decoded", "wrong"), RULES)
def test_rules(line: str, happened: Outcome, decoded: Outcome, wrong: bool) -> None:
    """A decoder is only wrong where it says what cannot be, from what has run: it differs then, and else not."""
    said = decoding(Case.parse(line), {"cpu": happened, "decoder": decoded})
    assert (said["cpu"] != said["decoder"]) == wrong
    assert None not in said.values()


def test_who_says_nothing() -> None:
    """One that could not run it, or says no place, is no witness: decoders are compared with each other then."""
    silent = {"a": Outcome(status="unsupported"), "b": _outcome(ADDS, "exception", None, 14), "c": Outcome("timeout")}
    one, other = _decoded(ADDS, 0, 3, stop=6), _decoded(ADDS, 0, stop=3)
    said = decoding(Case.parse(ADDS), silent | {"one": one, "other": other, "same": one})
    assert [said[name] for name in "abc"] == [None] * 3
    assert (said["one"], said["other"]) == ("3+3 bytes, complete", "3 bytes, invalid at +0x3")
    assert said["same"] == said["one"]


def test_against_the_cpu() -> None:
    """Capstone's refusal of an alias that the CPU runs is a difference of its own, and no other one."""
    line = "x86_64 0faee9"  # lfence
    case = Case.parse(line)
    outcomes = {name: run(name, line)[0] for name in ("native", "capstone", "iced")}
    rows = aspects(case, outcomes)
    assert [row.name for row in rows if row.differs] == ["decoding"]
    assert verdict(rows) == "capstone stands alone: decoding"
    assert difference(case, outcomes["native"], outcomes["capstone"]) is None


def test_decoders_are_not_taken_for_many_cases() -> None:
    """They are among what can be had, and not among what is taken to run many cases."""
    assert "iced" in available("x86_64")
    assert not set(available("arm", bulk=True)) & set(DECODERS)


@pytest.mark.parametrize("name", DECODERS)
def test_outcomes_pack(name: str) -> None:
    """What a decoder says is the same after it went through bytes, as it does from its worker."""
    (outcome,) = run(name, ADDS)
    assert Outcome.unpack(isa("x86_64"), outcome.pack(), 1) == [outcome]
    assert outcome.as_dict(isa("x86_64"))["begins"] == 0b1001


def test_libraries_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its library a decoder cannot be had, and what is said names what to install."""
    monkeypatch.setattr("vmtest.executors.capstone.find_spec", lambda name: None)
    with pytest.raises(HostError, match=r"pip install 'pytest-vmtest\[decoders\]'"):
        executor("capstone", isa("arm"))
    monkeypatch.setattr("vmtest.executors.llvm._library", lambda: None)
    with pytest.raises(HostError, match="apt install llvm"):
        executor("llvm", isa("arm"))
    assert not {"capstone", "llvm"} & set(available("arm"))
