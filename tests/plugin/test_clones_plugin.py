"""Clones, pools, templates and snapshots as users of the pytest plugin meet them, in pytest runs of its own."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import psutil
import pytest
from owncache import own_cache

PRISTINE = """
    import pytest

    @pytest.mark.parametrize("number", range(4))
    def test_pristine(guest, number):
        assert guest.origin.startswith("a clone of linux-x86_64-")
        assert guest.run("ls /tmp; hostname").stdout == "vmtest\\n"
        guest.run("touch /tmp/mark; hostname ruined; rm -rf /usr")
"""

POOL = """
    import os

    import pytest

    from vmtest import booting

    @pytest.mark.parametrize("number", range(6))
    def test_pool(guest, number):
        assert guest.run("echo on").stdout == "on\\n"
        with open(os.environ.get("PYTEST_XDIST_WORKER", "main") + ".size", "w") as file:
            file.write(str(booting._pool.size))
"""


def _run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The TMPDIR of the run, by which what is left of it can be told."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without templates and snapshots, for the run."""
    own = own_cache(tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(own.parent))
    return own


def _assert_nothing_left(scratch: Path) -> None:
    assert list(scratch.glob("vmtest-*/*")) == []
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(scratch) and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
        except psutil.Error:
            continue
    assert left == []


def _sizes(pytester: pytest.Pytester) -> list[int]:
    return sorted(int(file.read_text()) for file in pytester.path.glob("*.size"))


@pytest.mark.parametrize("pool", ["0", "2"])
def test_each_test_has_a_pristine_clone(pytester: pytest.Pytester, pool: str) -> None:
    """`guest` is a clone of the template, with a pool or without, and knows nothing of the test before."""
    pytester.makepyfile(PRISTINE)
    _run(pytester, f"--vm-pool={pool}").assert_outcomes(passed=4)


def test_cold(pytester: pytest.Pytester) -> None:
    """--vm-cold, vm_cold and @pytest.mark.guest(cold=True) boot a guest for the test, and make no template of it."""
    pytester.makepyfile(
        """
        import pytest

        def test_plain(guest):
            assert guest.origin == ""

        @pytest.mark.guest(cold=True)
        def test_cold(guest, boot):
            assert guest.origin == ""
        """
    )
    _run(pytester).assert_outcomes(passed=1, failed=1)
    _run(pytester, "--vm-cold", "-k", "plain").assert_outcomes(passed=1, deselected=1)
    pytester.makeini("[pytest]\nvm_cold = true\n")
    _run(pytester, "-k", "plain").assert_outcomes(passed=1, deselected=1)


@pytest.mark.parametrize(
    ("args", "sizes"),
    [
        (["--vm-pool=0"], [0]),
        (["--vm-pool=3"], [3]),
        (["--vm-pool=3", "-n2"], [1, 2]),
        (["--vm-pool=1", "-n2"], [0, 1]),
    ],
)
def test_pool(pytester: pytest.Pytester, scratch: Path, args: list[str], sizes: list[int]) -> None:
    """The pools of all workers together have the size asked for, and nothing of them outlives the session."""
    pytester.makepyfile(POOL)
    _run(pytester, *args).assert_outcomes(passed=6)
    assert _sizes(pytester) == sizes
    _assert_nothing_left(scratch)


def test_pool_of_a_session_that_is_stopped(pytester: pytest.Pytester, scratch: Path) -> None:
    """A session that ends early, with more tests to come, leaves nothing of its pool either."""
    pytester.makepyfile(POOL + "        assert number < 1\n")
    _run(pytester, "--vm-pool=3", "-x").assert_outcomes(passed=1, failed=1)
    _assert_nothing_left(scratch)


@pytest.mark.parametrize("size", ["garbage", "-1", "1.5"])
def test_bad_pool(pytester: pytest.Pytester, size: str) -> None:
    """What is no number of guests is a usage error of one clear line, before any test."""
    pytester.makepyfile(PRISTINE)
    result = _run(pytester, f"--vm-pool={size}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.lines[0] == f"ERROR: --vm-pool: '{size}' is not a number of guests"
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


PREPARED = """
    import os

    import pytest

    @pytest.fixture(scope="session", autouse=True)
    def prepared(session_boot, template):
        guest = session_boot()
        guest.run("echo prepared > /root/mark; hostname prepared").check()
        template(guest)
        guest.close()

    @pytest.mark.parametrize("number", range(6))
    def test_prepared(guest, number):
        assert guest.run("cat /root/mark; hostname; ls /tmp").stdout == "prepared\\nprepared\\n"
        assert "prepared by a test's set-up" in guest.origin
        guest.run("rm /root/mark; touch /tmp/ruined")

    @pytest.mark.guest(memory=200)
    def test_other_machine(guest):
        assert guest.run("ls /root; hostname").stdout == "vmtest\\n"
        assert "as it has just booted" in guest.origin
"""


@pytest.mark.parametrize("args", [["--vm-pool=2"], ["-n2"]])
def test_prepared_template(pytester: pytest.Pytester, scratch: Path, args: list[str]) -> None:
    """What a session's set-up has made a template is how each later guest of that machine begins, and no other; it is
    gone with the session.
    """
    pytester.makepyfile(PREPARED)
    _run(pytester, *args).assert_outcomes(passed=7)
    _assert_nothing_left(scratch)
    pytester.makepyfile(test_prepared_template="def test_next(guest): assert guest.run('ls /root').stdout == ''")
    _run(pytester).assert_outcomes(passed=1)


def test_from_a_snapshot(pytester: pytest.Pytester, cache: Path) -> None:
    """--vm-from begins each guest in the state that was kept under the name; an unknown one is told with the known."""
    pytester.makepyfile(
        test_make="""
        def test_make(guest):
            guest.run("echo kept > /root/mark").check()
            guest.snapshot("mine")
        """,
        test_use="""
        import pytest

        @pytest.mark.parametrize("number", range(3))
        def test_use(guest, number):
            assert "mine" in guest.origin
            assert guest.run("cat /root/mark; rm /root/mark").stdout == "kept\\n"
        """,
    )
    _run(pytester, "test_make.py").assert_outcomes(passed=1)
    result = _run(pytester, "--vm-from=mine", "test_use.py")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["vmtest: *from the snapshot mine of linux-x86_64, accelerator tcg"])
    result = _run(pytester, "--vm-from=yours", "test_use.py")
    result.stderr.fnmatch_lines(["ERROR: there is no snapshot named 'yours'*", "*snapshots: mine*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result = _run(pytester, "--vm-from=mine", "--vm-guest=linux-aarch64", "test_use.py")
    result.stderr.fnmatch_lines(["ERROR: --vm-from mine says which guest it is*"])
    result = _run(pytester, "--vm-from=mine", "--vm-cold", "test_use.py")
    result.stderr.fnmatch_lines(["ERROR: cold = True cannot be had of a guest that begins in the snapshot mine*"])
    pytester.makepyfile(
        test_marked="""
        import pytest

        @pytest.mark.guest("linux-aarch64")
        def test_other(guest):
            pass

        @pytest.mark.guest("linux-x86_64")
        def test_same(guest):
            assert guest.run("cat /root/mark").stdout == "kept\\n"
        """
    )
    result = _run(pytester, "--vm-from=mine", "test_marked.py")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*image = linux-aarch64 cannot be had of a guest that begins in the snapshot mine*"])


def test_prepared_from_a_snapshot(pytester: pytest.Pytester, cache: Path) -> None:
    """What a session prepares of a guest that began in a snapshot is how its later guests begin; without clones there
    is nothing to prepare, which is told.
    """
    pytester.makepyfile(test_make="def test_make(guest): guest.snapshot('mine')")
    _run(pytester, "test_make.py").assert_outcomes(passed=1)
    pytester.makepyfile(
        test_prepared="""
        import pytest

        @pytest.fixture(scope="session", autouse=True)
        def prepared(session_boot, template):
            guest = session_boot()
            guest.run("echo prepared > /root/mark").check()
            template(guest)
            guest.close()

        def test_prepared(guest):
            assert guest.run("cat /root/mark").stdout == "prepared\\n"
        """
    )
    _run(pytester, "--vm-from=mine", "test_prepared.py").assert_outcomes(passed=1)
    result = _run(pytester, "--vm-cold", "test_prepared.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*template(guest) needs clones, and --vm-cold boots each guest anew*"])


def test_workers_share_one_template(pytester: pytest.Pytester, cache: Path, tmp_path: Path) -> None:
    """Workers boot one guest for all their clones, and the next session boots none."""
    qemu, log = shutil.which("qemu-system-x86_64"), tmp_path / "log"
    wrapper = tmp_path / "qemu-system-x86_64"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(log))}\nexec {qemu} "$@"\n')
    wrapper.chmod(0o755)
    pytester.makepyfile(PRISTINE, test_other=PRISTINE)
    args = (f"--vm-qemu={wrapper}", "--vm-accel=tcg", "--vm-pool=0")
    _run(pytester, "-n2", *args).assert_outcomes(passed=8)

    def boots() -> tuple[int, int]:
        lines = [line for line in log.read_text().splitlines() if "vmtest" in line and "-kernel" in line]
        return len(lines), sum("-incoming" in line for line in log.read_text().splitlines())

    assert boots() == (1, 8)
    (template,) = (cache / "templates").iterdir()
    manifest = json.loads((template / "manifest.json").read_text())
    assert manifest["origin"] == "linux-x86_64 as it has just booted"
    _run(pytester, *args).assert_outcomes(passed=8)
    assert boots() == (1, 16)


def test_failure_says_that_it_was_a_clone(pytester: pytest.Pytester) -> None:
    """A failing test's report says of what its guest was a clone, and how to try it with one that was booted."""
    pytester.makepyfile("def test_fails(guest): assert guest.run('true').exit_code == 1")
    result = _run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*vmtest: linux-x86_64 under tcg*",
            "a clone of linux-x86_64-*; --vm-cold boots it anew",
            "*vmtest-init: ready*",
        ]
    )


def test_cold_boot_warning(pytester: pytest.Pytester) -> None:
    """A guest that cannot be cloned is booted; the summary of warnings says why, once for all tests; not with cold."""
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.guest(channel="console")
        @pytest.mark.parametrize("number", range(2))
        def test_console(guest, number):
            assert guest.run("echo on").stdout == "on\\n"
            assert guest.origin == ""
        """
    )
    result = _run(pytester)
    result.assert_outcomes(passed=2, warnings=2)
    result.stdout.fnmatch_lines(["*ColdBootWarning: linux-x86_64 is booted anew for each use*channel is console*"])
    assert result.stdout.str().count("ColdBootWarning: ") == 1
    assert "ColdBootWarning" not in _run(pytester, "--vm-cold", "-k", "[0]").stdout.str()


def test_hostname(pytester: pytest.Pytester) -> None:
    """--vm-hostname names each clone, the template stays as it is."""
    pytester.makepyfile("def test_name(guest): assert guest.run('hostname').stdout == 'db-1\\n'")
    _run(pytester, "--vm-hostname=db-1").assert_outcomes(passed=1)
    pytester.makepyfile("def test_name(guest): assert guest.run('hostname').stdout == 'vmtest\\n'")
    _run(pytester).assert_outcomes(passed=1)
