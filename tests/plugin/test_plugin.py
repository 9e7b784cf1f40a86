"""The pytest plugin as its users meet it, in pytest runs of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vmtest import resolve
from vmtest.model.spec import GuestSpec

KERNEL_TEST = """
    def test_kernel(guest):
        assert guest.run("uname -s").stdout == "Linux\\n"
        assert guest.run("exit 3").exit_code == 3
"""


def _run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    # A process of its own: what a run leaves behind would hide in this one.
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)


def test_the_readme_example(pytester: pytest.Pytester) -> None:
    """The README's test passes with nothing configured, and header and summary say which accelerator ran."""
    resolve.check(GuestSpec())  # once a guest was asked for, the header knows QEMU and accelerators
    pytester.makepyfile(KERNEL_TEST)
    result = _run(pytester)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["vmtest: *guest linux-x86_64, QEMU *, accelerator tcg*", "*guests: 1 under tcg; 1 of them clones*"]
    )


def test_xdist_workers_boot_their_own(pytester: pytest.Pytester) -> None:
    """Under pytest -n the tests run side by side, and the summary counts the guests of all workers."""
    pytester.makepyfile(KERNEL_TEST, test_other=KERNEL_TEST)
    result = _run(pytester, "-n", "2")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*guests: 2 under tcg; 2 of them clones*"])


def test_failed_test_shows_its_guest(pytester: pytest.Pytester) -> None:
    """A failing test's report has the console's tail, the command line and the log's path, and the log is there."""
    pytester.makepyfile(
        """
        def test_fails(guest):
            guest.run("echo '<0>seen on the console' > /dev/kmsg")
            guest.console.expect_exact("seen on the console")
            assert guest.run("true").exit_code == 1
        """
    )
    result = _run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*vmtest: linux-x86_64 under tcg*", "QEMU command line: *qemu-system-x86_64*", "*seen on the console*"]
    )
    log = next(line.split(": ", 1)[1] for line in result.outlines if line.startswith("whole console log: "))
    assert b"seen on the console" in Path(log).read_bytes()


def test_panic_fails_the_test_with_its_report(pytester: pytest.Pytester) -> None:
    """A panicking guest fails the test at once, with the kernel's report, and without the plugin's own frames."""
    pytester.makepyfile(
        """
        def test_panics(guest):
            guest.run("echo c > /proc/sysrq-trigger; sleep 1000", timeout=1000)
        """
    )
    result = _run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *GuestPanicked: the guest's kernel crashed: *sysrq*", "*sysrq_handle_crash*"])
    result.stdout.no_fnmatch_line("*vmtest/guest.py:*")


def test_marker_says_which_guest(pytester: pytest.Pytester) -> None:
    """@pytest.mark.guest names the guest and its options; the command line's options win."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.guest("linux-aarch64", smp=2, memory=200)
        def test_marked(guest):
            assert guest.run("uname -m; nproc").stdout == "aarch64\\n2\\n"
            assert guest.machine.memory == 300
        """
    )
    _run(pytester, "--vm-memory=300").assert_outcomes(passed=1)


def test_project_declares_guests(pytester: pytest.Pytester) -> None:
    """Guests of [tool.vmtest.guests] are known by name, one of them by default, and `boot` takes several."""
    pytester.makepyprojecttoml(
        """
        [tool.vmtest]
        guest = "mine"
        [tool.vmtest.guests.mine]
        image = "linux-x86_64"
        append = "vmtest.one"
        memory = "128M"
        """
    )
    pytester.makepyfile(
        """
        def test_declared(guest, boot):
            assert "vmtest.one vmtest.two" in guest.run("cat /proc/cmdline").stdout
            assert guest.machine.memory == 128
            assert boot("linux-riscv64", cold=True).run("uname -m").stdout == "riscv64\\n"
        """
    )
    _run(pytester, "--vm-append=vmtest.two").assert_outcomes(passed=1)


def test_ini_options(pytester: pytest.Pytester) -> None:
    """What the ini file says of guests holds where nothing else says more."""
    pytester.makeini("[pytest]\nvm_smp = 2\nvm_accel = tcg\nvm_trim = false\n")
    pytester.makepyfile(
        """
        def test_ini(guest):
            assert guest.run("nproc").stdout == "2\\n"
            assert "quiet" not in guest.run("cat /proc/cmdline").stdout
        """
    )
    _run(pytester).assert_outcomes(passed=1)


def test_user_kernel(pytester: pytest.Pytester) -> None:
    """--vm-kernel boots the user's kernel."""
    from vmtest import images

    kernel = images.prepare(images.load("linux-x86_64")).kernel
    assert kernel is not None
    own = pytester.path / "my kernel, built" / "bzImage"
    own.parent.mkdir()
    own.write_bytes(kernel.read_bytes())
    pytester.makepyfile(KERNEL_TEST)
    _run(pytester, f"--vm-kernel={own.relative_to(pytester.path)}").assert_outcomes(passed=1)


def test_artifacts_keep_all_logs(pytester: pytest.Pytester) -> None:
    """With --vm-artifacts the logs of passed tests are kept too, in a directory named after the test."""
    pytester.makepyfile(KERNEL_TEST)
    _run(pytester, "--vm-artifacts=logs").assert_outcomes(passed=1)
    (directory,) = (pytester.path / "logs").glob("test_artifacts_keep_all_logs.py-test_kernel-*/guest")
    assert {path.name for path in directory.iterdir()} == {"console.log", "qemu.stderr", "command-line.txt"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--vm-guest=nosuch"], "unknown guest 'nosuch'"),
        (["--vm-accel=nosuch"], "unknown accelerator 'nosuch'"),
        (["--vm-memory=much"], "memory = 'much' is not a size in MiB"),
        (["--vm-kernel=/nowhere"], "the kernel /nowhere cannot be read: No such file"),
        (["--vm-kernel=/etc/passwd"], "/etc/passwd is no kernel that QEMU boots on x86_64"),
        (["--vm-qemu=/bin/true"], "/bin/true"),
        (["--vm-channel=telepathy"], "channel = 'telepathy' is not one of auto, agent, qga, console"),
    ],
)
def test_bad_options_end_the_run_before_it_begins(pytester: pytest.Pytester, args: list[str], message: str) -> None:
    """A wrong option is one clear error before any test, without a traceback, and pytest's code for usage errors."""
    pytester.makepyfile(KERNEL_TEST)
    result = _run(pytester, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{glob_escaped(message)}*"])
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_what_the_host_lacks_fails_only_who_needs_it(pytester: pytest.Pytester) -> None:
    """An accelerator that cannot work here is a clear host error of the tests that boot a guest; others run."""
    pytester.makepyfile(KERNEL_TEST + "\n    def test_other(): pass\n")
    result = _run(pytester, "--vm-accel=hvf")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["vmtest: *host error: *hvf*", "host error: *hvf cannot run this x86_64 guest*"])
    result.stdout.no_fnmatch_line("*fixtures.py*")


def glob_escaped(text: str) -> str:
    """The text for fnmatch_lines, with nothing special in it."""
    return text.replace("[", "[[]")


def test_bad_declarations_are_told(pytester: pytest.Pytester) -> None:
    """A misspelt key in the project's declaration is named with its file, and the right one proposed."""
    pytester.makefile(".toml", vmtest="[guests.mine]\nmemmory = 128\n")
    pytester.makepyfile(KERNEL_TEST)
    result = _run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: *vmtest.toml: [[]guests.mine]: unknown key 'memmory'", "*did you mean 'memory'*"]
    )


def test_bad_marker_fails_its_test_only(pytester: pytest.Pytester) -> None:
    """A marker that cannot be fails its own test with one clear error, and the others run."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.guest("nosuch")
        def test_unknown(guest): pass

        @pytest.mark.guest(memmory=1)
        def test_misspelt(guest): pass

        def test_without_guest(): pass
        """
    )
    result = _run(pytester)
    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(["*unknown guest 'nosuch'*", "*unknown key 'memmory'*"])
    result.stdout.no_fnmatch_line("*fixtures.py*")


def test_help_teaches(pytester: pytest.Pytester) -> None:
    """--help, --markers and --fixtures explain options, marker and fixtures."""
    _run(pytester, "--help").stdout.fnmatch_lines(["*--vm-kernel=FILE*", "*vm_timeout_scale*"])
    _run(pytester, "--markers").stdout.fnmatch_lines(["@pytest.mark.guest(name, *"])
    fixtures = _run(pytester, "--fixtures").stdout
    fixtures.fnmatch_lines(["boot -- *", "*each is a vmtest.Guest*"])
    fixtures.fnmatch_lines(["guest -- *", "*@pytest.mark.guest(*"])


def test_accelerator_is_on_each_report(pytester: pytest.Pytester) -> None:
    """The JUnit report of each test that booted a guest carries the accelerator and QEMU's version."""
    pytester.makepyfile(KERNEL_TEST)
    _run(pytester, "--junitxml=out.xml").assert_outcomes(passed=1)
    text = (pytester.path / "out.xml").read_text()
    assert '<property name="vm_accel" value="tcg"' in text
    assert '<property name="vm_qemu" value="' in text


def test_header_starts_nothing(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty cache a run that boots no guest asks nothing of QEMU or KVM; the header says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))
    pytester.makepyfile("def test_other(): pass")
    result = _run(pytester)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["vmtest: *accelerator auto, not looked at yet: the first guest will tell"])
    assert not list((pytester.path / "cache").rglob("*.json"))


def test_plugin_imports_little() -> None:
    """A pytest run that uses no guest loads none of what boots one."""
    code = "import sys, vmtest.pytest_plugin; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = ("pexpect", "qemu", "vmtest.guest", "vmtest.qemu", "vmtest.images", "vmtest.host")
    assert not [module for module in loaded if module.startswith(heavy)]
