"""What must not be taken from a run: by known limits on the executors that have them, by the survey."""

from __future__ import annotations

import pytest

from vmtest.executors import fleet
from vmtest.fuzz.campaign import Plan, look_at
from vmtest.fuzz.survey import survey
from vmtest.model.case import Case
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
