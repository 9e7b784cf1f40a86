"""The command `vmtest`, run as people run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

VMTEST = str(Path(sys.executable).with_name("vmtest"))


def _vmtest(*args: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([VMTEST, *args], capture_output=True, timeout=300, check=False, **more)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("guest", ["linux-x86_64", "linux-aarch64", "linux-riscv64"])
def test_run_exits_with_the_commands_code(guest: str) -> None:
    """`vmtest run` prints the command's streams as they are, and exits with its code, on every architecture."""
    done = _vmtest("run", guest, "--", "sh", "-c", "uname -m; echo err >&2; exit 7")
    assert done.returncode == 7
    assert done.stdout.decode().strip() == guest.removeprefix("linux-")
    assert done.stderr.decode().splitlines()[-1] == "err"


def test_run_output_is_exact() -> None:
    """Ten MiB of random bytes pass through `vmtest run` whole; a reader that has seen enough does no harm."""
    done = _vmtest("run", "--", "dd", "if=/dev/urandom", "bs=1M", "count=10")
    assert (done.returncode, len(done.stdout)) == (0, 10485760)
    done = subprocess.run(
        f"{VMTEST} run -- yes | head -c 10", shell=True, capture_output=True, timeout=300, check=False
    )
    assert done.stdout == b"y\ny\ny\ny\ny\n"
    assert b"Traceback" not in done.stderr


def test_run_takes_stdin_and_a_shell_string() -> None:
    """With -i the command has our standard input; one word is a string for the guest's shell."""
    data = os.urandom(100_000)
    done = _vmtest("run", "-i", "--smp", "2", "--", "nproc >&2; cat", input=data)
    assert done.stdout == data
    assert done.stderr.endswith(b"2\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "nosuch", "--", "true"], "unknown guest 'nosuch'"),
        (["run", "linux-x86-64", "--", "true"], "did you mean linux-x86_64"),
        (["run", "--accel", "warp", "--", "true"], "unknown accelerator 'warp'"),
        (["run", "--acel", "tcg", "--", "true"], "--accel"),
        (["run", "--kernel", "/nowhere", "--", "true"], "cannot be read: No such file"),
        (["run", "--kernel", "{empty}", "--", "true"], "is empty"),
        (["run", "--kernel", "/etc/passwd", "--", "true"], "is no kernel"),
        (
            ["run", "--initrd", "/etc/passwd", "--append", "x", "--memory", "1", "--", "true"],
            "does not boot with 1 MiB",
        ),
        (["run", "--initrd", "{no_init}", "--", "true"], "holds no /init"),
        (["run", "--memory", "-5", "--", "true"], "memory"),
        (["run", "--qemu", "/nowhere/qemu", "--", "true"], "/nowhere/qemu"),
        (["run", "--accel", "kvm", "linux-aarch64", "--", "true"], "kvm cannot run this aarch64 guest"),
        (["run", "uname"], "put it after --"),
        (["run", "uname", "-a"], "goes after --"),
        (["run", "--timeout", "2", "--", "sleep 1000"], "did not end within 2 s"),
        (
            ["run", "--boot-timeout", "5", "--append", "rdinit=/bin/sleep -- 99", "--", "true"],
            "did not answer within 5 s",
        ),
        (["run", "--append", "rdinit=/nowhere", "--", "true"], "crashed"),
        (["shell"], "no terminal"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_input_is_one_clear_error(args: list[str], message: str, tmp_path: Path) -> None:
    """Whatever cannot be is one clear error on stderr with exit code 2: no traceback, nothing on stdout."""
    (tmp_path / "empty").touch()
    (tmp_path / "no-init").write_bytes(_cpio_without_init())
    filled = [arg.format(empty=tmp_path / "empty", no_init=tmp_path / "no-init") for arg in args]
    done = _vmtest(*filled)
    text = done.stderr.decode()
    assert done.returncode == 2, text
    assert message in text
    assert done.stdout == b""
    assert "Traceback" not in text


def _cpio_without_init() -> bytes:
    from vmtest.images.cpio import Tree

    tree = Tree({})
    tree.file("etc/passwd", b"root\n")
    return tree.cpio()


def test_no_qemu_names_the_command_that_installs_it(tmp_path: Path) -> None:
    """Without QEMU on PATH the error says which command installs it."""
    for tool in ("setpriv", "apt-get"):
        (tmp_path / tool).symlink_to("/usr/bin/env")
    done = _vmtest("run", "--", "true", env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 2
    assert b"apt-get install -y qemu-system-x86" in done.stderr


def test_interrupt_leaves_nothing() -> None:
    """Ctrl-C ends `vmtest run` with 130, and its QEMU with it."""
    child = subprocess.Popen(
        [VMTEST, "run", "--", "echo up; sleep 1000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    marked = _qemus_of(child.pid)
    assert marked
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"Traceback" not in errors
    assert not [pid for pid in marked if Path(f"/proc/{pid}").exists()]


def _qemus_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] or [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_shell_is_the_console() -> None:
    """`vmtest shell` connects the terminal to the console; Ctrl-] leaves and ends the guest."""
    child = pexpect.spawn(VMTEST, ["shell"], timeout=120, encoding="utf-8")
    child.expect_exact("Ctrl-] leaves")
    child.expect_exact("~ # ")
    child.send("echo $((6 * 7))\r")
    child.expect(r"\b42\r\n")
    child.send("\x1d")
    child.expect_exact("the guest has ended")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_list_and_help() -> None:
    """`vmtest list --json` names images, architectures and accelerators; each --help shows an example or a default."""
    listed = json.loads(_vmtest("list", "--json").stdout)
    assert {"linux-x86_64", "linux-aarch64", "linux-riscv64"} <= {row["guest"] for row in listed["guests"]}
    assert [row["accelerator"] for row in listed["accelerators"]][:2] == ["tcg", "kvm"]
    assert b"vmtest run -- uname -a" in _vmtest("run", "--help").stdout
    for command in ("shell", "list", "doctor", "image"):
        assert _vmtest(command, "--help").returncode == 0
