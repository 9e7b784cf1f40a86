"""Guests and hosts that misbehave."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

import vmtest
from vmtest.errors import GuestError, HostError, QmpError
from vmtest.pytest_plugin.fixtures import Boot


def test_console_flood_without_end(guest: vmtest.Guest) -> None:
    """A guest that floods its console without end still runs commands, and costs bounded memory here."""
    before = psutil.Process().memory_info().rss
    guest.run("(while :; do echo 0123456789012345678901234567890123456789; done > /dev/console) & echo $! > /tmp/pid")
    start = guest.console.total
    while guest.console.total < start + (2 << 20):
        assert guest.run("echo alive", timeout=60).stdout == "alive\n"
    assert psutil.Process().memory_info().rss - before < 64 << 20
    guest.console.expect_exact("0123456789")
    guest.run("kill $(cat /tmp/pid)").check()


def test_qmp_socket_that_closes(guest: vmtest.Guest) -> None:
    """When the monitor's connection breaks, QMP commands raise QmpError at once, and the guest still runs."""
    qmp = guest._running.qmp
    assert qmp is not None
    qmp.close()
    with pytest.raises(QmpError, match="query-status"):
        guest.qmp("query-status")
    assert guest.run("echo on").stdout == "on\n"


def test_stopped_qemu_times_out(guest: vmtest.Guest) -> None:
    """A QEMU that hangs is told by timeouts, and is still killed at the end."""
    os.kill(guest.pid, signal.SIGSTOP)
    with pytest.raises(GuestError, match="did not end within 1 s"):
        guest.run("true", timeout=1)
    guest.kill()
    assert not psutil.pid_exists(guest.pid)


def test_kernel_without_the_agents_drivers(boot: Boot) -> None:
    """Where the kernel cannot have the agent, `auto` falls back to the console, visibly, and `agent` says why."""
    blocked = "initcall_blacklist=virtio_console_init module_blacklist=virtio_console"
    guest = boot(append=blocked, cold=True)
    assert guest.channel == "console"
    assert guest.run("echo out; echo err >&2; exit 3").exit_code == 3
    with pytest.raises(GuestError, match="its agent does not answer"):
        boot(append=blocked, channel="agent", boot_timeout=20, cold=True)


def test_full_disk_is_told(tmp_path: Path) -> None:
    """No room for a guest's directory is a HostError that says where."""
    full = tmp_path / "full"
    full.mkdir()
    if os.getuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    code = os.system(f"mount -t tmpfs -o size=4k,nr_inodes=2 tmpfs {full}")
    assert code == 0
    try:
        import tempfile

        saved, tempfile.tempdir = tempfile.tempdir, str(full)
        try:
            with pytest.raises(HostError, match=str(full)):
                vmtest.boot(cold=True)
        finally:
            tempfile.tempdir = saved
    finally:
        os.system(f"umount {full}")
