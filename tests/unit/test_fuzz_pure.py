"""What of fuzzing needs no executor: comparison in pairs, limits, minimisation, findings and baselines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmtest.compare.limits import LIMITS, limit
from vmtest.compare.pairs import KINDS, Difference, difference
from vmtest.errors import UsageError
from vmtest.forms import forms
from vmtest.fuzz import baseline
from vmtest.fuzz.campaign import Plan, Report
from vmtest.fuzz.finding import FORMAT, Finding, Key, read, write
from vmtest.fuzz.judge import Judge
from vmtest.fuzz.minimise import minimise
from vmtest.fuzz.shard import Chunk
from vmtest.fuzz.survey import Survey
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import isa

X86 = isa("x86_64")


def _case(line: str) -> Case:
    return Case.parse(f"x86_64 {line}")


def _ok(case: Case, **registers: int) -> Outcome:
    return Outcome(status="ok", state=case.isa.state(case.isa.said(case.state) | registers), end=0x10001000)


ADD = _case("4801d8 rax=1")
FAULT = Outcome(status="exception", state=ADD.state, end=ADD.start, vector=14, error=6, address=0x1234)


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (_ok(ADD), _ok(ADD), None),
        (_ok(ADD), Outcome(status="unsupported"), None),
        (_ok(ADD), Outcome(status="died", signal=6), "died"),
        (_ok(ADD), Outcome(status="timeout"), "timeout"),
        (_ok(ADD), FAULT, "exception"),
        (FAULT, FAULT._replace(vector=13, error=None), "exception"),
        (FAULT, FAULT._replace(error=7), None),  # P is not compared
        (FAULT, FAULT._replace(error=4), "error code"),  # W is
        (FAULT, FAULT._replace(error=None), None),  # not told
        (FAULT, FAULT._replace(address=0x1235), "address"),
        (FAULT, FAULT._replace(end=None), None),
        (_ok(ADD), _ok(ADD)._replace(end=0), "end"),
        (_ok(ADD), _ok(ADD)._replace(writes=((0, b"1"),)), "memory"),
        (_ok(ADD), _ok(ADD, rbx=1, rflags=0x203), "registers"),
        (_ok(ADD), _ok(ADD, rflags=0x203), "flags"),
        (_ok(ADD), _ok(ADD, xmm3=1), "vectors"),
        (_ok(ADD), _ok(ADD, mxcsr=0x1FA0), "fp status"),
        (_ok(ADD), _ok(ADD, st0=1), "x87"),
    ],
)
def test_kinds_of_difference(one: Outcome, other: Outcome, kind: str | None) -> None:
    """A difference is called by what comes first, whichever way round, and what is not told is none."""
    for pair in ((one, other), (other, one)):
        found = difference(ADD, *pair)
        assert (found.kind if found else None) == kind
    assert kind is None or kind in KINDS


def test_registers_that_one_does_not_have() -> None:
    """Groups of registers that an executor does not tell are not compared; undefined bits are not either."""
    assert difference(ADD, _ok(ADD), _ok(ADD, st0=1, ymm2h=5), ("x87", "avx")) is None
    multiply = _case("480fafc3")  # imul leaves SF, ZF, AF and PF undefined
    assert difference(multiply, _ok(multiply), _ok(multiply, rflags=0x2D6)) is None
    assert difference(multiply, _ok(multiply), _ok(multiply, rflags=0x203)) == Difference("flags", (("rflags", 1),))


def test_what_a_jump_has_left_out_defines_nothing() -> None:
    """Flags that are undefined before a jump may be so at the end, though what it has jumped over defines them."""
    jump = _case("c1ef0575aa2c00 rdi=0x80")  # shr edi,5; jne, out of the case; sub al,0
    out = Outcome(status="exception", state=jump.isa.state({"rflags": 0x202}), end=jump.start - 0x50, vector=14)
    auxiliary = out._replace(state=jump.isa.state({"rflags": 0x212}))
    carry = out._replace(state=jump.isa.state({"rflags": 0x203}))
    assert difference(jump, out, auxiliary) is None
    assert difference(jump, out, carry) == Difference("flags", (("rflags", 1),))
    failed = _case("11fcd15000f7e37500")  # adc; rcl, which fails; mul, jne: these have not run
    at = Outcome(status="exception", state=failed.isa.state({"rflags": 0x202}), end=failed.start + 2, vector=14)
    zero = at._replace(state=failed.isa.state({"rflags": 0x242}))
    assert difference(failed, at, zero) == Difference("flags", (("rflags", 0x40),))
    again = _case("11fcd15000f7e375f6")  # unless it was there a second time
    assert difference(again, at._replace(end=again.start + 2), zero._replace(end=again.start + 2)) is None
    first = _case("d1ed1f00ae74dc")  # shr; no instruction; scasb, which defines them all; je, back: it came to neither
    refused = Outcome(status="exception", state=first.isa.state({"rflags": 0x202}), end=first.start + 2, vector=6)
    assert difference(first, refused, refused._replace(state=first.isa.state({"rflags": 0x212}))) is None
    assert difference(first, refused, refused._replace(state=first.isa.state({"rflags": 0x203}))) is not None
    straight = replace(jump, code=bytes.fromhex("c1ef052c00"))
    assert difference(straight, _ok(straight, rflags=0x202), _ok(straight, rflags=0x212)) is not None


def test_limits_are_for_what_the_manual_demands() -> None:
    """A difference is put down to a known limit only where the other executor did what the manual says."""
    case = _case("0f2801 rcx=0x20000008")  # movaps from an address that is not aligned
    general = Outcome(status="exception", state=case.state, end=case.start, vector=13, error=0)
    found = Difference("exception")
    row = limit(case, found, ("unicorn", "native"), (_ok(case), general))
    assert row is not None
    assert "aligned" in row.what
    assert limit(case, found, ("unicorn", "native"), (general, _ok(case))) is None
    assert limit(case, found, ("kvm", "native"), (_ok(case), general)) is None
    aligned = _case("0f2801 rcx=0x20000010")
    assert limit(aligned, found, ("unicorn", "native"), (_ok(aligned), general)) is None


def _limit(line: str, who: str, mine: dict[str, int], other: dict[str, int]) -> str:
    """What the difference of two outcomes with these registers is put down to, "" where it is to nothing."""
    case = _case(line)
    one, two = _ok(case, **mine), _ok(case, **other)
    found = difference(case, one, two)
    assert found is not None
    row = limit(case, found, (who, "native"), (one, two))
    return row.what if row else ""


@pytest.mark.parametrize(
    ("line", "who", "mine", "other", "what"),
    [
        ("0f58c1", "unicorn", {}, {"mxcsr": 0x1FA0}, "raise all flags"),
        ("0f58c1", "unicorn", {"mxcsr": 0x1FA0}, {}, ""),  # it has one that is not to be raised
        ("d9e5", "unicorn", {"fsw": 0x4700}, {"fsw": 0x500}, ""),  # the condition of FXAM
        ("d9fc", "unicorn", {}, {"fsw": 0x20}, "raise all flags"),
        ("d9fc", "unicorn", {}, {"ftw": 1, "fsw": 0x20}, ""),
        ("d92e", "unicorn", {"fcw": 0x37F}, {"fcw": 0x40}, ""),
        ("d8c1", "unicorn", {"fsw": 0x200}, {"fsw": 0x20}, "C1"),  # fadd
        ("d8c1", "unicorn", {}, {"fsw": 0x220}, "C1"),
        ("d8c1", "unicorn", {"fsw": 4}, {"fsw": 1}, ""),
        ("df000f2fd3", "unicorn", {"fsw": 0x200}, {"mxcsr": 0x1F82}, "C1"),  # fild; comiss: two limits
        ("d8f1", "unicorn", {"fsw": 4}, {"fsw": 1}, "ZE"),  # fdiv
        ("d9ee", "qemu", {"fsw": 0x200}, {}, "C1"),  # fldz
        ("d9e5", "unicorn", {"fsw": 0x200}, {}, ""),  # the sign of FXAM
        ("0f381cc1", "unicorn", {"fsw": 0x1000}, {"ftw": 0xFF}, "SSSE3"),  # pabsb
        ("0feec1", "unicorn", {"fsw": 0x1000}, {"ftw": 0xFF}, ""),
        ("0f58c1", "qemu", {}, {"mxcsr": 0x1F82}, "raise DE"),
        ("0f58c1", "qemu", {}, {"mxcsr": 0x1FA2}, ""),
        ("d9fc", "qemu", {}, {"ftw": 2}, ""),
        ("0feec1", "qemu", {}, {"st0": 0xFFFF << 64}, "bits 79:64"),  # pmaxsw
        ("0feec1", "qemu", {"st0": 0xFFFF << 64}, {}, ""),
        ("0feec1", "qemu", {"st0": 1}, {"st0": 0xFFFF << 64}, ""),
        ("d9f8", "qemu", {}, {"st0": 0xFFFF << 64}, ""),  # fprem is not MMX
        ("d9c0", "qemu", {}, {"fsw": 0x41, "st7": 1}, "stack is full"),
        ("d9c0", "qemu", {"fsw": 0x41}, {"fsw": 0x41, "st7": 1}, ""),
        ("480fafc30f98c3439f", "unicorn", {"rbx": 1}, {}, "undefined"),  # imul; sets bl; lahf
        ("480fafc30f98c3439f", "unicorn", {"rbx": 1, "rsp": 1}, {}, ""),
        ("480fafc375004889c3", "unicorn", {"rbx": 1}, {}, "undefined"),  # imul; jne; mov rbx, rax
        ("480fafc375004889c3", "unicorn", {"rcx": 1}, {}, ""),
    ],
)
def test_limits_are_narrow(line: str, who: str, mine: dict[str, int], other: dict[str, int], what: str) -> None:
    """A limit is for the registers and bits that its text is of, and for the one of the two that lacks them."""
    said = _limit(line, who, mine, other)
    assert what in said
    assert bool(said) == bool(what)


def test_limits_never_hide_a_death() -> None:
    """No limit is for a worker that has died, and of what is not over in time only loops are put down to one."""
    assert [row.what for row in LIMITS if {"died", "timeout"} & set(row.kinds)] == [
        "how far a long loop has come in its time"
    ]
    late = Outcome(status="timeout")
    for line, is_known in (("ebfe", True), ("eb00", False), ("4801d8", False), ("480fafc375009c", False)):
        case = _case(line)
        row = limit(case, Difference("timeout"), ("unicorn", "native"), (late, _ok(case)))
        assert bool(row) == is_known, line


def test_the_error_code_of_what_is_read_and_written() -> None:
    """That QEMU tells a write as a read is for operands that are both, and for that direction."""
    for line, mine, other, is_known in (
        ("0100", 4, 6, True),  # add [rax], eax
        ("0100", 6, 4, False),
        ("8900", 4, 6, False),  # mov [rax], eax
    ):
        case = _case(line)
        one, two = (FAULT._replace(error=error) for error in (mine, other))
        assert bool(limit(case, Difference("error code"), ("qemu", "native"), (one, two))) == is_known, line


def test_limits_are_for_their_instruction_set() -> None:
    """A limit of one instruction set says nothing of another one, whose exceptions have other numbers."""
    amo = Case.parse("riscv64 2f281f43 x30=0x20001ffe")  # amoor.w, not aligned and over the edge of the window
    fault = Outcome(status="exception", state=amo.state, end=amo.start, vector=13)
    assert limit(amo, Difference("exception"), ("unicorn", "qemu"), (_ok(amo), fault)) is None
    illegal = Outcome(status="exception", state=amo.state, end=amo.start, vector=2)
    row = limit(amo, Difference("end"), ("unicorn", "qemu"), (illegal._replace(end=amo.start + 4), illegal))
    assert row is not None
    assert "4 bytes further" in row.what
    assert limit(amo, Difference("end"), ("unicorn", "qemu"), (illegal._replace(end=amo.start + 2), illegal)) is None
    assert limit(ADD, Difference("end"), ("unicorn", "native"), (_ok(ADD), illegal)) is None
    sd = Case.parse("riscv64 23b0a100 x3=0x20001ffe")
    partly = Outcome(status="exception", state=sd.state, end=sd.start, vector=15, address=0x20002000)
    for kind in ("address", "memory"):
        assert limit(sd, Difference(kind), ("unicorn", "qemu:/q"), (partly, partly)) is not None
        assert limit(sd, Difference(kind), ("qemu", "qemu:/q"), (partly, partly)) is None


def test_the_smallest_case() -> None:
    """Code, registers, memory and values that do not matter go, and the same comes of it every time."""
    big = _case(
        "f2264c01d8 rax=0xdeadbeef rbx=0x1234567890abcdef rcx=7 xmm4=0x99 r11=0xff00 [0x10]=0011223344 [0x200]=ff"
    )

    def same(several: Sequence[Case]) -> list[bool]:
        known = forms("x86_64")
        return [
            [one.form for one in known.decode(case.code)] == ["add_rm64_r64"]
            and bool(case.isa.values(case.state)["rbx"] & 0x400)
            and any(0x44 in data for _, data in case.memory)
            for case in several
        ]

    small = minimise(big, same)
    assert str(small) == "x86_64 4c0100 rbx=0x400 [0x14]=44"
    assert minimise(big, same) == small
    assert minimise(small, same) == small


@pytest.mark.parametrize("isa_name", ["x86_64", "x86_32", "aarch64", "arm"])
def test_the_smallest_case_can_be_written(isa_name: str) -> None:
    """No case that is tried on the way has bits that its line could not say: those that are no state of a program's."""
    row, tried = isa(isa_name), list[Case]()
    full = row.state({register.name: (1 << 8 * register.size) - 1 for register in row.registers})

    def same(several: Sequence[Case]) -> list[bool]:
        tried.extend(several)
        # None with a register that is as it is by default: so each one's value is made simpler.
        return [len(tried) % 7 == 0 and len(row.said(case.state)) == len(row.said(full)) for case in several]

    minimise(Case(isa=row, code=b"\x90\x90\x90\x90", state=full), same)
    assert len(tried) > 100
    assert [case for case in tried if Case.parse(str(case)).state != case.state] == []


def test_who_has_no_vote() -> None:
    """An executor has no vote on an instruction that it does not say it has, also where it agrees with another."""
    case = _case("c5fb58c1")  # vaddsd
    names = ["native", "qemu", "unicorn"]
    fleet = SimpleNamespace(
        isa=case.isa, names=names, blind=dict.fromkeys(names, frozenset()), labels={name: name for name in names}
    )
    has = {"native": frozenset({"AVX"}), "qemu": frozenset({"AVX"}), "unicorn": frozenset[str]()}
    judge = Judge(fleet, Survey(names=(), features=has, excluded={}))  # type: ignore[arg-type]
    refused = Outcome(status="exception", state=case.state, end=case.start, vector=6)
    verdict = judge.judge(case, {"native": refused, "qemu": _ok(case), "unicorn": refused})
    assert [(key.who, key.against) for key in verdict.keys] == [("qemu", "native")]
    assert (verdict.voting, verdict.unclaimed) == (["native", "qemu"], set())
    differs = judge.judge(case, {"native": _ok(case), "qemu": refused, "unicorn": refused})
    assert [key.who for key in differs.keys] == ["qemu"]
    assert (differs.voting, differs.unclaimed) == (["native", "qemu"], {"unicorn"})


def _finding(form: str = "add_rm64_r64", chunk: int = 0) -> Finding:
    return Finding(
        key=Key("x86_64", form, "flags", "unicorn", "native"),
        case=ADD,
        first=ADD,
        text="add rax,rbx",
        verdict="unicorn stands alone: rflags",
        rule="",
        said={},
        executors={"unicorn": "Unicorn 2", "native": "a CPU"},
        chunk=chunk,
    )


def test_findings_as_files(tmp_path: Path) -> None:
    """A finding is read as it was written, from a file whose name says what it is, one a cluster."""
    path = write(tmp_path / "new", _finding())
    assert path.name.startswith("x86_64-unicorn-native-flags-add-rm64-r64-")
    assert read(path) == _finding()
    assert write(tmp_path / "new", _finding().seen_again(3)) == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 99}, f"a finding of format 99, and this vmtest reads {FORMAT}"),
        ({"case": "x86_64 9"}, "not bytes in hex"),
        ({"key": {"isa": "x86_64"}}, "lacks something"),
        ({"key": {"isa": "aarch64", "form": "a", "kind": "flags", "who": "a", "against": "b"}}, "contradicts itself"),
        ({"executors": []}, "contradicts itself"),
        ({"seen": "often"}, "nonsense"),
        ({"said": 5}, "nonsense"),
    ],
)
def test_findings_edited_into_nonsense(tmp_path: Path, change: dict[str, object], told: str) -> None:
    """What somebody has made of a finding's file is one error that names the file and what is wrong with it."""
    path = tmp_path / "finding.json"
    path.write_text(json.dumps(_finding().as_dict() | change))
    with pytest.raises(UsageError, match=told) as caught:
        read(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", '{"a": 1}'])
def test_files_that_are_no_findings(tmp_path: Path, text: str) -> None:
    """What is no finding at all is one error."""
    path = tmp_path / "finding.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"finding\.json"):
        read(path)


def test_baselines(tmp_path: Path) -> None:
    """A baseline holds what was known and what was found, and is read as it was written."""
    path = tmp_path / "known.jsonl"
    other = Key("x86_64", "b", "flags", "kvm", "native")
    baseline.save(path, [replace(_finding(), key=other), _finding()])
    assert baseline.load(path) == {other, _finding().key}
    first = path.read_text()
    baseline.save(path, [replace(_finding(), case=_case("4801c0"))])
    assert path.read_text() == first
    assert [one.name for one in tmp_path.iterdir()] == ["known.jsonl"]


def test_baselines_of_several_at_once(tmp_path: Path) -> None:
    """What several write at the same time is all there, whatever each has read before."""
    path = tmp_path / "known.jsonl"
    found = [_finding(f"form_{number}") for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda finding: baseline.save(path, [finding]), found))
    assert baseline.load(path) == {finding.key for finding in found}


def test_baselines_that_cannot_be_written(tmp_path: Path) -> None:
    """That there is no directory for it is known before a run; a new one holds nothing."""
    with pytest.raises(UsageError, match="No such file or directory"):
        baseline.known(tmp_path / "none" / "known.jsonl", True)
    assert baseline.known(tmp_path / "known.jsonl", True) == frozenset()
    with pytest.raises(UsageError, match="cannot be read"):
        baseline.known(tmp_path / "known.jsonl", False)


def test_chunks_add_up() -> None:
    """Of a cluster that several chunks have, the first one's finding is kept, and the cases of all are counted."""
    key = _finding().key
    chunks = [Chunk(number=0)]
    chunks.append(Chunk(number=1, findings=[replace(_finding(chunk=1), seen=0)], clusters=Counter({key: 2})))
    chunks += [Chunk(number=number, clusters=Counter({key: 1})) for number in (2, 3)]
    chunks.append(Chunk(number=4, findings=[replace(_finding(chunk=4), seen=0)], clusters=Counter({key: 1})))
    plan = Plan(isa="x86_64", executors=("unicorn", "native"), names=(), seed=1)
    report = Report(plan=plan, survey=Survey(names=(), features={}, excluded={}), executors={})
    new = [finding for chunk in chunks for finding in report.add(chunk)]
    assert [(finding.chunk, finding.key) for finding in new] == [(1, key)]
    assert (report.findings[key].seen, report.findings[key].chunk) == (5, 1)


def test_plans_that_compare_nothing() -> None:
    """A plan has two executors of which one runs the code, and numbers above 0."""
    plan = {"isa": "x86_64", "executors": ("unicorn", "native"), "names": (), "seed": 1}
    for wrong, told in (
        ({"executors": ("unicorn", "unicorn")}, "nothing to compare unicorn"),
        ({"executors": ("capstone", "iced")}, "capstone and iced only decode"),
        ({"cases": 0}, "cases 0: it must be a number above 0"),
        ({"seconds": -1.0}, "seconds -1: it must be"),
        ({"length": 0}, "length 0: it must be"),
    ):
        with pytest.raises(UsageError, match=told):
            Plan(**{**plan, **wrong})  # type: ignore[arg-type]
    Plan(**plan)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"vmtest-baseline": 99}\n', "a baseline of format 99"),
        ("", "is no baseline"),
        ("nonsense", "is no baseline"),
        ('{"vmtest-baseline": 1}\n{"isa": 1}\n', ":2 is no line of a baseline"),
        (
            '{"vmtest-baseline": 1}\n\n{"isa": "a", "form": "b", "kind": "c", "who": "d", "against": "e"}\n',
            ":3: 'c' is no kind",
        ),
        ('{"vmtest-baseline": 1}\n[]\n', ":2 is no line of a baseline"),
    ],
)
def test_baselines_that_are_none(tmp_path: Path, text: str, told: str) -> None:
    """Another version, and what is no baseline, is one error."""
    path = tmp_path / "known.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=told):
        baseline.load(path)
    with pytest.raises(UsageError, match="cannot be read"):
        baseline.load(tmp_path / "none")
