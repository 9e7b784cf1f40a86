"""Outcomes side by side: what is a difference, what is not, and who stands alone."""

from __future__ import annotations

from vmtest.compare.outcomes import aspects, verdict
from vmtest.forms import forms
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import CODE, PAGE
from vmtest.report.insn import side_by_side

END = CODE + PAGE

X86 = forms("x86_64")


def _ok(case: Case, **registers: int) -> Outcome:
    return Outcome(status="ok", state=case.isa.state(registers), end=END)


def _said(case: Case, **outcomes: Outcome) -> str:
    return verdict(aspects(case, outcomes))


def test_who_stands_alone() -> None:
    """Of three that differ in one thing the one against the two others is named; of two nobody is."""
    case = Case.parse("x86_64 f3480fbdc3 rbx=16")
    right, wrong = _ok(case, rbx=16, rax=59), _ok(case, rbx=16, rax=4)
    assert _said(case, a=right, b=wrong, c=right) == "b stands alone: rax"
    assert _said(case, a=right, b=wrong) == "they differ: rax"
    assert _said(case, a=right, b=wrong, c=_ok(case, rbx=16)) == "they differ: rax"
    assert _said(case, a=right, b=right, c=right) == ""


def test_undefined_flags_are_no_difference() -> None:
    """What the manual leaves undefined is not compared; what a later instruction defines is."""
    shift = Case.parse("x86_64 c1e003")  # shl eax,3: OF and AF
    assert X86.undefined(shift) == {"rflags": 0x810}
    assert _said(shift, a=_ok(shift, rflags=0x800), b=_ok(shift)) == ""
    assert _said(shift, a=_ok(shift, rflags=0x001), b=_ok(shift)) == "they differ: rflags"
    then_add = Case.parse("x86_64 c1e00301d8")
    assert X86.undefined(then_add) == {}
    assert _said(then_add, a=_ok(then_add, rflags=0x800), b=_ok(then_add)) == "they differ: rflags"


def test_what_one_does_not_tell_is_no_difference() -> None:
    """An error code, an address or a place that one executor does not tell, and what it cannot run, says nothing."""
    case = Case.parse("x86_64 488b00")
    fault = {"status": "exception", "state": case.state, "vector": 14}
    told = Outcome(**fault, error=0, address=0, end=case.start)  # type: ignore[arg-type]
    assert _said(case, a=told, b=Outcome(**fault), c=Outcome(status="unsupported")) == ""  # type: ignore[arg-type]
    assert _said(case, a=told, b=Outcome(**{**fault, "vector": 13})) == "they differ: exception"  # type: ignore[arg-type]


def test_ends_that_differ_say_it_all() -> None:
    """Where one has stopped early its registers are not set against those of one that went on."""
    case = Case.parse("x86_64 480fc8ffc0")
    early = Outcome(status="exception", state=case.state, end=case.start, vector=6)
    assert _said(case, a=_ok(case, rax=1), b=early) == "they differ: status, end"
    assert _said(case, a=_ok(case), b=Outcome(status="died", signal=6)) == "they differ: status"
    assert _said(case, a=_ok(case), b=Outcome(status="timeout")) == "they differ: status"


def test_those_that_ended_alike_are_compared() -> None:
    """Where a third one has stopped early the registers of the two that went on are compared; its are not."""
    case = Case.parse("x86_64 480fc8ffc0")
    early = Outcome(status="exception", state=case.isa.state({"rcx": 1}), end=case.start, vector=6)
    assert _said(case, a=_ok(case, rax=1), b=early, c=_ok(case, rax=2)) == "they differ: status, end, rax"
    assert _said(case, a=_ok(case, rax=1), b=early, c=_ok(case, rax=1)) == "b stands alone: status, end"
    refused = {"c": early, "d": early, "e": early}  # more than went on, and not the first, whom we believe
    assert _said(case, a=_ok(case, rax=1), b=_ok(case, rax=2), **refused) == "they differ: status, end, rax"
    nowhere = early._replace(end=None, state=case.isa.state({"rcx": 2}))  # where it was it does not tell
    assert _said(case, a=_ok(case), b=early, c=nowhere) == "they differ: status, end, rcx"


def test_what_was_written_is_compared() -> None:
    """Bytes of the data window are part of what is compared."""
    case = Case.parse("x86_64 880424")
    wrote = Outcome(status="ok", state=case.state, end=END, writes=((4096, b"\1"),))
    assert _said(case, a=wrote, b=_ok(case)) == "they differ: written"


def test_privileged_instructions() -> None:
    """An instruction of ring 0 fails where an executor runs in ring 3: shown, not counted, and told."""
    case = Case.parse("x86_64 f4")
    refused = Outcome(status="exception", state=case.state, end=case.start, vector=13)
    table, differs = side_by_side(case, {"a": _ok(case), "b": refused})
    assert not differs
    assert "not counted, status end: an instruction of ring 0" in table
    assert table.endswith("no difference")


def test_table() -> None:
    """The table has the case, its text, what began and came of each register that changed, and the verdict."""
    case = Case.parse("x86_64 4801d8 rax=1 rbx=2")
    assert X86.text(case.code, case.start) == ["add rax,rbx"]
    table, differs = side_by_side(case, {"one": _ok(case, rax=3, rbx=2), "two": _ok(case, rax=4, rbx=2)})
    assert differs
    lines = table.splitlines()
    assert lines[:2] == ["x86_64 4801d8 rax=0x1 rbx=0x2", "add rax,rbx"]
    assert next(line.split() for line in lines if "rax " in line) == ["!=", "rax", "0x1", "0x3", "0x4"]
    assert not any(line.startswith("rbx") for line in lines)
    assert lines[-1] == "they differ: rax"
    assert side_by_side(case, {"one": _ok(case)})[0].endswith("nothing to compare it with")


def test_bad_code_as_text() -> None:
    """What is no instruction is shown as such, and has no flags to leave undefined."""
    case = Case.parse("x86_64 06")
    assert X86.text(case.code, case.start) == ["(bad)"]
    assert X86.undefined(case) == {}


def test_long_values_are_cut_where_they_differ() -> None:
    """Of kilobytes that were written the table shows the place where two executors differ, and marks the cuts."""
    case = Case.parse("x86_64 f3ab")
    one, two = bytes(1000) + b"\1" + bytes(1000), bytes(1000) + b"\2"
    wrote = [Outcome(status="ok", state=case.state, end=END, writes=((0, data),)) for data in (one, two)]
    table, differs = side_by_side(case, {"one": wrote[0], "two": wrote[1]})
    assert differs
    line = next(line for line in table.splitlines() if line.startswith("!= written"))
    assert line.split()[2:] == ["…" + "0" * 31 + "01" + "0" * 31 + "…", "…" + "0" * 31 + "02"]
