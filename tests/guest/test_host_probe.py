"""The probe programs really run: they answer, they are timed, and nothing of them is left."""

from __future__ import annotations

import gc
import grp  # noqa: F401 - which is asked for as nobody, who may not be able to read Python's own files
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import vmtest
from vmtest.errors import AcceleratorUnavailable, HostError
from vmtest.host import Qemu, choose, find_qemu, host_arch, measure
from vmtest.host.devices import device_state
from vmtest.host.prober import probe
from vmtest.model.accel import ACCELERATORS
from vmtest.model.arch import ARCHES
from vmtest.model.probe import PROBES

TCG = ACCELERATORS["tcg"]


@pytest.fixture(autouse=True)
def _own_cache_and_nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    gc.collect()  # of earlier tests in this worker, whose descriptors would else be closed during this one
    descriptors = psutil.Process().num_fds()
    children = set(psutil.Process().children(recursive=True))  # guests that other tests of this worker share
    yield
    assert set(psutil.Process().children(recursive=True)) <= children
    assert psutil.Process().num_fds() == descriptors
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def found(arch: str) -> Qemu:
    """The host's QEMU, or a skip that says how to get it."""
    try:
        return find_qemu("", arch)
    except HostError as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.mark.parametrize("arch", sorted(PROBES))
def test_tcg_runs_every_architectures_probe(arch: str) -> None:
    """The right checksums, at a speed that an emulator can have: 10 to 20,000 million instructions a second."""
    status = measure(found(arch), "tcg", refresh=True)
    assert (status.present, status.works, status.why) == (True, True, "")
    assert status.mips is not None
    assert 10 < status.mips < 20_000


def test_kvm_runs_the_probe_where_its_device_opens() -> None:
    """Works is proved by a guest, at whatever speed: 0.1 (an emulator in the kernel) and more."""
    state = device_state("/dev/kvm")
    if state.why or host_arch() not in PROBES:
        pytest.skip(f"no KVM for {host_arch()}: {state.why or 'no probe program'}")
    status = measure(found(host_arch()), "kvm", refresh=True)
    assert (status.present, status.works, status.why) == (True, True, "")
    assert status.mips is not None
    assert status.mips > 0.1


def test_auto_takes_the_faster_of_what_works_here() -> None:
    """The choice agrees with the measurements, and the second time costs no process."""
    arch = host_arch() if host_arch() in PROBES else "x86_64"
    qemu = found(arch)
    best = choose("auto", arch, qemu)
    assert best.works
    measured = [measure(qemu, name) for name in ("tcg", "kvm")]
    if best.mips is not None:
        assert best.mips == max(status.mips or 0 for status in measured)


def test_a_wrong_answer_is_not_working() -> None:
    """A guest that computes something else (here: by another multiplier) has not been executed right."""
    good = PROBES["x86_64"]
    wrong = replace(good, listing=good.listing.replace("69c00d661900", "69c00d661901"))
    assert wrong.code != good.code
    answer = probe(found("x86_64"), TCG, "", wrong)
    assert answer.mips is None
    assert "the guest answered" in answer.why


@pytest.mark.parametrize(
    ("arch", "listing"),
    [("x86_64", "ebfe"), ("aarch64", "00000014"), ("riscv64", "6f000000")],
)
def test_a_hang_is_cut_at_the_deadline(arch: str, listing: str) -> None:
    """A guest that says nothing and never ends (a jump to itself) costs the deadline and no more."""
    silent = replace(PROBES[arch], listing=listing)
    answer = probe(found(arch), TCG, "", silent, seconds=0.5)
    assert (answer.mips, answer.prompt) == (None, False)
    assert "the guest hung: in 0.5 s" in answer.why


def test_a_guest_that_resets_ends_the_probe_at_once() -> None:
    """A triple fault (lidt of nothing, ud2) ends QEMU, and that is told with its status."""
    # lidt %cs:0x100 (zeros there: a limit of nothing), then ud2.
    broken = replace(PROBES["x86_64"], listing="2e0f011e0001\n0f0b")
    answer = probe(found("x86_64"), TCG, "", broken)
    assert answer.prompt
    assert "QEMU exited with 0 before the guest had answered" in answer.why


def test_qemus_own_words_are_passed_on() -> None:
    """What QEMU says on its standard error is the reason."""
    answer = probe(found("x86_64"), TCG, "no-such-cpu", PROBES["x86_64"])
    assert answer.prompt
    assert "no-such-cpu" in answer.why


def test_a_foreign_guest_cannot_have_kvm() -> None:
    """The reason is the architectures, whatever the state of the device."""
    foreign = next(name for name in ARCHES if name != host_arch())
    with pytest.raises(AcceleratorUnavailable, match=f"the guest is {foreign} and the host {host_arch()}"):
        choose("kvm", foreign, found(foreign))


@contextmanager
def _as_nobody() -> Iterator[None]:
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def test_a_forbidden_device_is_told_apart_from_a_missing_one() -> None:
    """Another user gets "no permission" and what to do, although the result as root is remembered."""
    if host_arch() not in PROBES or not Path("/dev/kvm").exists():
        pytest.skip("no /dev/kvm that could be forbidden")
    if os.geteuid() != 0 or Path("/dev/kvm").stat().st_mode & 0o006:
        pytest.skip("needs root, to become a user whom /dev/kvm does not let in")
    qemu = found(host_arch())
    assert measure(qemu, "kvm").works
    with _as_nobody(), pytest.raises(AcceleratorUnavailable, match="no permission to open /dev/kvm") as error:
        choose("kvm", host_arch(), qemu)
    assert "usermod -aG kvm nobody" in error.value.hint
    with _as_nobody():
        assert choose("auto", host_arch(), qemu).accel == "tcg"


ENDLESS = """
from dataclasses import replace
from vmtest.host import find_qemu, prober
from vmtest.model.accel import ACCELERATORS
from vmtest.model.probe import PROBES
# A jump to itself.
endless = replace(PROBES["x86_64"], listing="ebfe")
prober.probe(find_qemu("", "x86_64"), ACCELERATORS["tcg"], "", endless, seconds=60)
"""


def test_no_qemu_outlives_a_prober_that_is_killed() -> None:
    """SIGKILL of the measuring process takes its QEMU along."""
    found("x86_64")
    with subprocess.Popen([sys.executable, "-c", ENDLESS], env=_env()) as parent:
        process = psutil.Process(parent.pid)
        qemus: list[psutil.Process] = []
        while not qemus:
            assert parent.poll() is None
            qemus = [child for child in process.children() if "-bios" in _command(child)]
        parent.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(qemus, timeout=10)
    assert (len(gone), alive) == (1, [])


def _env() -> dict[str, str]:
    # The package under test, wherever it is installed, and not the one that the directory would give.
    return {**os.environ, "PYTHONPATH": str(Path(vmtest.__file__).parents[1])}


def _command(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    # While it is still setpriv, the parent-death signal is not set.
    return command if command and "qemu" in Path(command[0]).name else []


def test_two_processes_at_once_measure_once(tmp_path: Path) -> None:
    """The second waits for the first and takes its result; the numbers are the same to the last digit."""
    found("x86_64")
    code = "from vmtest.host import find_qemu, measure\nprint(repr(measure(find_qemu('', 'x86_64'), 'tcg').mips))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=_env(), stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert said[0] == said[1] != ""
