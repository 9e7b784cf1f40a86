"""Every executor on real cases: what the manual says comes of them, and nothing that a case does ends the run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import psutil
import pytest
from oncase import having, run

from vmtest.compare.outcomes import aspects
from vmtest.errors import HostError, UsageError
from vmtest.executors import EXECUTORS, Executor, executor
from vmtest.executors.base import Row
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import CODE, DATA, PAGE, isa

X86 = [name for name, row in EXECUTORS.items() if "x86_64" in row.isas and not row.decodes]
END = CODE + PAGE


def _registers(line: str, outcome: Outcome) -> dict[str, int]:
    return Case.parse(line).isa.said(outcome.state)


# Intel SDM, volume 2, of each instruction. KVM's emulator runs no SSE arithmetic: those are for the two others.
COMES_TO = [
    ("x86_64 4801d8 rax=1 rbx=2", {"rax": 3, "rbx": 2, "rflags": 0x206}),
    ("x86_64 ffc8", {"rax": 0xFFFFFFFF, "rflags": 0x296}),  # dec eax: the upper half is cleared, AF
    ("x86_64 f9", {"rflags": 0x203}),
    ("x86_64 488b0424 [0x1000]=8877665544332211", {"rax": 0x1122334455667788}),
    ("x86_64 50 rax=5", {"rax": 5, "rsp": DATA + PAGE - 8}),
    ("x86_64 49ffc748ffc7", {"r15": 1, "rdi": 1}),
    ("x86_64 f30f6f0424 [0x1000]=112233445566778899", {"xmm0": 0x998877665544332211}),
    ("x86_64 c60424f490", {}),
]


@pytest.mark.parametrize("name", X86)
def test_what_comes_of_it(name: str) -> None:
    """Registers, flags and vectors are what the manual says, each case beginning in its own state alone."""
    lines = [line for line, _ in COMES_TO]
    for (line, registers), outcome in zip(COMES_TO, run(name, *lines), strict=True):
        assert outcome.status == "ok", line
        assert outcome.end == END, line
        assert _registers(line, outcome) == registers, line


@pytest.mark.parametrize("name", ["unicorn", "native", "qemu"])
def test_vectors(name: str) -> None:
    """SSE computes, and MXCSR rounds: 1/3 rounded to nearest and up (Intel SDM, volume 1, section 11.6.4)."""
    third = "x86_64 f30f5ec1 xmm0=0x3f800000 xmm1=0x40400000"  # divss
    nearest, down, up = run(name, *(f"{third} mxcsr={mxcsr}" for mxcsr in ("0x1f80", "0x3f80", "0x5f80")))
    assert [_registers(third, outcome)["xmm0"] for outcome in (nearest, down, up)] == [
        0x3EAAAAAB,
        0x3EAAAAAA,
        0x3EAAAAAB,
    ]


EXCEPTIONS = [  # vector, address
    ("x86_64 0f0b", 6, None),
    ("x86_64 f7f3", 0, None),
    ("x86_64 488b00 rax=0x1234", 14, 0x1234),
    ("x86_64 89042500000070", 14, 0x70000000),
    ("x86_64 e900000030", 14, END + 0x30000000),  # jumps away
    ("x86_64 48b8", 14, END),  # is cut off
]


@pytest.mark.parametrize("name", X86)
def test_exceptions(name: str) -> None:
    """An exception is told with its vector and the address that failed, and nothing was written."""
    lines = [line for line, _, _ in EXCEPTIONS]
    for (line, vector, address), outcome in zip(EXCEPTIONS, run(name, *lines), strict=True):
        if (name, vector, outcome.status) == ("kvm-user", 6, "unsupported"):
            continue  # where KVM's emulator may have said so
        assert (outcome.status, outcome.vector, outcome.address) == ("exception", vector, address), line
        assert outcome.end in (None, Case.parse(line).start, address), line
        assert not outcome.writes


@pytest.mark.parametrize("name", X86)
def test_what_was_written(name: str) -> None:
    """Writes are told as what differs from what the window began with, and the next case sees none of them."""
    write, same, look = run(
        name,
        "x86_64 48890424 rax=0x1122",
        "x86_64 48890424 rax=0x1122 [0x1000]=2211000000000000 [0]=ff",
        "x86_64 488b0424",
    )
    assert write.writes == ((0x1000, b"\x22\x11"),)
    assert same.writes == ()
    assert (look.writes, _registers("x86_64 90", look)) == ((), {})


@pytest.mark.parametrize("name", X86)
def test_modifies_itself(name: str) -> None:
    """Code that changes the instruction behind it runs what it has written, and the next case its own bytes."""
    code = "66c70501000000ffc090ffc3"  # mov word [rip+1], 0xc0ff: inc eax, over the inc ebx that follows by one byte
    mine, other = run(name, f"x86_64 {code}", "x86_64 ffc3ffc3ffc3")
    assert (mine.status, _registers("x86_64 90", mine).get("rax")) == ("ok", 1)
    assert _registers("x86_64 90", other)["rbx"] == 3
    assert run(name, f"x86_64 {code}")[0] == mine


@pytest.mark.parametrize("name", X86)
def test_loops_for_ever(name: str) -> None:
    """A case that never ends is a timeout, and those behind it run: in the same worker, whose engine can stop it."""
    with having(name) as found:
        outcomes = found.run([Case.parse(f"x86_64 {code}") for code in ("ebfe", "ffc0", "e2fe", "ffc0")])
        assert found.deaths == 0
    assert [outcome.status for outcome in outcomes] == ["timeout", "ok", "timeout", "ok"]
    assert outcomes[1] == outcomes[3]


@pytest.mark.parametrize("name", ["native", "qemu"])
def test_no_system_call_gets_through(name: str) -> None:
    """In user mode a system call, of any kind, ends the case before the kernel has seen it."""
    kill = f"x86_64 0f05 rax=62 rdi={os.getpid()} rsi=9"
    leave = "x86_64 0f05 rax=231"
    write = f"x86_64 0f05ffc0 rax=1 rdi=1 rsi={DATA:#x} rdx=8192"
    old = f"x86_64 cd80 rax=37 rbx={os.getpid()} rcx=9"
    sysenter = "x86_64 0f34 rax=20"
    outcomes = run(name, kill, leave, write, old, sysenter, "x86_64 ffc0")
    assert [outcome.status for outcome in outcomes[:4]] == ["unsupported"] * 4
    assert outcomes[4].status in ("unsupported", "exception")
    assert outcomes[5].status == "ok"


@pytest.mark.parametrize("name", ["native", "qemu"])
def test_nothing_of_a_case_is_left_for_the_next(name: str) -> None:
    """State that no case shows (upper halves of vectors, protection keys, segment bases) is not the next one's."""
    fill = "x86_64 c5fdc6c000c5fd76c0"  # vpcmpeqd ymm0,ymm0,ymm0: all ones
    upper = "x86_64 c4e37d19c101"  # vextractf128 xmm1,ymm0,1
    keys = "x86_64 0f01ef rax=3"  # wrpkru: no access to anything
    base = f"x86_64 f3480faed0 rax={DATA:#x}"  # wrfsbase rax
    look = "x86_64 64488b042500000000"  # mov rax,[fs:0]
    outcomes = run(name, fill, upper, keys, "x86_64 890424 rax=5", base, look)
    if outcomes[0].status == "ok":  # the CPU has AVX
        assert _registers(upper, outcomes[1]).get("xmm1", 0) == 0
    assert outcomes[3].writes == ((PAGE, b"\5"),)
    assert (outcomes[5].status, outcomes[5].vector) == ("exception", 14)


@pytest.mark.parametrize("name", [name for name, row in EXECUTORS.items() if "riscv64" in row.isas and not row.decodes])
def test_no_flags_of_floating_point_are_left(name: str) -> None:
    """On RISC-V the control and the flags of floating point begin as zero in each case, whatever another one set."""
    look = "riscv64 f3273000"  # csrrs x15, fcsr, x0
    outcomes = run(name, "riscv64 73903200 x5=0xff", look, "riscv64 53f0001a", look)  # csrrw fcsr, x5; fdiv.d: 0/0
    assert [outcome.status for outcome in outcomes] == ["ok"] * 4
    assert [Case.parse(look).isa.values(outcome.state)["x15"] for outcome in outcomes] == [0] * 4


@pytest.mark.parametrize("name", [name for name in X86 if name.startswith("kvm")])
@pytest.mark.parametrize(
    "line",
    [
        "ec",  # in al, dx: what is pending of it is not the next case's
        "f36c rcx=3 rdi=0x20000100",
        "0f23c00f23fb rax=0x10000fff rbx=0x401",  # a breakpoint on what runs next
        "0f30 rcx=0xc0000082 rax=0x1234",  # where system calls go
        "48c70000000000 rax=0xffffffff8000b030",  # the handlers
        "48c70000000000 rax=0xffffffff80009030",  # the segments
    ],
)
def test_kvm_begins_each_case_anew(name: str, line: str) -> None:
    """What a case in KVM does to the machine, or leaves pending, is not there for the next one."""
    after = [f"x86_64 {code}" for code in ("ffc3 rbx=1", "90", "0f0b", "8ed8 rax=0x2b", "0f05")]
    _, *found = run(name, f"x86_64 {line}", *after)
    assert found == run(name, *after)


@pytest.mark.parametrize("name", X86)
def test_code_made_of_registers(name: str) -> None:
    """SSE and x87 instructions that a case puts together itself see its vectors, and their results are told."""
    add = "x86_64 488907ffe7 rax=0xe1ffc1580f rcx=0x10001000 rdi=0x20000000 xmm0=0x3f800000 xmm1=0x40000000"
    load = "x86_64 488907ffe7 rax=0xe1ffe8d9 rcx=0x10001000 rdi=0x20000000"  # fld1; jmp rcx
    added, loaded = run(name, add, load)
    if added.status == "ok":  # KVM's emulator knows neither
        assert _registers(add, added)["xmm0"] == 0x40400000
    if loaded.status == "ok":
        assert _registers(load, loaded)["st0"] == 0x3FFF8000000000000000


def test_a_death_names_its_case() -> None:
    """Where a case kills the worker that one has died, by its signal, and all others have their outcomes.

    f00fb3cc makes Unicorn 2.1.4 abort.
    """
    lines = [f"x86_64 ffc0 rax={number}" for number in range(600)]
    for at in (0, 3, 4, 599):
        lines[at] = "x86_64 f00fb3cc"
    with having("unicorn") as found:
        outcomes = found.run([Case.parse(line) for line in lines])
        assert found.deaths == 4
    for number, outcome in enumerate(outcomes):
        if number in (0, 3, 4, 599):
            assert (outcome.status, outcome.signal) == ("died", signal.SIGABRT)
        else:
            assert _registers("x86_64 90", outcome)["rax"] == number + 1


@pytest.mark.parametrize("name", X86)
def test_random_bytes(name: str) -> None:
    """Of any bytes each has its outcome, the same one a second time and behind other cases, and no process is left."""
    random_ = random.Random(4)
    row = isa("x86_64")
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi")
    pick = (0, 1, DATA + 64, DATA + PAGE, 2**64 - 1, 2**63)
    cases = [
        Case(
            isa=row,
            code=random_.randbytes(random_.randrange(1, 10)),
            state=row.state({register: random_.choice(pick) for register in names}),
        )
        for _ in range(1500)
    ]
    with having(name) as found:
        order = random_.sample(range(len(cases)), len(cases))
        first, shuffled = found.run(cases), found.run([cases[n] for n in order])
        second = [outcome for _, outcome in sorted(zip(order, shuffled, strict=True), key=lambda pair: pair[0])]
        started = psutil.Process().children(recursive=True)
        assert started
    assert len(first) == len(cases)
    settled = [n for n in range(len(cases)) if "timeout" not in (first[n].status, second[n].status)]
    assert len(settled) > 1400
    assert [str(cases[n]) for n in settled if first[n] != second[n]] == []
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


KILLED = """
import os, threading
import psutil
from vmtest.executors import EXECUTORS, executor
from vmtest.model.case import Case
endless = [Case.parse("x86_64 ebfe")] * 1000
for name in {names}:
    threading.Thread(target=executor(name, endless[0].isa).run, args=(endless,), daemon=True).start()
while len(found := psutil.Process().children(recursive=True)) < {expected}:
    pass
print(*[process.pid for process in found])
os.kill(os.getpid(), 9)
"""


def test_workers_end_with_their_master() -> None:
    """When the process that started them is killed workers end at once, in the middle of an endless case."""
    names = [name for name in X86 if not import_module(EXECUTORS[name].module).lacks(isa("x86_64"))]
    # Python's workers have one above them that forks, and qemu's a QEMU below it.
    expected = sum(1 if EXECUTORS[name].is_program else 2 + name.startswith("qemu") for name in names)
    code = KILLED.format(names=names, expected=expected)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == expected, done
    alive = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            alive.append(psutil.Process(pid))
    assert not psutil.wait_procs(alive, timeout=10)[1]


def test_worker_killed_from_outside() -> None:
    """A worker that somebody kills is another one's work the next time."""
    others = set(psutil.Process().children())
    with having("unicorn") as found:
        case = Case.parse("x86_64 ffc0")
        (before,) = found.run([case])
        (forks,) = set(psutil.Process().children()) - others
        for victim in (*forks.children(), forks):
            victim.kill()
            psutil.wait_procs([victim], timeout=10)
            outcomes = found.run([case, case])
            assert outcomes[-1] == before


@pytest.mark.parametrize("name", ["unicorn", "qemu"])
@pytest.mark.parametrize(
    ("line", "registers"),
    [
        ("aarch64 2000028b x1=1 x2=2", {"x0": 3, "x1": 1, "x2": 2}),  # add x0, x1, x2
        ("aarch64 e00340f9 [0x1000]=2a", {"x0": 42}),  # ldr x0, [sp]
        ("aarch64 201c221e q1=0x3f800000 q2=0x40400000", None),
        ("riscv64 b3822000 x1=5", {"x1": 5, "x5": 5}),  # add x5, x1, x2 less x2: see the default stack
        ("riscv64 13050001", {"x10": 16}),  # addi x10, x0, 16
    ],
)
def test_other_instruction_sets(name: str, line: str, registers: dict[str, int] | None) -> None:
    """A64 and RV64 run as the architectures' manuals say."""
    (outcome,) = run(name, line)
    assert outcome.status == "ok"
    if registers is not None:
        said = _registers(line, outcome)
        if line.startswith("riscv64 b3"):
            said["x5"] -= DATA + PAGE
        assert said == registers


def test_executors_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown executor and an instruction set that it does not run are UsageErrors, one that lacks something a
    HostError that says what; a worker that does not come up is told with its own words.
    """
    with pytest.raises(UsageError, match="unknown executor 'bochs'"):
        executor("bochs", isa("x86_64"))
    with pytest.raises(UsageError, match="native does not run aarch64") as caught:
        executor("native", isa("aarch64"))
    assert caught.value.hint == "these do: unicorn, qemu"
    monkeypatch.setattr("vmtest.executors.native.host_arch", lambda: "aarch64")
    with pytest.raises(HostError, match="the host's CPU is aarch64 and does not run x86_64"):
        executor("native", isa("x86_64"))
    broken = Row(name="broken", what="", module="vmtest.executors.unicorn", isas=(), environment=(("PYTHONPATH", "/"),))
    monkeypatch.setattr("vmtest.executors.lives.sys.executable", "/bin/false")
    with pytest.raises(HostError, match="the worker of the executor broken does not come up"):
        Executor(broken, isa("x86_64")).run([Case.parse("x86_64 90")])


KNOWN = json.loads((Path(__file__).parents[2] / "fixtures" / "instructions.json").read_text())


@pytest.mark.parametrize("known", KNOWN, ids=[f"{known['wrong']}-{known['case'].split()[1]}" for known in KNOWN])
def test_known_bugs(known: dict[str, str]) -> None:
    """Each public bug that is seen here is found: who is wrong differs from who is right, the CPU mostly, or dies."""
    case = Case.parse(known["case"])
    outcomes = {}
    for name in (known["wrong"], known.get("right", "native")):
        with having(name, case.isa.name) as found:
            if name == known["wrong"] and known.get("seen", "") not in found.description:
                pytest.skip(f"was seen on {known['seen']}, and this is {found.description}")
            (outcomes[name],) = found.run([case])
    differing = {row.name for row in aspects(case, outcomes) if row.differs and not row.excused}
    assert known["differs"] in differing, known["source"]
