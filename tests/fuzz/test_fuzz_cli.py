"""The commands ``vmtest fuzz insn`` and ``vmtest replay``, on real executors."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vmtest.executors import fleet
from vmtest.fuzz.campaign import Plan, look_at, run
from vmtest.fuzz.judge import Judge
from vmtest.fuzz.survey import survey
from vmtest.model.case import Case
from vmtest.model.isa import isa

VMTEST = str(Path(sys.executable).with_name("vmtest"))
PAIR = ("--executors", "unicorn,native")
BLSI = (*PAIR, "--forms", "vex_blsi*", "--seed", "1", "--cases", "1000")


def _vmtest(*args: str, code: int = 0, where: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([VMTEST, *args], capture_output=True, text=True, timeout=300, check=False, cwd=where)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


def test_a_known_bug_is_found(tmp_path: Path) -> None:
    """Fuzzing BLSI finds that Unicorn sets CF wrongly: one cluster a form, the smallest case, the manual's rule; the
    exit code is 1, and the finding can be replayed.
    """
    said = _vmtest("fuzz", "insn", *BLSI, code=1, where=tmp_path).stdout
    assert "unicorn/native" in said
    assert "new clusters, a file each in findings" in said
    files = sorted((tmp_path / "findings").iterdir())
    found = [json.loads(file.read_text()) for file in files]
    flags = {finding["key"]["form"]: finding for finding in found if finding["key"]["kind"] == "flags"}
    assert set(flags) == {"vex_blsi_r32_rm32", "vex_blsi_r64_rm64"}
    assert "CF is set where the source is not 0" in flags["vex_blsi_r64_rm64"]["rule"]
    assert len(flags["vex_blsi_r64_rm64"]["case"].split()) <= 4
    again = _vmtest("replay", *map(str, files), code=1).stdout
    assert f"{len(files)} of {len(files)} are still there" in again
    decoded = _vmtest("replay", str(tmp_path / "findings"), "--executors", "native,iced", code=2)
    assert decoded.stdout.endswith(f"\n{len(files)} could not be compared\n")  # a decoder runs nothing
    alone = _vmtest("replay", str(files[0]), "--executors", "native", code=2)
    assert "it cannot be told whether it is still there: 1 of these can run it" in alone.stdout
    assert alone.stdout.endswith("\n1 could not be compared\n")


def test_what_is_still_there(tmp_path: Path) -> None:
    """A replayed finding is there where its own cluster is, on other executors any of its form and kind; what else
    differs is told apart, and so is a known limit. A file that is no finding does not keep the others from being run.
    """
    _vmtest("fuzz", "insn", *BLSI, code=1, where=tmp_path)
    found = [json.loads(file.read_text()) for file in (tmp_path / "findings").iterdir()]
    flags = next(finding for finding in found if finding["key"]["kind"] == "flags")

    def replayed(name: str, changed: dict[str, object], *args: str, code: int) -> str:
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(flags | changed))
        return _vmtest("replay", str(file), *args, code=code).stdout

    assert "1 of 1 are still there" in replayed("as-it-was", {}, code=1)
    other = replayed("other-kind", {"key": flags["key"] | {"kind": "memory"}}, code=0)
    assert "it is gone" in other
    assert "other differences remain: x86_64: unicorn/native: flags: vex_blsi" in other
    elsewhere = {"key": flags["key"] | {"who": "qemu 1.0"}}
    assert "1 of 1 are still there" in replayed("other-version", elsewhere, code=1)
    movaps = {"case": "x86_64 0f2801 rcx=0x20000008", "key": flags["key"] | {"form": "movaps_xmm_xmmm128"}}
    limit = replayed("limit", movaps, code=0)
    assert "put down to a known limit: it does not check that operands of SSE are aligned" in limit
    (tmp_path / "bad.json").write_text("{}")
    said = _vmtest("replay", str(tmp_path), code=2)
    assert "2 of 4 are still there" in said.stdout
    assert "bad.json: this is no finding" in said.stderr


def test_executors_are_not_held_to_what_they_do_not_claim(tmp_path: Path) -> None:
    """A difference does not count, and is counted as that, where the case has run what one of the two does not claim
    to have; an instruction that was not reached, or that both refuse, changes nothing.
    """
    plan = Plan(
        isa="x86_64",
        executors=("unicorn", "native"),
        names=("vex_blsi_r64_rm64", "pconfig", "rdseed_r64"),
        seed=1,
        length=2,
    )
    blsi = "x86_64 c4e2f8f3db"
    unknown = "0f01c5"  # pconfig
    differ = look_at(plan, [Case.parse(f"{blsi} rbx=1"), Case.parse(f"{blsi}{unknown} rbx=1")])
    assert ({key.form for key in differ.findings}, differ.unclaimed) == ({"vex_blsi_r64_rm64"}, 0)
    assert [finding.seen for finding in differ.findings.values()] == [2]
    ran = look_at(plan, [Case.parse(f"{blsi}0fc7f9 rbx=1")])  # rdseed, which Unicorn runs and does not claim
    assert (ran.unclaimed, ran.findings) == (1, {})


def test_who_is_not_held_to_it_has_no_vote(tmp_path: Path) -> None:
    """Of an AVX instruction that QEMU 7.2 refuses and the CPU runs, Unicorn, which has no AVX, makes no majority."""
    names = ("vex_vaddsd_xmm_xmm_xmmm64",)
    plan = Plan(isa="x86_64", executors=("unicorn", "native", "qemu"), names=names, seed=1)
    report = look_at(plan, [Case.parse("x86_64 c5ff58c1")])  # VEX.L is ignored
    assert [(key.who, finding.verdict) for key, finding in report.findings.items()] == [
        ("qemu", "they differ: exception")
    ]


def test_a_death_of_what_no_other_can_run() -> None:
    """Unicorn dies of a case that KVM's emulator cannot run: that is a cluster, though there is nothing to compare."""
    plan = Plan(isa="x86_64", executors=("unicorn", "kvm"), names=("nopd",), seed=0)
    report = look_at(plan, [Case.parse("x86_64 660f3a60f200 rax=0x80000000 rdx=0x1")])  # pcmpestrm
    assert [(key.kind, key.who) for key in report.findings] == [("died", "unicorn")]
    assert (report.alone, report.compared) == (1, 0)


def test_the_number_of_cases_is_exact() -> None:
    """--cases N runs N of them, whatever a chunk holds, and the same ones as a longer run begins with."""
    short, long = (
        run(Plan(isa="x86_64", executors=("unicorn", "native"), names=("sahf",), seed=3, cases=n)) for n in (1030, 2000)
    )
    assert (short.cases, long.cases) == (1030, 2000)
    assert {*short.findings} <= {*long.findings}


def test_the_form_is_of_what_was_run() -> None:
    """Of several instructions a cluster is named by the last one that was begun, and not by those behind it."""
    refused, behind = "f7cb00000000", "c4e2f8f3db"  # a second encoding of TEST, which Unicorn has not; BLSI
    names = ("test_rm32_imm32_f7r1", "nopd", "vex_blsi_r64_rm64")
    with fleet(("unicorn", "native"), isa("x86_64")) as several:
        judge = Judge(several, survey(several, names))
        for code, form in (
            (refused + behind, "test_rm32_imm32_f7r1"),
            ("90" + refused + behind, "... ; test_rm32_imm32_f7r1"),
            ("90" + behind, "... ; vex_blsi_r64_rm64"),
        ):
            case = Case.parse(f"x86_64 {code} rbx=1")
            outcomes = {name: outcome for name, (outcome,) in several.run([case]).items()}
            assert [key.form for key in judge.judge(case, outcomes).keys] == [form]


@pytest.mark.parametrize("length", ["1", "4"])
def test_the_same_seed_finds_the_same(tmp_path: Path, length: str) -> None:
    """One seed gives the same clusters with the same smallest cases, as often, by one process or two."""
    found, seen = list[dict[str, str]](), list[dict[str, int]]()
    for jobs in ("1", "2"):
        forms = ("--forms", "*cmpxchg*,BMI1,*sahf*", "--length", length)
        args = (*PAIR, "--seed", "3", "--cases", "4096", *forms, "-j", jobs)
        said = _vmtest("fuzz", "insn", *args, "--json", "--findings", str(tmp_path / jobs), code=1).stdout
        *_, end = map(json.loads, said.splitlines())
        assert end["event"] == "end"
        assert end["cases"] == end["compared"] + end["alone"] == 4096
        for name in ("unicorn", "native"):
            assert sum(end["statuses"][name].values()) == 4096
        found.append({file.name: json.loads(file.read_text())["case"] for file in (tmp_path / jobs).iterdir()})
        assert {cluster["case"] for cluster in end["clusters"]} == set(found[-1].values())
        seen.append({cluster["case"]: cluster["seen"] for cluster in end["clusters"]})
    assert found[0] == found[1]
    assert seen[0] == seen[1]
    assert found[0]


def test_baseline(tmp_path: Path) -> None:
    """--accept writes a baseline and is no failure; with it the same run finds nothing new, and says so with 0; a
    cluster that it does not hold fails the run.
    """
    known = str(tmp_path / "known.jsonl")
    args = ("fuzz", "insn", *BLSI, "--baseline", known)
    _vmtest(*args, "--accept", where=tmp_path)
    said = _vmtest(*args, where=tmp_path).stdout
    assert "no new cluster: all are in the baseline" in said
    head, first, *rest = Path(known).read_text().splitlines()
    Path(known).write_text("\n".join([head, *rest]) + "\n")
    said = _vmtest(*args, code=1, where=tmp_path).stdout
    assert json.loads(first)["form"] in said
    assert "1 new clusters" in said
    _vmtest(*args, "--accept", "--seed", "2", where=tmp_path)
    assert {*rest} < {*Path(known).read_text().splitlines()}  # with their cases


def test_every_death_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases that kill Unicorn are clusters; the run goes on, all cases are counted, and no process is left."""
    corpus = tmp_path / "corpus"
    corpus.write_text("# aborts\nx86_64 f00fb3cc\n\nx86_64 660f3a61fa35 rdx=0x80000000\n")
    args = ("fuzz", "insn", *PAIR, "--sources", "mutants", "--corpus", str(corpus), "--seed", "1", "--cases", "2048")
    monkeypatch.setenv("VMTEST_TEST_MARK", str(tmp_path))
    said = _vmtest(*args, "--json", "--findings", str(tmp_path / "findings"), code=1).stdout
    monkeypatch.delenv("VMTEST_TEST_MARK")
    begin, *_, end = map(json.loads, said.splitlines())
    assert (begin["event"], begin["isa"], begin["seed"], begin["cases"]) == ("begin", "x86_64", 1, 2048)
    assert {*begin["executors"]} == {"unicorn", "native"}
    assert (begin["jobs"], begin["seconds"], begin["sources"]) == (1, None, ["mutants"])
    assert begin["forms"] == end["forms"]["made"] > 0
    assert begin["excluded"] == end["excluded"]
    assert end["deaths"]["unicorn"] >= end["statuses"]["unicorn"]["died"] > 0
    assert sum(end["statuses"]["unicorn"].values()) == 2048
    assert "died" in {cluster["kind"] for cluster in end["clusters"]}
    assert not _marked(str(tmp_path))


def _marked(mark: str) -> list[psutil.Process]:
    """The processes that have inherited the mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("VMTEST_TEST_MARK") == mark:
                found.append(process)
    return found


def test_decoders_and_limits(tmp_path: Path) -> None:
    """A decoder that contradicts the CPU is a cluster; what follows from a known limit of Unicorn is counted apart."""

    def clusters(*args: str) -> tuple[set[tuple[str, str, str]], dict[str, int]]:
        common = ("--seed", "1", "--cases", "2048", "--findings", str(tmp_path), "--json")
        *_, end = map(json.loads, _vmtest("fuzz", "insn", *args, *common, code=1).stdout.splitlines())
        return {(one["form"], one["kind"], one["who"]) for one in end["clusters"]}, end["limits"]

    found, _ = clusters("--executors", "native,capstone", "--forms", "lfence_*")
    assert ("lfence_e9", "decoding", "capstone") in found
    found, limits = clusters(*PAIR, "--forms", "movaps_xmm_xmmm128")
    assert "movaps_xmm_xmmm128" not in {form for form, _, _ in found}
    assert limits["unicorn: it does not check that operands of SSE are aligned"] > 0


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupted(tmp_path: Path, jobs: str) -> None:
    """Ctrl-C, which all processes of the terminal hear, ends a run soon: what was found until then is told, and that it
    was interrupted, by the parent alone. Killed, it leaves no process.
    """
    args = [VMTEST, "fuzz", "insn", *PAIR, "--time", "300", "--json", "-j", jobs, "--findings", str(tmp_path)]
    for number, code in ((signal.SIGINT, 1), (signal.SIGKILL, -9)):
        with _begun(args, "finding") as running:
            assert running.stdout is not None
            children = psutil.Process(running.pid).children(recursive=True)
            assert children
            (os.killpg if number == signal.SIGINT else os.kill)(running.pid, number)
            rest = running.stdout.read()
            assert running.wait(15) == code
        if number == signal.SIGINT:
            end = json.loads([line for line in rest.splitlines() if line.startswith("{")][-1])
            assert (end["event"], end["interrupted"]) == ("end", True)
            assert "Traceback" not in rest
        assert not psutil.wait_procs(children, timeout=20)[1]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupted_with_nothing(tmp_path: Path, jobs: str) -> None:
    """A run that Ctrl-C ends before it has found anything says that, and exits with 130, at its very beginning too."""
    forms = ("--forms", "add_rm64_r64,BMI2", "--seed", "1")
    args = [VMTEST, "fuzz", "insn", "--executors", "native,capstone", *forms, "--time", "300", "--json", "-j", jobs]
    with _begun([*args, "--findings", str(tmp_path)], "begin") as running:
        assert running.stdout is not None
        os.killpg(running.pid, signal.SIGINT)
        rest = running.stdout.read()
        assert running.wait(15) == 130
    assert "Traceback" not in rest
    assert json.loads([line for line in rest.splitlines() if line.startswith("{")][-1])["interrupted"] is True


@contextlib.contextmanager
def _begun(args: list[str], event: str) -> Iterator[subprocess.Popen[str]]:
    """A run, in a process group as from a terminal, that has come to its first event of that name."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(args, text=True, process_group=0, **pipes) as running:  # type: ignore[call-overload]
        try:
            for line in running.stdout:
                if line.startswith("{") and json.loads(line)["event"] == event:
                    break
            yield running
        finally:
            running.kill()


def test_a_bug_of_ours_is_no_finding() -> None:
    """What is no error that we know exits with 2, and a traceback: 1 is for what was found."""
    code = "import vmtest.cli; vmtest.cli.COMMANDS['fuzz'] = 'vmtest.nowhere'; vmtest.cli.main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "fuzz"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "No module named 'vmtest.nowhere'" in done.stderr
    assert "this is a bug of vmtest" in done.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fuzz", "insn", "--isa", "pdp11"], "unknown instruction set 'pdp11'"),
        (["fuzz", "insn", "--executors", "unicorn"], "nothing to compare unicorn with"),
        (["fuzz", "insn", "--executors", "unicorn,unicorn"], "nothing to compare unicorn with"),
        (["fuzz", "insn", "--executors", "capstone,iced"], "capstone and iced only decode"),
        (["fuzz", "insn", *PAIR, "--forms", "AVX512F", "-j", "2"], "have what these forms need"),
        (["fuzz", "insn", "--executors", "unicorn,bochs"], "unknown executor 'bochs'"),
        (["fuzz", "insn", "--isa", "aarch64", "--executors", "unicorn,native"], "native does not run aarch64"),
        (["fuzz", "insn", *PAIR, "--forms", "frobnicate"], "no form of x86_64 matches 'frobnicate'"),
        (["fuzz", "insn", *PAIR, "--time", "0"], "--time 0: it must be a number above 0"),
        (["fuzz", "insn", *PAIR, "--cases", "-5"], "--cases -5: it must be a number above 0"),
        (["fuzz", "insn", *PAIR, "--sources", "dice"], "--sources 'dice'"),
        (["fuzz", "insn", *PAIR, "--corpus", "/nonexistent"], "cannot be read"),
        (["fuzz", "insn", *PAIR, "--baseline", "/nonexistent"], "cannot be read"),
        (["fuzz", "insn", *PAIR, "--baseline", "no/such/file", "--accept"], "no/such/file cannot be written"),
        (["fuzz", "insn", *PAIR, "--forms", ","], "',' names no form"),
        (["fuzz", "insn", *PAIR, "--forms", "sahf", "--corpus", "/dev/null"], "a corpus is for mutants"),
        (["fuzz", "insn", *PAIR, "--sources", "bytes", "--corpus", "/dev/null"], "a corpus is for mutants"),
        (["fuzz", "insn", *PAIR, "--accept"], "--accept writes to a baseline"),
        (["fuzz", "insn", *PAIR, "--cases", "10", "--findings", "/dev/null/x"], "cannot be written"),
        (["replay", "/nonexistent"], "cannot be read"),
        (["replay", "/dev/null"], "is not JSON"),
        (["replay", "/proc/self/fd"], "there is no finding in"),
    ],
)
def test_bad_input(args: list[str], told: str, tmp_path: Path) -> None:
    """What cannot be is one error that says what, and exit code 2."""
    said = _vmtest(*args, code=2, where=tmp_path)
    assert told in said.stderr
    assert len([line for line in said.stderr.splitlines() if "error" in line]) == 1


def test_bad_corpus(tmp_path: Path) -> None:
    """A corpus with a line that is no case, or one of another instruction set, is told with its line."""
    corpus = tmp_path / "corpus"
    corpus.write_text("x86_64 90\nx86_64 9\n")
    said = _vmtest("fuzz", "insn", *PAIR, "--corpus", str(corpus), code=2).stderr
    assert f"{corpus}:2: '9' are not bytes in hex" in said
    corpus.write_text("riscv64 13050001\n")
    assert f"{corpus}:1: a case of riscv64" in _vmtest("fuzz", "insn", *PAIR, "--corpus", str(corpus), code=2).stderr
