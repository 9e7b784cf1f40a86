"""QEMU binaries: what they say is understood, and what is no QEMU is refused with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmtest.errors import HostError, UsageError
from vmtest.host import binaries, store
from vmtest.host.binaries import find_qemu, parse_accels, parse_version

# A stand-in that talks like QEMU 7.2: its target and version come from its name, and it counts its starts.
FAKE = """#!/bin/sh
echo "$@" >> "$0.starts"
case "$*" in
*--version*) echo "{version}" ;;
*-accel\\ help*) printf 'Accelerators supported in QEMU binary:\\ntcg\\nkvm\\n' ;;
*-sandbox*) {sandbox} ;;
*) echo '{{"QMP": {{}}}}'; echo '{{"return": {{"arch": "{target}"}}}}' ;;
esac
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(binaries, "_KNOWN", {})


def fake(
    path: Path, *, version: str = "QEMU emulator version 8.2.1", target: str = "x86_64", sandbox: str = "exit 1"
) -> Path:
    """Make the stand-in at that path."""
    path.write_text(FAKE.format(version=version, target=target, sandbox=sandbox))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright", (7, 2, 22)),
        ("QEMU emulator version 9.0.50 (v9.0.0-1234-gdeadbeef01)", (9, 0, 50)),
        ("QEMU emulator version 10.0.2", (10, 0, 2)),
        ("QEMU emulator version 8.2 (qemu-kvm-8.2.0-11.el9_4)", (8, 2, 0)),
        ("qemu-x86_64 version 7.2.22 (Debian 1:7.2+dfsg-7)", None),
        ("rm (GNU coreutils) 9.1", None),
        ("", None),
    ],
)
def test_a_version_is_read_from_every_builders_text(text: str, version: tuple[int, int, int] | None) -> None:
    """Debian's, git's and Red Hat's texts are understood; the user-mode QEMU and other programs are none."""
    assert parse_version(text) == version


def test_accelerators_are_read_without_their_heading() -> None:
    """Only the names count, whatever blank lines and blanks surround them."""
    assert parse_accels("Accelerators supported in QEMU binary:\ntcg\n kvm \n\n") == ("tcg", "kvm")
    assert parse_accels("") == ()


def test_a_qemu_is_described_once_and_then_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process asks the binary nothing; a changed binary is asked again."""
    path = fake(tmp_path / "qemu-mine")
    first = find_qemu(str(path), "x86_64")
    assert (first.version, first.accels, first.sandbox) == ((8, 2, 1), ("tcg", "kvm"), False)
    starts = Path(f"{path}.starts").read_text()

    monkeypatch.setattr(binaries, "_KNOWN", {})
    assert find_qemu(str(path), "x86_64") == first
    assert Path(f"{path}.starts").read_text() == starts

    fake(path, version="QEMU emulator version 9.1.0")
    os.utime(path, ns=(1, 1))
    assert find_qemu(str(path), "x86_64").version == (9, 1, 0)


def test_the_sandbox_is_believed_when_qemu_starts_with_it(tmp_path: Path) -> None:
    """A build that starts with -sandbox and still answers has it."""
    path = fake(tmp_path / "q", sandbox="""echo '{"return": {"arch": "x86_64"}}'""")
    assert find_qemu(str(path), "x86_64").sandbox


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', '{"key": {}, "value": []}'])
def test_a_corrupted_cache_entry_is_found_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Whatever stands in the file, the answer is right."""
    path = fake(tmp_path / "q")
    before = find_qemu(str(path), "x86_64")
    entry = store._path(f"qemu {path}")
    assert entry.exists()
    entry.write_text(text)
    monkeypatch.setattr(binaries, "_KNOWN", {})
    assert find_qemu(str(path), "x86_64") == before


def test_an_entry_with_the_right_key_and_nonsense_inside_is_found_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are checked, not only the key."""
    path = fake(tmp_path / "q")
    before = find_qemu(str(path), "x86_64")
    store.save(f"qemu {path}", {"fingerprint": before.fingerprint}, {"version": 7, "accels": "tcg"})
    monkeypatch.setattr(binaries, "_KNOWN", {})
    assert find_qemu(str(path), "x86_64") == before


def test_a_cache_that_cannot_be_made_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache directory's place is taken by a file, QEMU is found all the same."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert find_qemu(str(fake(tmp_path / "q")), "x86_64").version == (8, 2, 1)


def test_a_missing_qemu_names_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With apt it is the exact command; otherwise another manager's, or the program's name."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binaries, "_ELSEWHERE", str(tmp_path / "none"))
    with pytest.raises(HostError, match="qemu-system-x86_64 is not on PATH") as nothing:
        find_qemu("", "x86_64")
    assert "your distribution" in nothing.value.hint
    for manager, command in (
        ("dnf", "dnf install -y /usr/bin/qemu-system-x86_64"),
        ("apt-get", "apt-get install -y qemu-system-x86"),
    ):
        fake(tmp_path / manager)
        with pytest.raises(HostError) as missing:
            find_qemu("", "x86_64")
        assert missing.value.hint == command


def test_what_is_no_qemu_is_a_usage_error(tmp_path: Path) -> None:
    """Missing, a directory, not executable, another program, a program that does not start."""
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho something else\n")
    with pytest.raises(UsageError, match="No such file"):
        find_qemu(str(tmp_path / "none"), "x86_64")
    with pytest.raises(UsageError, match="not a file"):
        find_qemu(str(tmp_path), "x86_64")
    with pytest.raises(UsageError, match="not executable"):
        find_qemu(str(other), "x86_64")
    other.chmod(0o755)
    with pytest.raises(UsageError, match="not a QEMU system emulator") as wrong:
        find_qemu(str(other), "x86_64")
    assert "something else" in str(wrong.value)
    other.write_bytes(b"\x7fELF nonsense")
    with pytest.raises(UsageError, match="not a QEMU system emulator"):
        find_qemu(str(other), "x86_64")


def test_a_program_that_never_stops_talking_is_cut(tmp_path: Path) -> None:
    """A flood is read to 64 KiB and no further, and its author is killed."""
    flood = tmp_path / "flood"
    flood.write_text("#!/bin/sh\nexec yes\n")
    flood.chmod(0o755)
    with pytest.raises(UsageError, match="not a QEMU system emulator"):
        find_qemu(str(flood), "x86_64")


def test_a_program_that_never_answers_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets its seconds and is killed."""
    monkeypatch.setattr(binaries, "_ANSWER_SECONDS", 0.2)
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    silent.chmod(0o755)
    with pytest.raises(UsageError, match="not a QEMU system emulator"):
        find_qemu(str(silent), "x86_64")


def test_a_qemu_of_another_architecture_is_a_usage_error(tmp_path: Path) -> None:
    """A QEMU says itself what it emulates, whatever its file is called; also when that is remembered."""
    path = fake(tmp_path / "qemu-system-x86_64", target="aarch64")
    for _ in range(2):
        with pytest.raises(UsageError, match="emulates aarch64, and the guest is x86_64"):
            find_qemu(str(path), "x86_64")
    assert find_qemu(str(path), "arm64").arch == "aarch64"


def test_an_old_qemu_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    """7.1 is named, and 7.2."""
    path = fake(tmp_path / "q", version="QEMU emulator version 7.1.0")
    with pytest.raises(HostError, match=r"is QEMU 7\.1\.0, and vmtest needs 7\.2"):
        find_qemu(str(path), "x86_64")
