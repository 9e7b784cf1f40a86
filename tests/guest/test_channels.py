"""The other ways of running commands, in real guests: the console's shell and QEMU's guest agent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import vmtest
from vmtest.errors import CommandTimeout, GuestGone, GuestPanicked
from vmtest.pytest_plugin.fixtures import Boot

WAYS = [("linux-x86_64", "console"), ("linux-x86_64-qga", "qga")]


@pytest.fixture(params=WAYS, ids=lambda way: way[1])
def other(request: pytest.FixtureRequest, boot: Boot) -> vmtest.Guest:
    """A guest whose commands take another way than the agent."""
    image, channel = request.param
    guest = boot(image, channel=channel, cold=channel != "agent")
    assert guest.channel == channel
    return guest


def test_the_same_answers(other: vmtest.Guest, tmp_path: Path) -> None:
    """Streams, status, signals, input, environment, directory, files: as over the agent, and exact to the byte."""
    result = other.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert other.run("kill -SEGV $$").signal == 11
    assert other.run(["printf", "%s|", "a b", "'", "$x", ""]).stdout == "a b|'|$x||"
    assert other.run('echo "$A:$PWD"', env={"A": "x y"}, cwd="/tmp").stdout == "x y:/tmp\n"
    assert other.run("/nowhere").exit_code == 127
    data = os.urandom(50_000)
    assert other.run("cat", input=data).stdout_bytes == data
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "file").chmod(0o751)
    other.push(tmp_path / "file", "/tmp/there")
    other.pull("/tmp/there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o751


def test_timeout_panic_and_reboot(other: vmtest.Guest) -> None:
    """A command that never ends is killed, and the next one runs; so it does after a reboot; a panic ends a wait."""
    with pytest.raises(CommandTimeout):
        other.run("sleep 1234", timeout=3)
    assert other.run("ps | grep -c '[s]leep 1234'").stdout == "0\n"
    other.reboot()
    assert other.run("echo again").stdout == "again\n"
    with pytest.raises((GuestPanicked, GuestGone)) as caught:
        other.run("echo c > /proc/sysrq-trigger; sleep 1000", timeout=1000)
    assert isinstance(caught.value, GuestPanicked)


def test_console_output_survives_printk(boot: Boot) -> None:
    """Kernel messages in the middle of a command's output do not change a byte of what the console channel returns."""
    guest = boot(channel="console", cold=True)
    data = os.urandom(20_000)
    noise = '(i=0; while [ $i -lt 60 ]; do echo "<1>noise $i" > /dev/kmsg; usleep 20000; i=$((i+1)); done) & '
    assert guest.run(noise + "cat", input=data).stdout_bytes == data
    for _ in range(5):
        assert guest.run("seq 2000").stdout == "".join(f"{n}\n" for n in range(1, 2001))
    assert b"noise" in guest.console.log_path.read_bytes()


def test_other_architectures_over_the_console(boot: Boot) -> None:
    """The console channel works on the other architectures' UARTs."""
    for image in ("linux-aarch64", "linux-riscv64"):
        guest = boot(image, channel="console", cold=True)
        assert guest.run("uname -m").stdout.strip() == guest.machine.arch
        assert guest.run("exit 5").exit_code == 5


def test_login_first(boot: Boot) -> None:
    """With wait=False a test drives the console itself, and run() then finds the shell it has left there."""
    guest = boot(wait=False, channel="console")
    guest.console.expect_exact("# ", timeout=60)
    guest.console.sendline("cd /tmp; echo $((40 + 2)); PS1='other> '")
    guest.console.expect(r"\n42\r\n")
    assert guest.run("pwd").exit_code == 0
    guest.console.sendline("echo still $((1 + 1)) here")
    guest.console.expect_exact("still 2 here")
