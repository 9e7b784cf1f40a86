"""The commands ``vmtest fuzz insn`` and ``vmtest replay``, on real executors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

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
    gone = _vmtest("replay", str(tmp_path / "findings"), "--executors", "native,native")
    assert f"0 of {len(files)} are still there" in gone.stdout


def test_the_same_seed_finds_the_same(tmp_path: Path) -> None:
    """One seed gives the same clusters with the same smallest cases, by one process or two."""
    found = []
    for jobs in ("1", "2"):
        args = (*PAIR, "--seed", "3", "--cases", "4096", "--forms", "*cmpxchg*,BMI1,*sahf*", "-j", jobs)
        said = _vmtest("fuzz", "insn", *args, "--json", "--findings", str(tmp_path / jobs), code=1).stdout
        *_, end = map(json.loads, said.splitlines())
        assert end["event"] == "end"
        assert end["cases"] == end["compared"] + end["alone"] == 4096
        for name in ("unicorn", "native"):
            assert sum(end["statuses"][name].values()) == 4096
        found.append({file.name: json.loads(file.read_text())["case"] for file in (tmp_path / jobs).iterdir()})
        assert {cluster["case"] for cluster in end["clusters"]} == set(found[-1].values())
    assert found[0] == found[1]
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


def test_every_death_is_survived(tmp_path: Path) -> None:
    """Cases that kill Unicorn are clusters; the run goes on, all cases are counted, and no process is left."""
    corpus = tmp_path / "corpus"
    corpus.write_text("# aborts\nx86_64 f00fb3cc\n\nx86_64 660f3a61fa35 rdx=0x80000000\n")
    args = ("fuzz", "insn", *PAIR, "--sources", "mutants", "--corpus", str(corpus), "--seed", "1", "--cases", "2048")
    said = _vmtest(*args, "--json", "--findings", str(tmp_path / "findings"), code=1).stdout
    *_, end = map(json.loads, said.splitlines())
    assert end["deaths"]["unicorn"] >= end["statuses"]["unicorn"]["died"] > 0
    assert sum(end["statuses"]["unicorn"].values()) == 2048
    assert "died" in {cluster["kind"] for cluster in end["clusters"]}
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]


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
    """Ctrl-C ends a run as its time does: what was found until then is told. Killed, it leaves no process."""
    args = [VMTEST, "fuzz", "insn", *PAIR, "--time", "300", "--json", "-j", jobs, "--findings", str(tmp_path)]
    for number, code in ((signal.SIGINT, 1), (signal.SIGKILL, -9)):
        with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if json.loads(line)["event"] == "finding":
                    break
            children = psutil.Process(running.pid).children(recursive=True)
            assert children
            running.send_signal(number)
            rest = running.stdout.read()
            assert running.wait(60) == code
        if number == signal.SIGINT:
            assert json.loads(rest.splitlines()[-1])["event"] == "end"
        assert not psutil.wait_procs(children, timeout=20)[1]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fuzz", "insn", "--isa", "pdp11"], "unknown instruction set 'pdp11'"),
        (["fuzz", "insn", "--executors", "unicorn"], "nothing to compare unicorn with"),
        (["fuzz", "insn", "--executors", "unicorn,bochs"], "unknown executor 'bochs'"),
        (["fuzz", "insn", "--isa", "aarch64", "--executors", "unicorn,native"], "native does not run aarch64"),
        (["fuzz", "insn", *PAIR, "--forms", "frobnicate"], "no form of x86_64 matches 'frobnicate'"),
        (["fuzz", "insn", *PAIR, "--time", "0"], "--time 0: it must be more than 0"),
        (["fuzz", "insn", *PAIR, "--cases", "-5"], "--cases -5: it must be more than 0"),
        (["fuzz", "insn", *PAIR, "--sources", "dice"], "--sources 'dice'"),
        (["fuzz", "insn", *PAIR, "--corpus", "/nonexistent"], "cannot be read"),
        (["fuzz", "insn", *PAIR, "--baseline", "/nonexistent"], "cannot be read"),
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
