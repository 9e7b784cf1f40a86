"""Where fuzzing gets its cases from: the strategies for hypothesis, patterns of forms, and the generator."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from vmtest.errors import UsageError
from vmtest.forms import forms
from vmtest.fuzz.generate import Generator, select
from vmtest.fuzz.strategies import cases, instructions, states
from vmtest.model.case import Case
from vmtest.model.isa import isa

X86 = isa("x86_64")


@settings(max_examples=50)
@given(instructions("x86_64", max_size=3, forms="add_*,BMI1"))
def test_instructions_are_of_the_forms(code: bytes) -> None:
    """The strategy makes instructions, of the forms that were asked for."""
    assert 0 < len(code) <= X86.code_most
    decoded = [one.form for one in forms("x86_64").decode(code)]
    assert 1 <= len(decoded) <= 3
    assert {*decoded} <= {*select(X86, "add_*,BMI1")}


@settings(max_examples=50)
@given(states("x86_64"), cases("x86_64", max_size=2))
def test_states_and_cases(state: dict[str, int], case: Case) -> None:
    """States can be set, and cases are lines that say all of them."""
    assert X86.values(X86.state(state)).items() >= state.items()
    assert Case.parse(str(case)) == case


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["x86_64", "aarch64", "riscv64"])
def test_strategies_are_healthy(name: str) -> None:
    """Hypothesis has nothing to say against the strategies of any instruction set that has a table."""

    @settings(max_examples=20, database=None)
    @given(instructions(name, max_size=8), states(name), cases(name, max_size=4))
    def check(code: bytes, state: dict[str, int], case: Case) -> None:
        assert len(code) % isa(name).step == 0
        assert isa(name).values(isa(name).state(state)).items() >= state.items()
        assert case.isa.name == name

    check()


@given(states("x86_64").filter(lambda state: "rflags" in state))
@settings(max_examples=20, suppress_health_check=[HealthCheck.filter_too_much])
def test_states_keep_what_is_fixed(state: dict[str, int]) -> None:
    """No state has TF, IOPL or VM: those are no state of a program's."""
    assert state["rflags"] & 0x23100 == 0


def test_forms_that_are_none() -> None:
    """Patterns that name nothing, and each that names only what is not made, are told as that."""
    with pytest.raises(UsageError, match="',' names no form"):
        select(X86, ",")
    with pytest.raises(UsageError, match=r"'rdtsc\*' is not made: it tells the time"):
        select(X86, "sahf,rdtsc*")
    assert {"sahf", "rdtsc"} <= {*select(X86, "sahf,rdtsc")}


def test_a_corpus_without_a_table() -> None:
    """Where no forms are known, there are mutants of the corpus, and all of them are."""
    one = Case.parse("arm 020081e0 r1=1")
    made = Generator(isa("arm"), (), sources=("mutants",), corpus=[one]).chunk(0, 50)
    assert {case.isa.name for case in made} == {"arm"}
    assert {case.code for case in made} != {one.code}
    with pytest.raises(UsageError, match="no table"):
        Generator(isa("arm"), (), sources=("mutants",))


def test_strategies_refuse() -> None:
    """An unknown instruction set and a pattern that matches nothing are UsageErrors, at once."""
    with pytest.raises(UsageError, match="unknown instruction set"):
        states("pdp11")
    with pytest.raises(UsageError, match="no form of x86_64 matches"):
        instructions("x86_64", forms="frob*")
