"""What a user's tests look like; `make demo` runs them. Copy them beside your own kernel or firmware."""

import pytest


def test_kernel(guest):
    assert guest.run("uname -s").stdout == "Linux\n"
    assert guest.run("exit 3").exit_code == 3


def test_a_command_of_its_own_channel(guest):
    """What the kernel prints on the console never mixes with a command's output."""
    result = guest.run("echo '<0>hello from printk' > /dev/kmsg; echo out; echo err >&2").check()
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    guest.console.expect_exact("hello from printk")


def test_files(guest, tmp_path):
    (tmp_path / "script").write_text("#!/bin/sh\necho ran with $1\n")
    (tmp_path / "script").chmod(0o755)
    guest.push(tmp_path / "script", "/tmp/script")
    assert guest.run(["/tmp/script", "an argument"]).stdout == "ran with an argument\n"
    guest.pull("/proc/version", tmp_path / "version")
    assert "Linux version" in (tmp_path / "version").read_text()


@pytest.mark.guest("linux-aarch64", smp=2)
def test_another_architecture(guest):
    assert guest.run("uname -m; nproc").stdout == "aarch64\n2\n"


def test_two_guests(boot):
    first, second = boot(), boot("linux-riscv64", cold=True)
    assert [guest.run("uname -m").stdout.strip() for guest in (first, second)] == ["x86_64", "riscv64"]
