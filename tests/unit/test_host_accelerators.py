"""Accelerators: chosen by what was measured, refused with the reason, never replaced in silence."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from vmtest.errors import AcceleratorUnavailable, HostError, UsageError
from vmtest.host import accelerators, choose, devices, measure, prober, require_linux, store
from vmtest.host.accelerators import AccelStatus, fastest
from vmtest.host.binaries import Qemu
from vmtest.host.devices import DeviceState, device_state
from vmtest.host.prober import Answer
from vmtest.model.accel import ACCELERATORS
from vmtest.model.probe import PROBES, checksum, iterations

OPEN = DeviceState(exists=True, identity="1")


def qemu(arch: str = "x86_64", accels: tuple[str, ...] = ("tcg", "kvm")) -> Qemu:
    """A QEMU that is never started."""
    return Qemu(
        path=Path("/q"),
        version=(8, 2, 0),
        version_text="QEMU emulator version 8.2.0",
        arch=arch,
        accels=accels,
        sandbox=True,
        fingerprint="/q 1 1",
    )


def row(accel: str, *, works: bool = True, mips: float | None = None) -> AccelStatus:
    """A measurement."""
    return AccelStatus(accel=accel, arch="x86_64", present=True, works=works, mips=mips)


class Host:
    """An x86_64 host whose probes answer from a table and are counted."""

    def __init__(self) -> None:
        self.device = OPEN
        self.answers = {"tcg": Answer(mips=900.0), "kvm": Answer(mips=4000.0)}
        self.probes: list[str] = []

    def probe(self, qemu: Qemu, row: object, cpu: str, program: object, **_: object) -> Answer:
        name: str = row.name  # type: ignore[attr-defined]
        self.probes.append(f"{name} {cpu}".strip())
        return self.answers.get(f"{name} {cpu}", self.answers[name])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The host of the probes' table, with a cache of its own."""
    made = Host()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(accelerators, "_MEASURED", {})
    monkeypatch.setattr(accelerators, "device_state", lambda path: made.device)
    monkeypatch.setattr(accelerators, "host_arch", lambda: "x86_64")
    monkeypatch.setattr(prober, "probe", made.probe)
    return made


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([row("tcg", mips=900.0), row("kvm", mips=2.0)], "tcg"),
        ([row("tcg", mips=900.0), row("kvm", mips=4000.0)], "kvm"),
        ([row("tcg", mips=900.0), row("kvm", works=False)], "tcg"),
        ([row("tcg"), row("kvm", mips=2.0)], "kvm"),
        ([row("tcg")], "tcg"),
        ([row("tcg", works=False)], None),
        ([], None),
    ],
)
def test_the_fastest_that_works_is_taken(rows: list[AccelStatus], best: str | None) -> None:
    """Measured speed decides, not the accelerator's name."""
    found = fastest(rows)
    assert (found.accel if found else None) == best


def test_auto_measures_once_and_remembers(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this process nor the next runs a probe again."""
    assert choose("auto", "x86_64", qemu()).accel == "kvm"
    assert sorted(host.probes) == ["kvm host", "tcg"]
    monkeypatch.setattr(accelerators, "_MEASURED", {})
    assert choose("auto", "x86_64", qemu()).mips == 4000.0
    assert len(host.probes) == 2


@pytest.mark.parametrize(
    "other",
    [qemu(arch="aarch64"), qemu(accels=("tcg",))],
    ids=["a foreign guest", "a QEMU without KVM"],
)
def test_auto_without_a_choice_costs_no_probe(host: Host, other: Qemu) -> None:
    """Where only TCG comes into question it is taken unmeasured."""
    assert choose("auto", other.arch, other).accel == "tcg"
    assert host.probes == []


def test_tcg_by_name_costs_no_probe(host: Host) -> None:
    """An emulator that the build has works."""
    assert choose("tcg", "x86_64", qemu()).works
    assert host.probes == []


def test_an_accelerator_by_name_never_falls_back(host: Host) -> None:
    """KVM that fails its probe is an error with the probe's reason, although TCG would work."""
    host.answers["kvm"] = Answer(why="the guest hung")
    with pytest.raises(AcceleratorUnavailable, match="kvm cannot run this x86_64 guest: the guest hung"):
        choose("kvm", "x86_64", qemu())
    assert "tcg" not in host.probes


@pytest.mark.parametrize(
    ("accel", "of", "why"),
    [
        ("kvm", qemu(arch="aarch64"), "the guest is aarch64 and the host x86_64: KVM runs only guests of"),
        ("kvm", qemu(accels=("tcg",)), "this QEMU was built without it"),
        ("tcg", qemu(accels=("kvm",)), "this QEMU was built without it"),
        ("hvf", qemu(), "part of macOS"),
    ],
)
def test_what_cannot_be_says_why(host: Host, accel: str, of: Qemu, why: str) -> None:
    """Each reason is its own sentence, found without starting a guest."""
    with pytest.raises(AcceleratorUnavailable, match=why):
        choose(accel, of.arch, of)
    assert host.probes == []


def test_an_unknown_accelerator_is_a_usage_error() -> None:
    """The names that exist are listed."""
    with pytest.raises(UsageError, match="unknown accelerator 'kmv'") as error:
        choose("kmv", "x86_64", qemu())
    assert "auto, tcg, kvm" in error.value.hint


def test_a_permission_that_is_taken_away_is_not_masked_by_the_cache(host: Host) -> None:
    """The device is looked at each time, also after a success that is remembered."""
    assert choose("kvm", "x86_64", qemu()).works
    host.device = DeviceState(exists=True, why="no permission to open /dev/kvm", hint="usermod", identity="1")
    with pytest.raises(AcceleratorUnavailable, match="no permission") as error:
        choose("kvm", "x86_64", qemu())
    assert error.value.hint == "usermod"
    host.device = OPEN
    assert choose("kvm", "x86_64", qemu()).works
    assert host.probes == ["kvm host"]


def test_a_device_made_anew_is_measured_anew(host: Host) -> None:
    """A module that was loaded again may behave differently."""
    choose("kvm", "x86_64", qemu())
    host.device = DeviceState(exists=True, identity="2")
    choose("kvm", "x86_64", qemu())
    assert len(host.probes) == 2


def test_a_failure_that_costs_little_is_tried_again(host: Host) -> None:
    """QEMU that gave up at once is not remembered; a hang, which costs the whole deadline, is."""
    host.answers["kvm"] = Answer(why="device busy", prompt=True)
    assert not measure(qemu(), "kvm").works
    host.answers["kvm"] = Answer(why="the guest hung")
    assert not measure(qemu(), "kvm").works
    host.answers["kvm"] = Answer(mips=4000.0)
    assert measure(qemu(), "kvm").why == "the guest hung"
    assert measure(qemu(), "kvm", refresh=True).works
    assert measure(qemu(), "kvm").works


def test_another_cpu_model_is_tried_where_qemu_gives_up(host: Host) -> None:
    """A host whose KVM refuses -cpu host is used with the model that works, and the status says so."""
    fallback = ACCELERATORS["kvm"].cpu_fallbacks[0]
    host.answers |= {
        "kvm host": Answer(why="failed to set MSR 0x10a", prompt=True),
        f"kvm {fallback}": Answer(mips=3.0),
    }
    status = measure(qemu(), "kvm")
    assert (status.works, status.cpu) == (True, fallback)


def test_the_first_models_reason_is_told_where_none_works(host: Host) -> None:
    """The fallback's failure would only confuse."""
    fallback = ACCELERATORS["kvm"].cpu_fallbacks[0]
    host.answers |= {
        "kvm host": Answer(why="first", prompt=True),
        f"kvm {fallback}": Answer(why="second", prompt=True),
    }
    assert measure(qemu(), "kvm").why == "first"


@pytest.mark.parametrize("value", [{}, {"accel": "kvm"}, {"works": "yes", "accel": 1, "arch": 2, "present": 3}])
def test_a_corrupted_measurement_is_measured_again(host: Host, value: dict[str, object]) -> None:
    """Nonsense under the right key is no result."""
    key = accelerators._key(qemu(), ACCELERATORS["kvm"])
    store.save("accel-kvm x86_64 /q", key, value)
    assert measure(qemu(), "kvm").mips == 4000.0


def test_no_accelerator_at_all_names_each_reason(host: Host) -> None:
    """The error of "auto" carries what every accelerator said."""
    host.answers = {"tcg": Answer(why="tcg is ill"), "kvm": Answer(why="kvm is ill")}
    with pytest.raises(AcceleratorUnavailable, match="no accelerator works") as error:
        choose("auto", "x86_64", qemu())
    assert "tcg is ill" in str(error.value)
    assert "kvm is ill" in str(error.value)


def test_a_missing_device_says_what_brings_it(tmp_path: Path) -> None:
    """Missing is told apart from forbidden."""
    state = device_state(str(tmp_path / "kvm"))
    assert not state.exists
    assert "is missing" in state.why
    assert "modprobe" in state.hint


@pytest.mark.parametrize(
    ("mode", "gid", "hint"),
    [
        (0o660, 1, r"^add yourself to the \w+ group: usermod -aG \w+ \w+, and log in again$"),
        (0o600, 0, r"^as root: chgrp kvm /dev/kvm && chmod 660 /dev/kvm; then add yourself"),
    ],
)
def test_a_refused_device_says_what_lets_one_in(
    monkeypatch: pytest.MonkeyPatch, mode: int, gid: int, hint: str
) -> None:
    """Joining the group is advised only where the group has the right, and by the group's own name."""
    monkeypatch.setattr(os, "getgroups", lambda: [7])
    monkeypatch.setattr(os, "getegid", lambda: 7)
    found = os.stat_result((stat.S_IFCHR | mode, 1, 1, 1, 0, gid, 0, 0, 0, 0))
    why, advice = devices._refused("/dev/kvm", found)
    assert "no permission to open /dev/kvm" in why
    assert re.search(hint, advice)


def test_a_host_that_is_not_linux_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error instead of a strange one later."""
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Darwin", *real[1:])))
    with pytest.raises(HostError, match="this one runs Darwin"):
        require_linux()


def test_checksums_by_squaring_are_those_of_the_loop() -> None:
    """The host's shortcut computes what the guest computes step by step."""
    for count in (0, 1, 2, 7, iterations(0), iterations(1)):
        x = 1
        for _ in range(count):
            x = (x * 1664525 + 1013904223) % 2**32
        assert checksum(count) == x


def test_every_probe_program_fits_its_image() -> None:
    """The code is at the image's start, and the x86 reset vector jumps to it."""
    for program in PROBES.values():
        assert program.image().startswith(program.code)
    image = PROBES["x86_64"].image()
    assert len(image) == 0x10000
    displacement = int.from_bytes(image[0xFFF1:0xFFF3], "little")
    assert (image[0xFFF0], (0xFFF3 + displacement) % 0x10000) == (0xE9, 0)
