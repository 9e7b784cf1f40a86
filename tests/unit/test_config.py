"""What a project declares of guests, and how requests add up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmtest import config
from vmtest.errors import UsageError
from vmtest.inspect import check_initrd, check_kernel
from vmtest.model.arch import ARCHES
from vmtest.model.spec import GuestSpec


def test_nearest_project_counts(tmp_path: Path) -> None:
    """The nearest directory with a project file decides, whether or not it says anything of guests."""
    (tmp_path / "vmtest.toml").write_text('guest = "far"\n')
    near = tmp_path / "near" / "sub"
    near.mkdir(parents=True)
    assert config.find(near).default == "far"
    (tmp_path / "near" / "pyproject.toml").write_text("[project]\n")
    assert config.find(near).default == "linux-x86_64"
    (tmp_path / "near" / "pyproject.toml").write_text('[tool.vmtest]\nguest = "near"\n')
    assert config.find(near).default == "near"


def test_foreign_trouble_is_not_ours(tmp_path: Path) -> None:
    """A broken pyproject.toml that says nothing of vmtest is passed over; one that does is an error that names it."""
    project = tmp_path / "pyproject.toml"
    project.write_text("this is = = not toml\n")
    assert config.find(tmp_path) == config.Config()
    project.write_text('[tool]\nvmtest = { guest = "inline" }\n')
    assert config.find(tmp_path).default == "inline"
    project.write_text("[tool.vmtest\n")
    with pytest.raises(UsageError, match=r"pyproject\.toml cannot be read"):
        config.find(tmp_path)


def test_paths_count_from_the_file(tmp_path: Path) -> None:
    """Relative paths in a declaration count from its file, whatever the current directory is; names stay names."""
    (tmp_path / "vmtest.toml").write_text(
        '[guests.mine]\nimage = "./img"\nkernel = "k/bzImage"\nqemu = "qemu-system-x86_64"\n'
    )
    spec = config.find(tmp_path).spec("mine")
    assert (spec.image, spec.kernel, spec.qemu) == (
        str(tmp_path / "img"),
        tmp_path / "k" / "bzImage",
        "qemu-system-x86_64",
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"memmory": 1}, "unknown key 'memmory'"),
        ({"memory": "2X"}, "memory = '2X' is not a size in MiB"),
        ({"smp": 0}, "smp = 0 is not a whole number of at least 1"),
        ({"smp": True}, "smp = True is not a whole number"),
        ({"timeout": "nan"}, "timeout = 'nan' is not a positive number"),
        ({"trim": "no"}, "trim = 'no' is not true or false"),
        ({"qemu_args": "-foo"}, "qemu_args = '-foo' is not a list of texts"),
        ({"kernel": "~nobody-of-that-name/k"}, "kernel = '~nobody-of-that-name/k' is not a path"),
        ({"accel": "warp"}, "unknown accelerator 'warp'"),
        ({"channel": "pigeon"}, "channel = 'pigeon' is not one of"),
    ],
)
def test_bad_values_are_named(table: dict[str, object], message: str) -> None:
    """A key or a value that cannot be is named, with what is possible."""
    with pytest.raises(UsageError) as caught:
        GuestSpec.parse(table, where="here")
    assert f"here: {message}" in str(caught.value) or message in str(caught.value)


def test_specs_add_up() -> None:
    """What is nearer wins; append adds up, in order; what nobody says stays open."""
    below = GuestSpec(image="a", memory=1, append="x")
    assert GuestSpec(memory=2, append="y").over(below) == GuestSpec(image="a", memory=2, append="x y")
    assert GuestSpec().over(below) == below


def test_odd_files_are_usage_errors(tmp_path: Path) -> None:
    """A malformed cpio, a truncated gzip and a kernel of another architecture are each one clear error."""
    odd = tmp_path / "odd"
    for content in (b"070701" + b"z" * 200, b"\x1f\x8b\x08\x00garbage"):
        odd.write_bytes(content)
        with pytest.raises(UsageError, match="cannot be read as an initramfs"):
            check_initrd(odd, "")
    odd.write_bytes(bytes(0x38) + b"ARM\x64" + bytes(800))
    check_kernel(odd, ARCHES["aarch64"])
    with pytest.raises(UsageError, match="is a kernel for aarch64, and the guest is x86_64"):
        check_kernel(odd, ARCHES["x86_64"])
    odd.write_bytes(b"\x1f\x8b" + bytes(800))
    with pytest.raises(UsageError, match="is no kernel"):
        check_kernel(odd, ARCHES["x86_64"])


def test_a_user_without_a_home_is_told(tmp_path: Path) -> None:
    """Where neither a home nor XDG_CACHE_HOME is known, that is a host error with what to set."""
    code = (
        "import os, pwd, errno\nfrom vmtest import cache, errors\nos.setuid(54321)\n"
        "try: cache.root()\nexcept errors.HostError as error: print(error)"
    )
    if os.getuid() != 0:
        pytest.skip("becoming a user without a passwd entry needs root")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(config.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "set XDG_CACHE_HOME, or HOME" in done.stdout, done.stderr


def test_public_names_are_pinned() -> None:
    """The public surface is what __all__ says, each name can be imported, and importing vmtest loads nothing heavy."""
    import vmtest

    assert sorted(vmtest.__all__) == vmtest.__all__
    assert {"boot", "Guest", "Result", "GuestSpec", "VmtestError", "GuestPanicked"} <= set(vmtest.__all__)
    for name in vmtest.__all__:
        assert getattr(vmtest, name) is not None
    code = "import sys, vmtest; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "pexpect", "qemu", "pytest", "click"} & set(loaded)
