"""The doctor's findings: what is missing is named with the command, and programs get stable keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vmtest.host import checkup as module
from vmtest.host.accelerators import AccelStatus
from vmtest.host.binaries import Qemu
from vmtest.host.checkup import TOOLS, Checkup, QemuRow, missing
from vmtest.host.cpu import Virtualization
from vmtest.report.doctor import as_json, as_text

TCG = AccelStatus(accel="tcg", arch="x86_64", present=True, works=True, mips=912.3)
KVM = AccelStatus(
    accel="kvm",
    arch="x86_64",
    present=True,
    works=False,
    why="no permission to open /dev/kvm",
    hint="usermod -aG kvm me",
)
FOREIGN = AccelStatus(accel="kvm", arch="aarch64", present=False, works=False, why="foreign", hint="use tcg")
QEMU = Qemu(
    path=Path("/usr/bin/qemu-system-x86_64"),
    version=(7, 2, 22),
    version_text="QEMU emulator version 7.2.22",
    arch="x86_64",
    accels=("tcg", "kvm"),
    sandbox=True,
    fingerprint="",
)
FOUND = QemuRow(arch="x86_64", binary="qemu-system-x86_64", qemu=QEMU)
ABSENT = QemuRow(
    arch="aarch64",
    binary="qemu-system-aarch64",
    qemu=None,
    why="qemu-system-aarch64 is not on PATH",
    hint="apt-get install -y qemu-system-arm",
)
TOOLBOX = tuple(replace(tool, path=f"/usr/bin/{tool.name}") for tool in TOOLS)
HEALTHY = Checkup(
    system="Linux 6.1",
    machine="x86_64",
    qemus=(FOUND,),
    accels=(TCG, KVM),
    virtualization=Virtualization(extension="VT-x", hypervisor="", kvm="no permission"),
    tools=TOOLBOX,
    cache_path="/c",
    free_bytes=3 * 2**30,
    missing=(),
)


@pytest.fixture(autouse=True)
def _x86_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmtest.host.system.host_arch", lambda: "x86_64")


def test_what_is_missing_comes_with_its_command() -> None:
    """QEMU first, then tools, then accelerators; a foreign guest's KVM lacks nothing that can be installed."""
    tools = (replace(TOOLBOX[2], path=""),)
    found = missing((FOUND, ABSENT), (TCG, KVM, FOREIGN), tools)
    assert [(entry.what.partition(" ")[0], entry.command) for entry in found] == [
        ("qemu-system-aarch64", "apt-get install -y qemu-system-arm"),
        ("dpkg-deb:", "apt-get install -y dpkg"),
        ("kvm", "usermod -aG kvm me"),
    ]


@pytest.mark.parametrize(
    ("change", "ready"),
    [
        ({}, True),
        ({"accels": (KVM,)}, False),
        ({"tools": (replace(TOOLBOX[0], path=""),)}, False),
        ({"free_bytes": None}, False),
        ({"qemus": (FOUND, ABSENT)}, True),
    ],
)
def test_ready_means_that_the_default_guest_can_run(change: dict[str, object], ready: bool) -> None:
    """An accelerator, the tools and a cache; other architectures may be missing."""
    assert replace(HEALTHY, **change).ready is ready  # type: ignore[arg-type]


def test_the_tables_say_everything_once() -> None:
    """Version, speed, auto's choice, the reason why not, and the command whole on a line of its own."""
    entries = missing((FOUND, ABSENT), (TCG, KVM), TOOLBOX)
    text = as_text(replace(HEALTHY, qemus=(FOUND, ABSENT), missing=entries), width=100)
    for part in ("7.2.22", "912", "auto", "VT-x", "3.0 GiB free", "Ready: "):
        assert part in text
    assert "\n    apt-get install -y qemu-system-arm\n" in text
    assert "\n    usermod -aG kvm me\n" in text


def test_a_host_without_anything_still_gets_tables() -> None:
    """No QEMU, no accelerator, no cache: no traceback, and the verdict."""
    bare = replace(HEALTHY, qemus=(ABSENT,), accels=(), tools=TOOLS, cache_path="", free_bytes=None)
    assert "Not ready: " in as_text(bare)
    assert json.loads(as_json(bare))["qemu"][0]["found"] is False


def test_the_json_keys_are_stable() -> None:
    """Programs read these; they change only with the changelog saying so."""
    data = json.loads(as_json(HEALTHY))
    assert {name: sorted(value[0] if isinstance(value, list) else value) for name, value in data.items()
            if isinstance(value, (list, dict)) and value} == {
        "host": ["machine", "system"],
        "qemu": ["accels", "arch", "binary", "found", "hint", "path", "sandbox", "version", "version_text", "why"],
        "accelerators": ["accel", "arch", "auto", "cpu", "hint", "mips", "present", "why", "works"],
        "virtualization": ["extension", "hypervisor", "kvm", "notes"],
        "cache": ["free_bytes", "path"],
        "tools": ["name", "package", "path", "purpose"],
    }  # fmt: skip
    assert (data["ready"], data["default_arch"], data["missing"]) == (True, "x86_64", [])
    assert [row["auto"] for row in data["accelerators"]] == [True, False]


def test_a_checkup_of_an_empty_path_finds_and_does_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything missing is a list of findings, not an error."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("vmtest.host.binaries._ELSEWHERE", str(tmp_path / "none"))
    found = module.checkup()
    assert not found.ready
    assert {"qemu-system-x86_64", "setpriv:"} <= {entry.what.partition(" ")[0] for entry in found.missing}


def test_the_command_exits_1_where_the_default_guest_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an empty PATH, with JSON on stdout and nothing else; a wrong option is exit status 2."""
    from click.testing import CliRunner

    from vmtest.cli.doctor import doctor

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("vmtest.host.binaries._ELSEWHERE", str(tmp_path / "none"))
    result = CliRunner().invoke(doctor, ["--json"])
    assert (result.exit_code, json.loads(result.stdout)["ready"]) == (1, False)
    assert CliRunner().invoke(doctor, ["--jsn"]).exit_code == 2
