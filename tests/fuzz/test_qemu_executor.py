"""The executor ``qemu``: a whole machine, exact exceptions, and what happens when QEMU dies or hangs."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import psutil
import pytest
from oncase import run

from vmtest.errors import HostError, UsageError
from vmtest.executors import executor
from vmtest.executors.qemu import Engine
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import CODE, DATA, PAGE, isa

X86 = isa("x86_64")
END = CODE + PAGE
INC = "x86_64 ffc0"
ABORTS = "x86_64 c4e37d0bc101"  # vroundsd with VEX.L, which QEMU 7.2 to 10.0 has an assertion against


def _qemus() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith("qemu-system")]


def _is_gone(process: psutil.Process) -> bool:
    """All its threads have ended, and its end of a pipe with them; its parent need not have seen it yet."""
    return process.status() == psutil.STATUS_ZOMBIE and len(list(Path(f"/proc/{process.pid}/task").iterdir())) == 1


# Intel SDM, volume 3, section 6.15: vector, error code, address.
EXCEPTIONS = [
    ("x86_64 488b00 rax=0x1234", 14, 4, 0x1234),  # a user's read of what is not present
    ("x86_64 488900 rax=0x1234", 14, 6, 0x1234),  # a write
    ("x86_64 e900000030", 14, 0x14, END + 0x30000000),  # a fetch
    ("x86_64 488b00 rax=0xffffffff80008000", 14, 5, 0xFFFFFFFF80008000),  # the runner's memory, which is not for users
    ("x86_64 488b00 rax=0x8000000000000000", 13, 0, None),  # an address that is not canonical
    ("x86_64 fa", 13, 0, None),  # cli
    ("x86_64 e480", 13, 0, None),  # in al, 0x80
    ("x86_64 0f30", 13, 0, None),  # wrmsr
    ("x86_64 f7f3", 0, None, None),
    ("x86_64 0f0b", 6, None, None),
    ("x86_64 d9e8d9eedef99b fcw=0x37b", 16, None, None),  # 1/0 by x87, whose exception is not masked
    ("x86_64 8ed8 rax=0x1003", 13, 0x1000, None),  # a selector beyond the table
    ("x86_64 8ed8 rax=0x1007", 13, 0x1004, None),  # one of a local table, which is none
    # Arm ARM (DDI 0487), D17.2.37: class and syndrome, whose low bits are the kind of fault and bit 6 a write.
    ("aarch64 200040f9 x1=0x1234", 0x24, 6, 0x1234),  # ldr x0, [x1]: no table of level 2
    ("aarch64 200000f9 x1=0x20002000", 0x24, 0x47, 0x20002000),  # str x0, [x1]: no page
    ("aarch64 20001fd6 x1=0x30000000", 0x20, 6, 0x30000000),  # br x1
    ("aarch64 20001fd6 x1=0x20000002", 0x22, 0, 0x20000002),  # to where no instruction can be
    ("aarch64 210300d4", 0x15, 25, None),  # svc #25
    ("aarch64 e00020d4", 0x3C, 7, None),  # brk #7
    ("aarch64 00000000", 0, 0, None),  # udf
    ("aarch64 000038d5", 0x18, 0x300001, None),  # mrs x0, midr_el1
    # The RISC-V privileged specification, 3.1.15: causes.
    ("riscv64 83b00000 x1=0x1234", 13, None, 0x1234),  # ld x1, 0(x1)
    ("riscv64 23301000", 15, None, 0),  # sd x1, 0(x0)
    ("riscv64 67800000 x1=0x30000000", 12, None, 0x30000000),  # jr x1
    ("riscv64 73000000", 8, None, None),  # ecall
    ("riscv64 73001000", 3, None, None),  # ebreak
    ("riscv64 00000000", 2, None, None),
    ("riscv64 73000030", 2, None, None),  # csrw mstatus, x0
]


@pytest.mark.parametrize(("line", "vector", "error", "address"), EXCEPTIONS)
def test_exceptions_are_exact(line: str, vector: int, error: int | None, address: int | None) -> None:
    """An exception is told with its vector, error code and address, as ring 3 has it under an operating system."""
    (outcome,) = run("qemu", line)
    assert (outcome.status, outcome.vector, outcome.error, outcome.address) == ("exception", vector, error, address)


def test_whole_state() -> None:
    """AVX's upper halves and x87 are set before a case and told after it (Intel SDM, volume 1, sections 8 and 14)."""
    ones = "ymm1h=0xffffffffffffffffffffffffffffffff"
    add, push, upper, control = run(
        "qemu",
        f"x86_64 c5fdd4c1 {ones} ymm0h=5",  # vpaddq ymm0, ymm0, ymm1
        "x86_64 d9e8 fcw=0x37f st0=0x40008000000000000000 ftw=0x80 fsw=0x3800",  # fld1 above a 2.0
        "x86_64 c5f877 ymm9h=9",  # vzeroupper
        "x86_64 d93c24 fcw=0x27f",  # fnstcw [rsp]
    )
    assert X86.said(add.state)["ymm0h"] == (0xFFFFFFFFFFFFFFFF << 64) + 4
    assert X86.said(push.state) == {
        "fsw": 0x3000,
        "ftw": 0xC0,
        "st0": 0x3FFF8000000000000000,
        "st1": 0x40008000000000000000,
    }
    assert X86.said(upper.state) == {}
    assert control.writes == ((PAGE, b"\x7f\x02"),)


NOTHING = {"x86_64": "90", "aarch64": "1f2003d5", "riscv64": "13000000"}
OTHERS = {"x86_64": {"ftw": 0xFF, "rflags": 0xCD7}, "aarch64": {"nzcv": 0xA0000000}, "riscv64": {}}
ENDLESS = {"x86_64": "ebfe", "aarch64": "00000014", "riscv64": "6f000000"}


@pytest.mark.parametrize("name", NOTHING)
def test_all_registers_come_back(name: str) -> None:
    """What a case does not change is told as it began, whatever it was, and what the window had is there."""
    row = isa(name)
    names = [name for name in row.places if name not in ("rflags", "mxcsr", "fcw", "fsw", "ftw", "nzcv")]
    values = {name: (0x0123456789ABCDEF * (n + 3)) & 0x3FFFFFFFFFFFFFFF for n, name in enumerate(names)}
    state = row.state(values | OTHERS[name])
    memory = ((0, b"first"), (PAGE - 2, b"over"), (2 * PAGE - 4, b"last"))
    with executor("qemu", row) as found:
        (outcome,) = found.run([Case(isa=row, code=bytes.fromhex(NOTHING[name]), state=state, memory=memory)])
    assert outcome == Outcome("ok", state, (), END)


@pytest.mark.parametrize("name", NOTHING)
def test_an_endless_case_among_others(name: str) -> None:
    """On each instruction set what never ends is a timeout by the runner's own timer, and what is behind it runs."""
    with executor("qemu", isa(name)) as found:
        nothing, endless = Case.parse(f"{name} {NOTHING[name]}"), Case.parse(f"{name} {ENDLESS[name]}")
        (before,) = found.run([nothing])
        (process,) = _qemus()
        statuses = [outcome.status for outcome in found.run([endless, nothing, endless, nothing])]
        assert statuses == ["timeout", "ok", "timeout", "ok"]
        assert found.run([nothing]) == [before]
        assert _qemus() == [process]


# Each writes to the beginning of its window, to that of its page of code, and to control registers; and reads these.
LEAVES = {
    "x86_64": ("8907 8906 d92e f3480faed0", "8b07 8b0e f3480faec3", "rdi", "rsi", "rax=0x27f"),
    "aarch64": ("200000b9400000b903441bd543d01bd5", "240040b9470040b905443bd546d03bd5", "x1", "x2", "x0=5 x3=0x400000"),
    "riscv64": ("23a0a000 2320a100 73903500", "03a60000 03270100 f3263000", "x1", "x2", "x10=5 x11=0xff"),
}


@pytest.mark.parametrize("name", LEAVES)
def test_nothing_is_left_of_a_case(name: str) -> None:
    """What a case has written to memory and control registers the next one does not see, and finds zeros."""
    write, read, code, data, values = LEAVES[name]
    places = f"{code}={CODE:#x} {data}={DATA:#x}"
    look = Case.parse(f"{name} {read.replace(' ', '')} {places}")
    wrote, found = run("qemu", f"{name} {write.replace(' ', '')} {places} {values} [4096]=ff", str(look))
    assert wrote.status == "ok"
    assert wrote.writes == ((0, wrote.writes[0][1]),)
    assert found == Outcome("ok", look.state, (), END)


# Each jumps to its window, where it adds 1 or 2 to a register, and jumps to the end.
JUMPS = {
    "x86_64": (f"ffe0 rax={DATA:#x} rcx={END:#x}", ("ffc3ffe1", "83c302ffe1"), "rbx"),
    "aarch64": (f"20001fd6 x1={DATA:#x} x2={END:#x}", ("0004009140001fd6", "0008009140001fd6"), "x0"),
    "riscv64": (f"67800000 x1={DATA:#x} x5={END:#x}", ("1305150067800200", "1305250067800200"), "x10"),
}


@pytest.mark.parametrize("name", JUMPS)
def test_code_in_the_window(name: str) -> None:
    """Code that a case has in its window runs, and not what was translated of the one before at the same place."""
    case, codes, register = JUMPS[name]
    outcomes = run("qemu", *(f"{name} {case} [0]={code}" for code in codes * 2))
    assert [outcome.status for outcome in outcomes] == ["ok"] * 4
    assert [isa(name).said(outcome.state)[register] for outcome in outcomes] == [1, 2, 1, 2]


def test_traces_that_cannot_be_removed() -> None:
    """Where a case has set flags that only a new QEMU is free of, the next case runs on one. Nobody has died.

    QEMU 7.2 to 10.0 lets an IRETD of ring 3 enter virtual-8086 mode, with all flags, of which VIP stays.
    """
    enter = "cf [0x1000]=000000100001000002021200001000200000000000000000000000000000000000000000"
    with executor("qemu", X86) as found:
        lines = ("9c", enter, "9c", enter, enter, "9c", enter)
        outcomes = found.run([Case.parse(f"x86_64 {line}") for line in lines])
        assert [outcome.status for outcome in outcomes] == [
            "ok",
            *["exception", "ok"],
            *["exception"] * 2,
            "ok",
            "exception",
        ]
        assert outcomes[0] == outcomes[2] == outcomes[5]
        assert outcomes[0].writes == ((PAGE - 8, b"\x02\x02"),)
        assert found.deaths == 0


def test_batches() -> None:
    """More cases than a batch has, some of which end early or never, come back in their order, each its own."""
    lines = [f"{INC} rax={n} [{n}]={n % 256:02x}" for n in range(1300)]
    for at in (0, 511, 512, 700):
        lines[at] = "x86_64 ebfe"
    lines[3] = "x86_64 0f0b"
    outcomes = run("qemu", *lines)
    for n, outcome in enumerate(outcomes):
        if n in (0, 511, 512, 700):
            assert outcome.status == "timeout"
        elif n == 3:
            assert (outcome.status, outcome.vector) == ("exception", 6)
        else:
            assert X86.said(outcome.state)["rax"] == n + 1


def test_endless_cases_end_by_the_runners_own_timer() -> None:
    """A case that loops, in whatever way it does, is a timeout, and its QEMU runs the next: nothing is restarted."""
    with executor("qemu", X86) as found:
        (before,) = found.run([Case.parse(INC)])
        (process,) = _qemus()
        lines = ("x86_64 ebfe", "x86_64 f390ebfc", "x86_64 e8fbffffff", f"x86_64 f3a4ebfc rdi={DATA} rsi={DATA} rcx=64")
        outcomes = found.run([Case.parse(line) for line in lines])
        assert [outcome.status for outcome in outcomes] == ["timeout", "timeout", "exception", "timeout"]
        assert found.run([Case.parse(INC)]) == [before]
        assert _qemus() == [process]


def test_a_death_names_its_case() -> None:
    """Where QEMU aborts that one case has died, by its signal, and all others have their outcomes."""
    lines = [f"{INC} rax={number}" for number in range(600)]
    deaths = (0, 3, 4, 511, 599)
    for at in deaths:
        lines[at] = ABORTS
    with executor("qemu", X86) as found:
        outcomes = found.run([Case.parse(line) for line in lines])
        assert found.deaths == len(deaths)
    for number, outcome in enumerate(outcomes):
        if number in deaths:
            assert (outcome.status, outcome.signal) == ("died", signal.SIGABRT)
        else:
            assert X86.said(outcome.state)["rax"] == number + 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_qemu_killed_or_frozen_from_outside(number: int) -> None:
    """A QEMU that somebody kills while it waits, or that hangs, is replaced, and the cases have their outcomes."""
    case = Case.parse(INC)
    with executor("qemu", X86) as found:
        before = found.run([case, case])
        (process,) = _qemus()
        process.send_signal(number)
        while number == signal.SIGKILL and not _is_gone(process):
            pass
        assert found.run([case, case]) == before
        assert found.deaths == 0


def test_a_guest_that_hangs_twice() -> None:
    """A case with which the guest has had to be stopped a second time is a timeout, and the one behind it runs."""
    engine = Engine(X86)
    give = engine._board.give
    stops = [True, True, False]

    def stop_instead(cases: object) -> None:
        give(cases)  # type: ignore[arg-type]
        if stops.pop(0):
            engine.stop()

    engine._board.give = stop_instead  # type: ignore[method-assign]
    outcomes = engine.run_all([Case.parse(INC), Case.parse(INC)], lambda index: None)
    assert [outcome.status for outcome in outcomes] == ["timeout", "ok"]
    engine.stop()
    engine._bury()


def test_qemu_ends_with_its_worker() -> None:
    """When the worker is killed its QEMU ends at once, in the middle of a case."""
    with executor("qemu", X86) as found:
        found.run([Case.parse(INC)])
        (process,) = _qemus()
        worker = process.parent()
        assert worker is not None
        worker.kill()
        assert not psutil.wait_procs([process], timeout=10)[1]


def test_any_qemu_by_its_path(tmp_path: Path) -> None:
    """qemu:PATH runs that binary, is called so, and says its version; what is no QEMU for it is told as what it is."""
    usual = shutil.which("qemu-system-x86_64")
    assert usual is not None
    script = tmp_path / "qemu: mine"
    script.write_text(f'#!/bin/sh\nexec {usual} "$@"\n')
    script.chmod(0o755)
    with executor(f"qemu:{script}", X86) as found:
        assert found.name == f"qemu:{script}"
        assert found.run([Case.parse(INC)]) == run("qemu", INC)
        assert found.description == executor("qemu", X86).description
    with pytest.raises(UsageError, match="is not a QEMU system emulator"):
        executor("qemu:/bin/true", X86)
    other = shutil.which("qemu-system-aarch64")
    assert other is not None
    with pytest.raises(UsageError, match="emulates aarch64, and the guest is x86_64"):
        executor(f"qemu:{other}", X86)


def test_no_qemu_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no QEMU for an instruction set, or nothing that ends it, the error says so, and what to do."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="cannot be had here: setpriv is missing"):
        executor("qemu", X86)
    (tmp_path / "setpriv").symlink_to(setpriv)
    with pytest.raises(HostError, match=r"cannot be had here: qemu-system-x86_64 is not on PATH.*install"):
        executor("qemu", X86)


def test_a_qemu_that_does_not_come_up(tmp_path: Path) -> None:
    """A QEMU that ends before the runner has said that it waits is told with its own words."""
    usual = shutil.which("qemu-system-x86_64")
    script = tmp_path / "qemu"
    script.write_text(f'#!/bin/sh\ncase "$*" in *-serial*) set -- -M nonsense;; esac\nexec {usual} "$@"\n')
    script.chmod(0o755)
    with executor(f"qemu:{script}", X86) as found, pytest.raises(HostError) as caught:
        found.run([Case.parse(INC)])
    assert "unsupported machine type" in str(caught.value.evidence)
