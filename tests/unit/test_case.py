"""Cases and outcomes: as text that people read and paste, and as bytes that go to a worker."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtest.errors import UsageError
from vmtest.model.case import STATUSES, Case, Outcome, differences
from vmtest.model.isa import DATA_SIZE, ISAS, Isa, isa


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any case of any instruction set."""
    row = ISAS[draw(st.sampled_from(sorted(ISAS)))]
    registers = st.sampled_from(row.registers)
    values = {r.name: draw(st.integers(0, (1 << 8 * r.size) - 1)) for r in draw(st.lists(registers, max_size=5))}
    patch = st.tuples(st.integers(0, DATA_SIZE - 16), st.binary(min_size=1, max_size=16))
    memory = tuple(draw(st.lists(patch, max_size=3)))
    return Case(
        isa=row, code=draw(st.binary(min_size=1, max_size=row.code_most)), state=row.state(values), memory=memory
    )


@given(cases())
def test_a_case_is_a_line(case: Case) -> None:
    """What a case prints is one line, and parsing that gives the case again."""
    assert "\n" not in str(case)
    assert Case.parse(str(case)) == case


@given(st.lists(cases(), min_size=1, max_size=3))
def test_cases_as_bytes(several: list[Case]) -> None:
    """Cases one after the other as bytes are the same cases again."""
    data, at = b"".join(case.pack() for case in several), 0
    for case in several:
        found, at = Case.unpack(case.isa, data, at)
        assert found == case
    assert at == len(data)


@st.composite
def outcomes(draw: st.DrawFn, row: Isa) -> Outcome:
    """Any outcome."""
    status = draw(st.sampled_from(STATUSES))
    number = st.none() | st.integers(0, (1 << 64) - 1)
    return Outcome(
        status=status,
        state=draw(st.binary(min_size=row.size, max_size=row.size)) if status in ("ok", "exception") else b"",
        writes=tuple(draw(st.lists(st.tuples(st.integers(0, DATA_SIZE - 9), st.binary(max_size=9)), max_size=2))),
        end=draw(number),
        vector=draw(number),
        error=draw(number) if status != "decoded" else None,
        address=draw(number),
        signal=draw(st.integers(0, 31)),
        begins=draw(st.integers(0, (1 << 64) - 1)) if status == "decoded" else 0,
    )


@given(st.lists(outcomes(ISAS["riscv64"]), min_size=1, max_size=3))
def test_outcomes_as_bytes(several: list[Outcome]) -> None:
    """Outcomes one after the other as bytes are the same again: what is unknown stays unknown, and 0 stays 0."""
    data = b"".join(outcome.pack() for outcome in several)
    assert Outcome.unpack(ISAS["riscv64"], data, len(several)) == several


@given(outcomes(ISAS["riscv64"]))
def test_outcomes_as_json(outcome: Outcome) -> None:
    """An outcome is the same again after JSON; what was written is told with a state."""
    row = ISAS["riscv64"]
    expected = outcome if outcome.state else outcome._replace(writes=())
    places = [at for at, _ in outcome.writes]
    if len(set(places)) == len(places):  # as of those that executors tell
        assert Outcome.of_dict(row, json.loads(json.dumps(outcome.as_dict(row)))) == expected


@pytest.mark.parametrize(
    "data", [{}, {"status": "fine"}, {"status": "ok", "registers": 5}, {"status": "ok", "end": "x"}]
)
def test_no_outcome(data: dict[str, object]) -> None:
    """What is no outcome is a UsageError."""
    with pytest.raises(UsageError):
        Outcome.of_dict(ISAS["riscv64"], data)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' is not a case"),
        ("x86_64", "is not a case"),
        ("vax 90", "unknown instruction set 'vax'"),
        ("x86_64 9", "'9' are not bytes in hex: 1 digits"),
        ("x86_64 zz", "'zz' are not bytes in hex"),
        ("x86_64 90 rax", "'rax' is neither REGISTER=NUMBER nor"),
        ("x86_64 90 rax=much", "'much' is not a number"),
        ("x86_64 90 rax=0x10000000000000000", "rax has 64 bits, and cannot hold 0x10000000000000000"),
        ("x86_64 90 x0=1", "x86_64 has no register 'x0' that can be set"),
        ("x86_64 90 [0]=0", "'0' are not bytes in hex"),
        ("x86_64 90 [0x2000]=00", "the data window has 8192 bytes"),
        ("x86_64 90 [-1]=00", "1 at -0x1 are not in it"),
        ("x86_64 " + "90" * 65, "1 to 64 bytes of code, and this one 65"),
    ],
)
def test_what_is_no_case(text: str, told: str) -> None:
    """What is no case is one UsageError that says what of it is wrong."""
    with pytest.raises(UsageError, match=told):
        Case.parse(text)


def test_numbers_as_people_write_them() -> None:
    """Registers are set by decimal, hexadecimal, negative and complemented numbers, by names of either case."""
    row = isa("x86_64")
    case = Case.parse("x86_64 90 RAX=~0 rbx=-1 rcx=0x10 rdx=10 r8=0b11")
    assert row.said(case.state) == {"rax": 2**64 - 1, "rbx": 2**64 - 1, "rcx": 16, "rdx": 10, "r8": 3}


def test_flags_that_are_not_a_programs() -> None:
    """Flags that would end the run, or are fixed, cannot be set: the rest can."""
    row = isa("x86_64")
    assert row.values(row.state({"rflags": 2**64 - 1}))["rflags"] == 0xCD5 | 0x202
    assert row.values(row.state({"rflags": 0}))["rflags"] == 0x202


@given(st.binary(min_size=256, max_size=256), st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255))))
def test_differences(before: bytes, changes: list[tuple[int, int]]) -> None:
    """Patching the window with its differences gives what it has become; they do not overlap."""
    after = bytearray(before)
    for at, value in changes:
        after[at] = value
    patched, last = bytearray(before), -1
    for at, data in differences(before, bytes(after)):
        assert at > last
        last = at + len(data) - 1
        patched[at : at + len(data)] = data
        assert before[at] != data[0]
        assert before[last] != data[-1]
    assert patched == after
