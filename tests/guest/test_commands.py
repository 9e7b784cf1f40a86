"""Commands in real guests, over the agent."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

import vmtest
from vmtest.errors import CommandFailed, CommandTimeout, UsageError


def test_output_status_and_streams(shared: vmtest.Guest) -> None:
    """A command's stdout, stderr and exit code come back apart and exact."""
    result = shared.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code, result.signal) == ("out\n", "err\n", 3, None)
    assert not result.ok
    assert result.duration > 0
    assert shared.channel == "agent"
    assert shared.accel == "tcg"


def test_argument_list_is_not_a_shell_string(shared: vmtest.Guest) -> None:
    """A list's arguments reach the program as they are, whatever characters they hold."""
    arguments = ["a b", "$HOME", "*", "'", '"', "", "\n", "ü"]
    result = shared.run(["printf", "%s|", *arguments])
    assert result.stdout == "".join(f"{argument}|" for argument in arguments)


def test_check_raises_with_what_was_written(shared: vmtest.Guest) -> None:
    """check() returns an ok result, and raises CommandFailed with the streams of another."""
    assert shared.run("true").check().ok
    with pytest.raises(CommandFailed, match="exited with 2") as caught:
        shared.run("echo why >&2; exit 2").check()
    assert "why" in str(caught.value)
    assert caught.value.result.exit_code == 2


@pytest.mark.parametrize(("program", "code"), [("/nowhere/x", 127), ("nowhere", 127), ("/etc", 126)])
def test_what_cannot_be_run(shared: vmtest.Guest, program: str, code: int) -> None:
    """A missing program gives 127 and one that cannot be executed 126, with the reason on stderr."""
    result = shared.run([program])
    assert result.exit_code == code
    assert program in result.stderr


def test_signal(shared: vmtest.Guest) -> None:
    """A command that a signal ended says which, and has the exit code that a shell would give it."""
    result = shared.run("kill -SEGV $$")
    assert (result.signal, result.exit_code) == (11, 139)


def test_environment_and_directory(shared: vmtest.Guest) -> None:
    """env adds to the guest's environment and overrides it, cwd is where the command runs."""
    result = shared.run('echo "$A:$HOME:$PWD"', env={"A": "x y", "HOME": "/else"}, cwd="/tmp")
    assert result.stdout == "x y:/else:/tmp\n"
    assert "PATH=" in shared.run("env").stdout
    missing = shared.run("true", cwd="/nowhere")
    assert missing.exit_code == 126
    assert "/nowhere" in missing.stderr


def test_binary_output_is_identical(shared: vmtest.Guest) -> None:
    """Ten MiB of random bytes arrive as the guest hashed them."""
    shared.run("dd if=/dev/urandom of=/tmp/big bs=1M count=10").check()
    result = shared.run("cat /tmp/big").check()
    expected = shared.run("sha256sum < /tmp/big; rm /tmp/big").stdout.split()[0]
    assert len(result.stdout_bytes) == 10 << 20
    assert hashlib.sha256(result.stdout_bytes).hexdigest() == expected


def test_input_round_trip(shared: vmtest.Guest) -> None:
    """Three MiB of random standard input come back through cat unchanged."""
    data = os.urandom(3 << 20)
    assert shared.run("cat", input=data).stdout_bytes == data
    assert shared.run("cat", input="text\n").stdout == "text\n"
    assert shared.run("cat").stdout == ""


def test_input_that_nobody_reads(shared: vmtest.Guest) -> None:
    """A command that ignores its input ends normally, however long the input."""
    assert shared.run("true", input=bytes(1 << 20)).ok
    assert shared.run("head -c 3", input=b"abcdef" * 100_000).stdout == "abc"


def test_background_child_does_not_block(shared: vmtest.Guest) -> None:
    """A child that keeps the output open after its parent has ended is not waited for."""
    result = shared.run("echo before; sleep 1000 & echo after", timeout=20)
    assert result.stdout == "before\nafter\n"
    shared.run("killall sleep")


def test_timeout_kills_and_tells(shared: vmtest.Guest) -> None:
    """A command that never ends is killed with its children; what it wrote is in the error; the guest goes on."""
    with pytest.raises(CommandTimeout, match=r"did not end within 1 s") as caught:
        shared.run("echo started; sleep 4321 & sleep 1234", timeout=1)
    assert caught.value.stdout == b"started\n"
    assert "QEMU command line" in str(caught.value)
    assert shared.run("ps | grep -c '[s]leep [14][23]'").stdout == "0\n"


def test_endless_output_is_cut(shared: vmtest.Guest) -> None:
    """A command that floods its output without end ends with its timeout, streamed or not."""
    seen = 0

    def count(stream: str, data: bytes) -> None:
        nonlocal seen
        seen += len(data)

    with pytest.raises(CommandTimeout):
        shared.run("yes", timeout=1, stream=count)
    assert seen > 100_000
    assert shared.run("echo on").stdout == "on\n"


def test_stream_hands_over_while_it_runs(shared: vmtest.Guest) -> None:
    """With a function as stream, output arrives before the command has ended, and the result keeps none."""
    got: list[tuple[str, bytes]] = []

    def take(stream: str, data: bytes) -> None:
        got.append((stream, data))
        if data == b"first\n":  # the command waits for this: it cannot have ended
            shared.run("touch /tmp/go")

    result = shared.run("echo first; while [ ! -e /tmp/go ]; do :; done; rm /tmp/go; echo second >&2", stream=take)
    assert result.ok
    assert got == [("stdout", b"first\n"), ("stderr", b"second\n")]
    assert result.stdout_bytes == b""


def test_stream_true_shows_and_keeps(shared: vmtest.Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """stream=True shows the output here, and the result has it as well."""
    result = shared.run("echo shown; echo too >&2", stream=True)
    assert capsys.readouterr() == ("shown\n", "too\n")
    assert (result.stdout, result.stderr) == ("shown\n", "too\n")


def test_commands_at_the_same_time(shared: vmtest.Guest) -> None:
    """Threads run commands in one guest at the same time, each with its own result."""
    outputs: dict[int, str] = {}
    meeting = "touch /tmp/m{0}; until [ -e /tmp/m0 ] && [ -e /tmp/m1 ] && [ -e /tmp/m2 ]; do :; done; echo {0}"

    def work(number: int) -> None:
        outputs[number] = shared.run(meeting.format(number)).stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {number: f"{number}\n" for number in range(3)}
    shared.run("rm /tmp/m?")


def test_printk_never_mixes_with_output(shared: vmtest.Guest) -> None:
    """What the kernel prints while a command writes goes to the console only."""
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; echo '<0>from the kernel' > /dev/kmsg; done"
    result = shared.run(script)
    assert result.stdout == "".join(f"line {i}\n" for i in range(1, 10))
    shared.console.expect_exact("from the kernel")


def test_misuse_is_told(shared: vmtest.Guest) -> None:
    """An empty command, a NUL byte and an argument list beyond the limit are usage errors that say so."""
    with pytest.raises(UsageError, match="no command"):
        shared.run([])
    with pytest.raises(UsageError, match="NUL"):
        shared.run(["echo", "a\0b"])
    with pytest.raises(UsageError, match="input="):
        shared.run(["echo", "x" * 100_000])


def test_other_architectures(foreign: vmtest.Guest) -> None:
    """The same interface holds on every architecture."""
    assert foreign.run("uname -m").stdout.strip() == foreign.machine.arch
    assert foreign.run("exit 7").exit_code == 7
    data = os.urandom(100_000)
    assert foreign.run("cat", input=data).stdout_bytes == data
    assert foreign.channel == "agent"
