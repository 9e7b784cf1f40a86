"""A guest's life: power, panics, and whatever else ends it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import vmtest
from vmtest.errors import (
    BootTimeout,
    GuestError,
    GuestGone,
    GuestPanicked,
    QemuDied,
    QmpError,
    UsageError,
)
from vmtest.pytest_plugin.fixtures import Boot


def test_reboot_comes_up_fresh(guest: vmtest.Guest) -> None:
    """After reboot() the guest answers again, and has forgotten what was done to it."""
    guest.run("touch /tmp/mark").check()
    guest.reboot()
    assert guest.run("ls /tmp/mark").exit_code == 1
    assert float(guest.run("cat /proc/uptime").stdout.split()[0]) < 60


def test_shutdown_ends_qemu(guest: vmtest.Guest) -> None:
    """shutdown() returns when QEMU has ended, and a command after it is a usage error."""
    pid = guest.pid
    guest.shutdown()
    assert not psutil.pid_exists(pid)
    with pytest.raises(UsageError, match="has ended"):
        guest.run("true")


def test_power_off_from_inside(guest: vmtest.Guest) -> None:
    """A command that powers off raises GuestGone at once, and wait() then gives QEMU's exit code."""
    with pytest.raises(GuestGone, match="guest-shutdown"):
        guest.run("poweroff -f; sleep 1000")
    assert guest.wait() == 0


def test_reset_revives_a_crashed_guest(guest: vmtest.Guest) -> None:
    """A panic ends a wait at once with its report, each later use says it again, and reset() brings the guest back."""
    with pytest.raises(GuestPanicked) as caught:
        guest.run("echo c > /proc/sysrq-trigger; sleep 1000", timeout=1000)
    assert caught.value.report.kind == "panic"
    assert "sysrq_handle_crash" in caught.value.report.text
    assert "QEMU command line" in str(caught.value)
    for again in (lambda: guest.run("true"), lambda: guest.console.expect("never"), lambda: guest.wait()):
        with pytest.raises(GuestPanicked):
            again()
    guest.reset()
    assert guest.run("echo alive").stdout == "alive\n"
    assert [report.title for report in guest.reports] == [caught.value.report.title]


def test_printed_panic_is_no_panic(guest: vmtest.Guest) -> None:
    """Text that looks like a panic, written to the console by a user, does not end a guest that still answers."""
    text = "[  100.000000] Kernel panic - not syncing: only text"
    guest.run(f"echo '{text}' > /dev/console; echo '{text.replace('only', 'more')}' > /dev/console").check()
    guest.console.expect_exact("more text")
    assert guest.run("sleep 1; echo alive").stdout == "alive\n"


def test_pause_and_resume(guest: vmtest.Guest) -> None:
    """A paused guest runs nothing and says so; resumed, it goes on where it was."""
    guest.pause()
    with pytest.raises(UsageError, match="is paused"):
        guest.run("true")
    guest.resume()
    assert guest.run("echo on").stdout == "on\n"


def test_killed_agent_is_told_and_comes_back(guest: vmtest.Guest) -> None:
    """A command that kills everything, our agent too, ends at once with GuestGone; init starts the agent again."""
    with pytest.raises(GuestGone, match="agent was killed"):
        guest.run("kill -9 -1; sleep 1000", timeout=1000)
    assert guest.run("echo alive").stdout == "alive\n"


def test_killed_qemu_is_told(guest: vmtest.Guest) -> None:
    """When QEMU is killed from outside, a waiting command raises QemuDied with the signal and the evidence."""
    os.kill(guest.pid, signal.SIGKILL)
    with pytest.raises(QemuDied, match="SIGKILL") as caught:
        guest.run("sleep 1000")
    assert caught.value.exit_code == -9
    assert "QEMU command line" in str(caught.value)


def test_dying_qemu_shows_its_stderr(boot: Boot) -> None:
    """A QEMU that refuses its command line is reported with its own words and its exit status."""
    with pytest.raises(QemuDied, match="exited with status 1") as caught:
        boot(qemu_args=["-device", "no-such-device"])
    assert "no-such-device" in caught.value.evidence["QEMU stderr"]


def test_boot_timeout_says_what_was_seen(boot: Boot) -> None:
    """A guest that never answers ends with BootTimeout, the last line of its console, and nothing left behind."""
    with pytest.raises(BootTimeout, match=r"did not answer within 10 s of its start; last seen: \[ ") as caught:
        boot(append="rdinit=/bin/sleep -- 1000", trim=False, boot_timeout=10)
    assert "Run /bin/sleep as init process" in caught.value.evidence["console tail"]


def test_context_manager_leaves_nothing(tmp_path: Path) -> None:
    """After the with block, even one left by an exception, nothing remains but the logs that were asked for."""
    with pytest.raises(GuestError), vmtest.boot(logs=tmp_path / "logs") as guest:  # noqa: PT012
        guest.console.expect_exact("vmtest-init: ready")
        guest.run("false").check()
    assert not psutil.pid_exists(guest.pid)
    assert not guest._life.workdir.path.exists()
    assert b"vmtest-init: ready" in (tmp_path / "logs" / "console.log").read_bytes()
    guest.close()


def test_qmp_passes_through(shared: vmtest.Guest) -> None:
    """qmp() gives QEMU's answer, and QEMU's words as QmpError where it refuses."""
    assert shared.qmp("query-status") == {"status": "running", "running": True, "singlestep": False}
    with pytest.raises(QmpError, match="has not been found"):
        shared.qmp("no-such-command")


def test_too_little_memory(boot: Boot) -> None:
    """A guest with less memory than its image needs is refused before it is started, saying how much it needs."""
    with pytest.raises(UsageError, match="does not boot with 32 MiB") as caught:
        boot(memory=32)
    assert "at least" in caught.value.hint


def test_panic_that_reboots_is_a_panic(boot: Boot) -> None:
    """With panic=-1 the kernel's own reboot does not hide its panic, whether QEMU goes on or ends by it."""
    guest = boot(append="panic=-1")
    with pytest.raises(GuestPanicked, match="sysrq"):
        guest.run("echo c > /proc/sysrq-trigger; sleep 1000", timeout=1000)
    guest.reset()
    assert guest.run("echo alive").stdout == "alive\n"
    guest = boot(append="panic=-1", qemu_args=["-no-reboot"])
    with pytest.raises(GuestPanicked, match="sysrq"):
        guest.run("echo c > /proc/sysrq-trigger; sleep 1000", timeout=1000)


def test_wait_knows_its_limits(guest: vmtest.Guest) -> None:
    """wait(timeout=0) looks once; a wait in another thread ends when the guest is killed."""
    with pytest.raises(GuestError, match="did not power off within 0 s"):
        guest.wait(timeout=0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(guest.wait)
        guest.kill()
        assert waiting.result(60) == -9
    with pytest.raises(UsageError, match="has ended"):
        guest.reset()


def test_reset_of_a_dead_qemu_says_how_it_died(guest: vmtest.Guest) -> None:
    """Where QEMU has died, reset() and pause() raise QemuDied with the evidence."""
    os.kill(guest.pid, signal.SIGSEGV)
    for action in (guest.reset, guest.pause):
        with pytest.raises(QemuDied, match="SIGSEGV") as caught:
            action()
        assert "QEMU command line" in caught.value.evidence
