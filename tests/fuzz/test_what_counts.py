"""What must not be taken from a run: by known limits on the executors that have them, by the survey."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from vmtest.executors import Fleet, fleet
from vmtest.fuzz.campaign import Plan, look_at
from vmtest.fuzz.survey import survey
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import isa


@pytest.mark.parametrize(
    ("line", "cluster"),
    [
        ("d9e5 ftw=0xf st0=0xffff2a4337a2a441e5f1", ("fxam", "fp status")),
        ("d92e rsi=0x20000000 [0]=0080", ("fldcw_m2byte", "fp status")),
        ("d9f8 ftw=0xf st0=0x800000007fa00000 st1=0xfad84f00000000000000", ("fprem", "x87")),
        ("f066430f1c2da6f6ff0f", ("(bad) lock", "exception")),
        ("480fafc30f98c3439f rbx=1", ("lahf", "registers")),
        ("c4e2f8f3db9f rbx=1", ("vex_blsi_r64_rm64", "flags")),
    ],
)
def test_limits_leave_defects(line: str, cluster: tuple[str, str]) -> None:
    """A defect of Unicorn that is near to a known limit is a cluster, and nothing of it is put down to the limit."""
    plan = Plan(isa="x86_64", executors=("unicorn", "native"), names=("nopd",), seed=0)
    report = look_at(plan, [Case.parse(f"x86_64 {line}")])
    assert [(key.form, key.kind) for key in report.findings] == [cluster]
    assert not report.limits


def test_forms_that_are_seldom_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that nothing has run in the first round of tries is made where something runs it in the second."""
    names = ["cmpxchg16b_m128", "enterq_imm16_imm8"]
    with fleet(("unicorn", "native"), isa("x86_64")) as executors:
        monkeypatch.setattr("vmtest.fuzz.survey.TRIES", (0, 40))
        assert survey(executors, names).names == names
        monkeypatch.setattr("vmtest.fuzz.survey.TRIES", (0, 0))
        found = survey(executors, names)
    assert not found.names
    assert found.excluded == {"fewer than two of them can run it": 2}


def test_a_host_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that one executor was not done with in its time, and is done with when it is run again, is no difference;
    one that never comes to its end there is.
    """
    really, asked = Fleet.run, list[Collection[str] | None]()

    def stalls(self: Fleet, cases: Sequence[Case], names: Collection[str] | None = None) -> dict[str, list[Outcome]]:
        outcomes = really(self, cases, names)
        if any(case.code == b"\xff\xc0" for case in cases) and names is None:
            outcomes["native"][0] = Outcome(status="timeout")
            asked.append(names)
        return outcomes

    monkeypatch.setattr(Fleet, "run", stalls)
    plan = Plan(isa="x86_64", executors=("unicorn", "native"), names=("nopd",), seed=0)
    report = look_at(plan, [Case.parse("x86_64 ffc0"), Case.parse("x86_64 ebfe")])
    assert len(asked) == 1
    assert not report.findings
    assert report.statuses == {
        ("native", "ok"): 1,
        ("unicorn", "ok"): 1,
        ("native", "timeout"): 1,
        ("unicorn", "timeout"): 1,
    }
