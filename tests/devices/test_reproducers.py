"""Reproducers: from upstream's here-documents, as files, run again, and back into upstream's forms."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmtest.devices import reproducer as reproducers
from vmtest.devices.access import ClockStep, Fill, Flush, In, Load, Out, Reset, SetLine, Store, Write
from vmtest.devices.board import Board
from vmtest.devices.reproducer import Reproducer, read, run
from vmtest.devices.upstream import as_c, as_shell, from_shell
from vmtest.errors import UsageError
from vmtest.host import find_emulator

FIXTURES = Path(__file__).parent.parent.parent / "fixtures/reproducers"
VMTEST = Path(sys.executable).parent / "vmtest"

# docs/specs/edu.rst of QEMU: DMA to where there is no buffer of the device. QEMU 7.2 ends by hw_error().
EDU = """\
Some words before it.

cat << EOF | \\
  ./build/qemu-system-x86_64 -display none -machine accel=qtest -M q35 \\
    -nodefaults -device edu -m 32M -qtest stdio
outl 0xcf8 0x80000810
outl 0xcfc 0xe0000000
outl 0xcf8 0x80000804
outw 0xcfc 0x7
writel 0xe0000088 0xffff0000
writel 0xe0000090 0x4
writel 0xe0000098 0x1
clock_step
EOF
"""


def _vmtest(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([VMTEST, *args], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def test_from_a_report_and_back(tmp_path: Path) -> None:
    """A here-document becomes a file with what it does to the QEMU here; that is there again when it is replayed, and
    comes out as a here-document with the same operations.
    """
    script, made = tmp_path / "edu.sh", tmp_path / "edu.toml"
    script.write_text(
        EDU.replace("-qtest stdio", "-qtest stdio 2>&1 >/dev/null | tee log").replace("0x7", "0x7 /* go */")
    )
    _vmtest("import", str(script), "--title", "DMA out of bounds", "--source", "https://example.org/1")
    found = read(made)
    assert found.signature.startswith("EDU: DMA range ")
    assert found.words.startswith("qemu: hardware error: EDU: DMA range 0x00000000ffff0000")  # QEMU's own, with numbers
    assert (found.binary, found.title) == ("qemu-system-x86_64", "DMA out of bounds")
    assert found.board.arguments == ("-M", "q35", "-nodefaults", "-device", "edu", "-m", "32M")
    assert list(found.seen.values()) == [found.signature]
    said = _vmtest("replay", str(tmp_path), code=1).stdout
    assert "it is still there" in said
    assert said.endswith("1 of 1 are still there\n")
    text = _vmtest("reproducer", str(made)).stdout
    assert text.startswith("# DMA out of bounds\n# https://example.org/1\n")
    again = from_shell(text)
    assert (again.accesses, again.board) == (found.accesses, found.board)


def test_made_smaller(tmp_path: Path) -> None:
    """What a crash does not need is left out of its file, values become simpler, and QEMU still ends as it did; a
    reproducer by which QEMU lives, or ends otherwise, stays as it is, and is the user's mistake.
    """
    noise = "".join(f"writel 0xe0000004 {number:#x}\nreadl 0xe0000008\n" for number in range(40))
    script, made = tmp_path / "edu.sh", tmp_path / "edu.toml"
    script.write_text(EDU.replace("writel 0xe0000088", f"{noise}writel 0xe0000088"))
    _vmtest("import", str(script), "--title", "DMA out of bounds")
    before = read(made)
    assert f"{made}: 88 operations before, " in _vmtest("shrink", str(made), "--time", "30").stdout
    found = read(made)
    assert len(found.accesses) <= len(from_shell(EDU).accesses)
    assert (found.title, found.signature) == ("DMA out of bounds", before.signature)
    assert "it is still there" in _vmtest("replay", str(made), code=1).stdout
    for signature, accesses in ((found.signature, found.accesses[:1]), ("another one", found.accesses)):
        text = replace(found, accesses=accesses, signature=signature).dumps()
        made.write_text(text)
        said = _vmtest("shrink", str(made), code=2).stderr
        assert f"this QEMU does not end as the file says: {signature}" in said
        assert made.read_text() == text


def test_made_smaller_in_its_own_mode(tmp_path: Path) -> None:
    """Where QEMU ends by a reproducer as that sends it, and otherwise in the other mode, that is what is made smaller;
    where nothing smaller is found there is no other file, and an output is the same.
    """
    if (qemu := find_emulator("qemu-system-x86_64")).version >= (8, 0, 0):
        pytest.skip(f"{qemu.version_text} lives in lockstep as well")
    queue = read(FIXTURES / "virtio-blk-pci-assertion-c6c0143b.toml")  # which in lockstep alone ends QEMU
    edu = from_shell(EDU.replace("0x800008", "0x800010").replace("0xe0", "0xd0")).accesses
    board = Board(arguments=(*queue.board.arguments, "-device", "edu"))
    both = replace(queue, board=board, accesses=(*queue.accesses, *edu), seen={}, issue="")
    (pipelined,) = (found for found in [run(replace(both, lockstep=False, signature=""), qemu)] if found)
    assert (in_lockstep := run(both, qemu)) is not None
    assert in_lockstep.signature == queue.signature != pipelined.signature
    made, other = tmp_path / "made.toml", tmp_path / "other.toml"
    made.write_text(replace(both, lockstep=False, signature=pipelined.signature).dumps())
    _vmtest("shrink", str(made), "--time", "20")
    found = read(made)
    assert found.signature == pipelined.signature
    assert len(found.accesses) <= len(edu)
    before = made.read_text()
    assert "nothing smaller was found" in _vmtest("shrink", str(made), "-o", str(other), "--time", "0.1").stdout
    assert read(other) == found
    assert made.read_text() == before


def test_what_is_there_no_more(tmp_path: Path) -> None:
    """A crash that does not happen is gone; one of another signature is told as that."""
    found = from_shell(EDU)
    lives, other = tmp_path / "lives.toml", tmp_path / "other.toml"
    lives.write_text(Reproducer(**{**vars(found), "accesses": found.accesses[:4], "signature": "x"}).dumps())
    other.write_text(Reproducer(**{**vars(found), "signature": "hw/net/x.c f: y", "lockstep": True}).dumps())
    assert "it is gone: QEMU lives" in _vmtest("replay", str(lives)).stdout
    assert "it ends otherwise, at operation" in _vmtest("replay", str(other), code=1).stdout


def test_files() -> None:
    """All that a reproducer has survives its file."""
    accesses = (
        Out(0xCF8, 1, 4),
        Flush(),
        Reset(),
        Store(0x10, b'"\\\n'),
        SetLine("/machine/a[0]", "", 1, 0),
        Load(0, 4),
    )
    found = Reproducer(
        binary="qemu-system-arm",
        board=Board(arguments=("-M", "virt", "-device", 'a,b="c d"'), accel="tcg"),
        accesses=accesses,
        lockstep=True,
        signature='hw/x.c f: a == "b\\c"',
        words="a\x1b\nb",
        unfinished=True,
        title="ä",
        issue="gitlab 1",
        seen={"7.2.0": "SIGSEGV", "10.0": ""},
    )
    assert Reproducer.parse(reproducers.tomllib.loads(found.dumps())) == found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("format = 2", "format 2"),
        ("", "no reproducer"),
        ("format = 1\nbinary = 3", "is to be a str"),
        ("format = 1\nbinary = 'q'", "no arguments and no operations"),
        ("format = 1\nbinary = 'q'\narguments = '\"'\noperations = 'inb 0x80'", "no command line"),
        ("format = 1\nbinary = 'q'\narguments = ''\noperations = 'inb'", "line 1 of its operations"),
        ("format = 1\nbinary = 'q'\narguments = ''\noperations = 'inb 0x10000'", "ports are 0 to 0xffff"),
        ("format = 1\nbinary = 'q'\narguments = ''\noperations = ''", "no operations"),
        ("format = 1\nbinary = 'q'\narguments = ''\noperations = 'inb 1'\nlockstep = 'yes'", "is to be a bool"),
        ("format = 1\nbinary = 'q'\narguments = ''\noperations = 'inb 1'\nseen = 3", "seen = 3"),
        ("= nonsense", "not TOML"),
    ],
)
def test_files_of_nonsense(tmp_path: Path, change: str, told: str) -> None:
    """A file that was edited into nonsense is one clear error that names it, exit code 2, and no traceback."""
    path = tmp_path / "bad.toml"
    path.write_text(change)
    with pytest.raises(UsageError, match=told) as raised:
        read(path)
    assert str(path) in raised.value.message


def test_bad_input(tmp_path: Path) -> None:
    """What is no here-document, what QEMU does not take, and files that are not there: exit code 2, and why."""
    script = tmp_path / "a.sh"
    for text, told in (
        ("echo hello", "no here-document for QEMU"),
        (EDU.replace("outw 0xcfc 0x7", "outw 0x10cfc 0x7"), "ports are 0 to 0xffff"),
        (EDU.replace("0xe0000000", "9" * 23), "its words are not those that outl takes"),
        ("cat << EOF | qemu-system-x86_64 -qtest stdio\nEOF\n", "it has no operations"),
        (EDU.replace("-device edu", "-device edo"), "'edo' is not a valid device model name"),
        (EDU.replace("qemu-system-x86_64", "qemu-system-zx80"), "qemu-system-zx80 is not on PATH"),
    ):
        script.write_text(text)
        done = _vmtest("import", str(script), code=2)
        assert told in done.stderr
        assert "Traceback" not in done.stderr
    assert "cannot be read" in _vmtest("import", str(tmp_path / "nowhere"), code=2).stderr
    assert "cannot be read" in _vmtest("reproducer", str(tmp_path / "nowhere.toml"), code=2).stderr
    made = tmp_path / "a.toml"
    made.write_text(replace(from_shell(EDU), accesses=(Reset(), *from_shell(EDU).accesses), signature="x").dumps())
    before = made.read_text()
    assert f"{made} is there already" in _vmtest("import", str(script), code=2).stderr
    assert f"{made}: it has a reset" in _vmtest("reproducer", str(made), code=2).stderr
    for output in (tmp_path, tmp_path / "none/x.toml"):
        assert "cannot be written" in _vmtest("shrink", str(made), "-o", str(output), code=2).stderr
    assert "--qemu is for another file" in _vmtest("shrink", str(made), "--qemu", "qemu-system-x86_64", code=2).stderr
    assert made.read_text() == before
    assert sorted(tmp_path.iterdir()) == [script, made]


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_c_test_compiles(tmp_path: Path) -> None:
    """The form in C is C, by the declarations that QEMU's libqtest.h has."""
    accesses = (Out(0xCF8, 1, 4), In(0x80, 1), Write(0x10, 1 << 40, 8), Store(0, b"\0a1"), Fill(0, 4, 1), Load(0, 4))
    found = from_shell(EDU)
    text = as_c(replace(found, accesses=(*accesses, ClockStep(), Flush()), signature="a: b"), "some-name")
    (tmp_path / "qemu").mkdir()
    (tmp_path / "qemu" / "osdep.h").write_text("#include <stdint.h>\n#include <stddef.h>\n")
    (tmp_path / "libqtest.h").write_text(LIBQTEST)
    (tmp_path / "test.c").write_text(text)
    command = ["cc", "-Wall", "-Werror", "-fsyntax-only", "-I", str(tmp_path), str(tmp_path / "test.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Found with all sent at once" in text
    assert "main loop" not in as_shell(found)
    *before, step = found.accesses
    assert step == ClockStep()
    waits = as_shell(replace(found, lockstep=True, accesses=tuple(before)))
    assert from_shell(waits).accesses == (*before, ClockStep(10**9))  # where time stands still timers need it
    assert waits.startswith("# found with QEMU's main loop run between operations")
    with pytest.raises(UsageError, match="C test"):
        as_c(replace(found, accesses=(SetLine("p", "", 0, 1),)))
    with pytest.raises(UsageError, match="here-document"):
        as_shell(replace(found, accesses=(Reset(),)))


LIBQTEST = """
typedef struct QTestState QTestState;
QTestState *qtest_init(const char *extra_args);
void qtest_quit(QTestState *s);
uint8_t qtest_inb(QTestState *s, uint16_t addr);
void qtest_outl(QTestState *s, uint16_t addr, uint32_t value);
void qtest_writeq(QTestState *s, uint64_t addr, uint64_t value);
void qtest_bufwrite(QTestState *s, uint64_t addr, const void *data, size_t size);
void qtest_bufread(QTestState *s, uint64_t addr, void *data, size_t size);
void qtest_memset(QTestState *s, uint64_t addr, uint8_t pattern, size_t size);
int64_t qtest_clock_step(QTestState *s, int64_t step);
int64_t qtest_clock_step_next(QTestState *s);
void qtest_add_func(const char *name, void (*function)(void));
void g_test_init(int *argc, char ***argv, ...);
int g_test_run(void);
#define NULL ((void *)0)
"""
