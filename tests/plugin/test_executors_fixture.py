"""The fixture ``executors``."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

RUNS = """
def test_run(executors):
    outcomes = executors.run("x86_64 4801d8 rax=1 rbx=2", "unicorn,native")
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"unicorn": "ok", "native": "ok"}

def test_same(executors):
    executors.assert_same("x86_64 4801d8 rax=1 rbx=2", ["unicorn", "native"])

def test_other(executors):
    executors.assert_same("x86_64 c4e2f8f3db rbx=1", "unicorn,native")
"""
FUZZES = """
def test_no_new_differences(executors):
    executors.fuzz(names="unicorn,native", cases=1000, seed=1, forms="vex_blsi*", baseline="known.jsonl")
"""


def test_cases_in_a_test(pytester: pytest.Pytester) -> None:
    """A case runs on the executors that are named; where they differ the test fails with the table."""
    pytester.makepyfile(RUNS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*Divergence: x86_64 c4e2f8f3db rbx=0x1", "*!= rflags*"])


def test_nothing_to_compare(pytester: pytest.Pytester) -> None:
    """Where fewer than two ran a case that is an error, and no test that has passed."""
    pytester.makepyfile(
        """
        import pytest
        from vmtest.errors import UsageError

        @pytest.mark.parametrize(
            ("case", "names"),
            [("ffc0", "unicorn"), ("ffc0", "unicorn,unicorn"), ("0f05", "native,qemu"), ("ffc0", "capstone,iced")],
        )
        def test(executors, case, names):
            with pytest.raises(UsageError, match="nothing was compared"):
                executors.assert_same(f"x86_64 {case}", names)

        def test_decoder(executors):
            executors.assert_same("x86_64 ffc0", "native,capstone")
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=5)


def test_only_new_clusters_fail(pytester: pytest.Pytester) -> None:
    """Without a baseline that is said; --vm-accept writes one; with it the test passes; what it does not hold fails,
    and the report says how many cases and clusters there were.
    """
    pytester.makepyfile(FUZZES)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*UsageError: the baseline *known.jsonl cannot be read*", "*--vm-accept*"])
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "--vm-accept").assert_outcomes(passed=1)
    known = pytester.path / "known.jsonl"
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
    head, *rest = known.read_text().splitlines()
    known.write_text("\n".join([head, *rest[1:]]) + "\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--junitxml=report.xml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Divergence*", "*1 new clusters*"])
    report = ElementTree.parse(pytester.path / "report.xml")  # our own
    properties = {p.get("name"): p.get("value") for p in report.iter("property")}
    assert (properties["vm_fuzz_cases"], properties["vm_fuzz_new"]) == ("1000", "1")


INTERRUPTED = """
import signal
from vmtest.fuzz.shard import Shard

# Where Python's compiler gives an instruction no line, as it does to a jump at the end of some loops.
Shard.run.__code__ = Shard.run.__code__.replace(co_linetable=b"")

def test_long(executors):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1)
    executors.fuzz(names="unicorn,native", seconds=120, seed=1, forms="vex_blsi*")

def test_next():
    pass
"""


def test_interrupted(pytester: pytest.Pytester) -> None:
    """Ctrl-C while a test fuzzes ends the session, as in any other test, wherever it comes."""
    pytester.makepyfile(INTERRUPTED)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=60)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes()
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])


SEVERAL = """
import pytest

@pytest.mark.parametrize("forms", ["vex_blsi_r32_rm32", "vex_blsi_r64_rm64", "*cmpxchg*", "bsf_*"])
def test_no_new_differences(executors, forms):
    executors.fuzz(names="unicorn,native", cases=1000, seed=1, forms=forms, baseline="known.jsonl")
"""


def test_accepted_by_several(pytester: pytest.Pytester) -> None:
    """Tests that run at the same time may accept into one baseline."""
    pytester.makepyfile(SEVERAL)
    args = ("-p", "no:cacheprovider", "-n", "2")
    pytester.runpytest_subprocess(*args, "--vm-accept").assert_outcomes(passed=4)
    pytester.runpytest_subprocess(*args).assert_outcomes(passed=4)
    assert len((pytester.path / "known.jsonl").read_text().splitlines()) > 3
