"""What must not be taken from a run: by known limits on the executors that have them, by the survey."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vmtest.executors import Executor, fleet
from vmtest.fuzz.campaign import Plan, look_at
from vmtest.fuzz.judge import Judge
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


def test_beyond_a_limit() -> None:
    """What differs besides what a limit explains is a cluster: PSIGNW sets no bits 79:64 in Unicorn, and with REX.R
    it writes over MXCSR (Intel SDM, volume 1, section 9.5.2; volume 2, PSIGNW).
    """
    plan = Plan(isa="x86_64", executors=("unicorn", "native"), names=("nopd",), seed=0)
    report = look_at(plan, [Case.parse("x86_64 440f3809e1")])
    assert [(key.form, key.kind) for key in report.findings] == [("psignw_mm_mmm64", "fp status")]
    assert list(report.limits) == ["unicorn: it does not set bits 79:64 of a register that MMX writes"]


def test_deaths_of_all() -> None:
    """Of executors that die of a case each is a cluster, whether or not another one can run it: the one that is held
    against is one that came to its end.
    """
    case, dies = Case.parse("x86_64 f00fb3cc"), Outcome(status="died", signal=6)
    ends = Outcome(status="ok", state=case.state, end=case.end)
    with fleet(("unicorn", "kvm", "native"), isa("x86_64")) as several:
        judge = Judge(several, survey(several, ()))
        for native in (Outcome(status="unsupported"), dies):
            keys = judge.judge(case, {"unicorn": dies, "kvm": dies, "native": native}).keys
            assert {key.who for key in keys if key.kind == "died"} >= {"unicorn", "kvm"}
        (key,) = judge.judge(case, {"unicorn": ends, "kvm": ends, "native": dies}).keys
    assert (key.who, key.against, key.kind) == ("native", "kvm", "died")


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
    really, asked = Executor.run, list[str]()

    def stalls(self: Executor, cases: Sequence[Case]) -> list[Outcome]:
        outcomes = really(self, cases)
        if cases[0].code == b"\xff\xc0" and self.name == "native":
            asked.append(self.name)
            if len(asked) == 1:
                outcomes[0] = Outcome(status="timeout")
        return outcomes

    monkeypatch.setattr(Executor, "run", stalls)
    plan = Plan(isa="x86_64", executors=("unicorn", "native"), names=("nopd",), seed=0)
    report = look_at(plan, [Case.parse("x86_64 ffc0"), Case.parse("x86_64 ebfe")])
    assert len(asked) == 2
    assert not report.findings
    assert report.statuses == {
        ("native", "ok"): 1,
        ("unicorn", "ok"): 1,
        ("native", "timeout"): 1,
        ("unicorn", "timeout"): 1,
    }
