"""`vmtest snapshot`, and `vmtest run` with snapshots, as people run them; with a cache of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from owncache import own_cache

VMTEST = str(Path(sys.executable).with_name("vmtest"))


class Cli:
    """Runs `vmtest` with that cache."""

    def __init__(self, home: Path) -> None:
        self.cache = own_cache(home)

    def __call__(self, *args: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """Run it, see its exit code, and that it ended well."""
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.cache.parent), **more}
        done = subprocess.run(
            [VMTEST, *args], capture_output=True, text=True, timeout=300, check=False, env=environment
        )
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr
        return done

    def refused(self, *args: str, **more: str) -> str:
        """Run what cannot be; the one line, besides a hint, that says so."""
        done = self(*args, code=2, **more)
        assert done.stdout == ""
        first, *rest = done.stderr.splitlines()
        assert all(line.startswith("  hint: ") for line in rest)
        assert first.startswith("vmtest: usage error: ")
        return done.stderr.removeprefix("vmtest: usage error: ")

    def names(self) -> list[str]:
        """The snapshots that people have named."""
        return [row["name"] for row in self.rows() if not row["what"].startswith("template:")]

    def rows(self) -> list[dict[str, Any]]:
        """What list --json says."""
        return json.loads(self("snapshot", "list", "--json").stdout)  # type: ignore[no-any-return]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command, with a cache that has no snapshots."""
    return Cli(tmp_path / "cache")


def test_from_create_to_prune(cli: Cli, tmp_path: Path) -> None:
    """A snapshot is created by a set-up command, listed, shown, begun in by run --from, and removed."""
    assert cli("snapshot", "list").stdout == "no snapshots yet\n"
    assert cli.rows() == []

    done = cli("snapshot", "create", "ready", "--memory", "200", "--", "echo setting up; echo kept > /root/mark")
    assert done.stdout.splitlines()[0] == "setting up"
    assert "vmtest run --from ready -- COMMAND" in done.stdout.splitlines()[-1]
    (named, template) = cli.rows()
    assert (named["name"], named["guest"], named["accel"], named["memory"]) == (
        "ready",
        "linux-x86_64",
        "tcg",
        "200 MiB",
    )
    assert named["what"] == "linux-x86_64, saved by its user"
    assert template["what"] == "template: linux-x86_64 as it has just booted"
    assert all(0 < row["size"] < 200 << 20 for row in (named, template))
    assert all(abs(time.time() - row["used"]) < 300 for row in (named, template))
    table = cli("snapshot", "list").stdout
    assert [line.split()[0] for line in table.splitlines()] == ["name", "-" * 16, "ready", template["name"]]
    shown = json.loads(cli("snapshot", "show", "ready").stdout)
    assert (shown["name"], shown["machine"]["memory"]) == ("ready", 200)
    assert json.loads(cli("snapshot", "show", str(template["name"])).stdout)["key"] == template["name"]

    for _ in range(2):  # what one does to it is not the next one's
        done = cli("run", "--from", "ready", "--", "cat /root/mark; rm /root/mark; exit 7", code=7)
        assert done.stdout == "kept\n"
    assert cli("run", "--from", "ready", "--hostname", "other", "--", "hostname").stdout == "other\n"
    assert cli("snapshot", "create", "more", "--from", "ready", "--", "echo more >> /root/mark").stdout
    assert cli("run", "--from", "more", "--", "cat", "/root/mark").stdout == "kept\nmore\n"

    assert cli("snapshot", "prune").stdout == "nothing to remove\n"
    assert cli("snapshot", "prune", "--max-size", "0").stdout.startswith(f"{template['name']}: ")
    assert cli.names() == ["more", "ready"] == [row["name"] for row in cli.rows()]
    assert "MB freed" in cli("snapshot", "rm", "ready").stdout
    assert cli("run", "--from", "more", "--", "cat", "/root/mark").stdout == "kept\nmore\n"
    assert cli("snapshot", "prune", "--max-size", "0", "--named").stdout.startswith("more: ")
    assert cli("snapshot", "list").stdout == "no snapshots yet\n"


def test_cold_needs_no_template(cli: Cli) -> None:
    """run --cold boots the guest and keeps nothing; without it a template is kept, which the next run is a clone of."""
    assert cli("run", "--cold", "--", "uname").stdout == "Linux\n"
    assert cli.rows() == []
    assert "for the template of its clones" in cli("run", "--", "uname").stderr
    assert len(cli.rows()) == 1
    assert cli("run", "--", "uname").stderr == ""


def test_failed_set_up(cli: Cli) -> None:
    """Where the set-up command fails nothing is kept, and its exit code is the command's."""
    done = cli("snapshot", "create", "ready", "--", "echo out; echo why >&2; exit 7", code=7)
    assert done.stdout == "out\n"
    assert done.stderr.splitlines()[-2:] == ["why", "vmtest: the command failed (exit code 7): nothing is kept"]
    assert cli.names() == []
    done = cli("snapshot", "create", "ready", "--", "kill -9 $$", code=137)
    assert cli.names() == []
    done = cli("snapshot", "create", "ready", "--", "echo c > /proc/sysrq-trigger; sleep 1000", code=2)
    assert "the guest's kernel crashed" in done.stderr
    assert cli.names() == []
    assert "there is no snapshot named 'ready'" in cli.refused("run", "--from", "ready", "--", "true")


def test_refusals(cli: Cli) -> None:
    """What cannot be is one line that begins with "vmtest: usage error:" and exit code 2, without a traceback."""
    for command in (["run", "--from", "nosuch", "--", "true"], ["snapshot", "show", "nosuch"]):
        assert "there is no snapshot named 'nosuch'\n  hint: there are none yet" in cli.refused(*command)
    assert "there is no snapshot named 'nosuch'" in cli.refused("snapshot", "rm", "nosuch")
    for bad in ("../up", ".hidden", "a/b", "x" * 101, "a b", "字" * 90, "0123456789abcdef"):
        assert f"{bad!r} cannot be the name of a snapshot" in cli.refused("snapshot", "create", bad)
        assert "cannot be the name of a snapshot" in cli.refused("run", "--from", bad, "--", "true")
    for bad in ("much", "-1", "1.5G", "", "10 Q"):
        assert f"--max-size: {bad!r} is not a size" in cli.refused("snapshot", "prune", f"--max-size={bad}")
    assert "VMTEST_SNAPSHOT_LIMIT: 'much' is not a size" in cli.refused(
        "snapshot", "prune", VMTEST_SNAPSHOT_LIMIT="much"
    )
    assert "unknown guest 'nosuch'" in cli.refused("snapshot", "create", "mine", "nosuch")

    cli("snapshot", "create", "taken")
    assert "there is a snapshot named 'taken' already" in cli.refused("snapshot", "create", "taken")
    assert "snapshots: taken" in cli.refused("run", "--from", "nosuch", "--", "true")
    said = cli.refused("run", "linux-x86_64", "--from", "taken", "--", "true")
    assert "--from taken says which guest it is" in said
    for option, value in (("--memory", "300"), ("--smp", "2"), ("--append", "x"), ("--nic", "user")):
        said = cli.refused("run", "--from", "taken", option, value, "--", "true")
        assert f"{option[2:]} = {value} cannot be had of a guest that begins in the snapshot taken" in said
    for option in ("--cold", "--no-trim"):
        assert "cannot be had of a guest" in cli.refused("run", "--from", "taken", option, "--", "true")
    assert "cannot be saved: QEMU before 10.2 loses" in cli.refused("snapshot", "create", "rv", "linux-riscv64")
    assert "there is no snapshot named 'nosuch'" in cli.refused("snapshot", "rm", "taken", "nosuch")
    assert cli.names() == ["taken"]  # all or none


def test_damaged_snapshot(cli: Cli) -> None:
    """A damaged snapshot is listed as such, refused by run and show as a host error, and can be removed."""
    cli("snapshot", "create", "spoilt")
    state = cli.cache / "snapshots" / "spoilt" / "state"
    state.write_bytes(state.read_bytes()[:-1] + b"!")
    for command in (["run", "--from", "spoilt", "--", "true"], ["snapshot", "show", "spoilt"]):
        done = cli(*command, code=2)
        assert done.stderr.startswith("vmtest: host error: the snapshot ")
        assert "state has changed since it was saved" in done.stderr
    (state.parent / "manifest.json").write_text("{}")
    assert next(row["what"] for row in cli.rows() if row["name"] == "spoilt").startswith("damaged: ")
    (state.parent / "manifest.json").unlink()
    assert next(row["what"] for row in cli.rows() if row["name"] == "spoilt").startswith("damaged: ")
    assert "freed" in cli("snapshot", "rm", "spoilt").stdout
    assert cli.names() == []
    cli("snapshot", "create", "spoilt")


def test_help() -> None:
    """The help of each command says how it is used."""
    for command in ("create", "list", "show", "rm", "prune"):
        done = subprocess.run([VMTEST, "snapshot", command, "--help"], capture_output=True, text=True, check=True)
        assert "Usage: vmtest snapshot " + command in done.stdout
    done = subprocess.run([VMTEST, "snapshot", "--help"], capture_output=True, text=True, check=True)
    assert "vmtest run --from ready" in done.stdout
