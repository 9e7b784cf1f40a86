"""The executor ``native``: what the CPU says to the last bit, and that no case gets out of its two windows."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from oncase import having

from vmtest.errors import HostError
from vmtest.executors import Executor, executor
from vmtest.executors.native import program
from vmtest.model.case import Case, Outcome, differences
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE, isa

X86 = isa("x86_64")
END = CODE + PAGE
CPU = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())


@pytest.fixture(scope="module")
def native() -> Iterator[Executor]:
    """The executor, for all tests."""
    with having("native") as found:
        yield found


def _run(native: Executor, *lines: str) -> list[Outcome]:
    return native.run([Case.parse(f"x86_64 {line}") for line in lines])


def _said(outcome: Outcome) -> dict[str, int]:
    return X86.said(outcome.state)


# Intel SDM, volume 3, sections 6.15 (each exception) and 4.7 (a page fault's error code: 1 there, 2 write, 4 user mode,
# 16 fetch). What the kernel says of addresses of its own is always that they are there.
EXCEPTIONS = [  # case, vector, error code, address, where
    ("f7f3", 0, None, None, 0),  # div ebx
    ("6802030000669d90", 1, None, None, 8),  # push 0x302; popfq of 16 bits: TF, a trap behind the next instruction
    ("cc", 3, None, None, 1),
    ("0f0b", 6, None, None, 0),
    ("488b042500000000", 14, 4, 0, 0),
    ("48890425f00f0000", 14, 6, 0xFF0, 0),
    ("e900000030", 14, 20, END + 0x30000000, 0x30000005),
    ("48b8", 14, 20, END, 0),
    ("488b03 rbx=0xffffffff80000000", 14, 5, 0xFFFFFFFF80000000, 0),
    ("488b03 rbx=0x20001ffc", 14, 4, DATA + DATA_SIZE, 0),
    ("488b03 rbx=0x8000000000000000", 13, 0, None, 0),  # not canonical
    ("488b0424 rsp=0x8000000000000000", 12, 0, None, 0),  # the same on the stack
    ("cd20", 13, 0x20 * 8 + 2, None, 0),  # int 0x20
    ("f4", 13, 0, None, 0),
    ("fa", 13, 0, None, 0),
    ("8ed8 rax=0x7770", 13, 0x7770, None, 0),  # mov ds, ax: no such descriptor
    ("9b fcw=0x37b fsw=0x8084 ftw=0", 16, None, None, 0),  # fwait with an unmasked division by zero
    ("68020204009d8b4301 rbx=0x20000000", 17, 0, None, 6),  # AC; mov eax, [rbx+1]
    ("f30f5ec1 mxcsr=0x1d80 xmm0=0x3f800000", 19, None, None, 0),  # 1/0, unmasked
]


@pytest.mark.parametrize(("line", "vector", "error", "address", "end"), EXCEPTIONS, ids=[e[0] for e in EXCEPTIONS])
def test_exceptions(native: Executor, line: str, vector: int, error: int | None, address: int | None, end: int) -> None:
    """Vector, error code, address and place of an exception are the CPU's own."""
    (outcome,) = _run(native, line)
    assert (outcome.status, outcome.vector, outcome.error, outcome.address) == ("exception", vector, error, address)
    assert outcome.end == Case.parse(f"x86_64 {line}").start + end


def test_all_registers_in_and_out(native: Executor) -> None:
    """Each bit of each register is set as the case says, and told as it is, by an instruction that does nothing: also
    under KVM, where bytes of vector instructions in the window make it set and read the vectors.
    """
    draw = random.Random(1)
    values = {register.name: draw.getrandbits(8 * register.size) for register in X86.registers}
    values |= {"fcw": 0x27F, "fsw": 0x3800, "mxcsr": 0x9FC0}
    states = (X86.state(values), X86.default, X86.state(dict.fromkeys(values, 0) | {"fcw": 0x37F}))
    cases = [Case(isa=X86, code=b"\x90", state=state, memory=((0, b"\x0f\xc5"),)) for state in states]
    executors = [native]
    with ExitStack() as stack:
        with suppress(HostError):
            executors.append(stack.enter_context(executor("kvm", X86)))
        for found in executors:
            for case, outcome in zip(cases, found.run(cases), strict=True):
                assert (outcome.status, outcome.end) == ("ok", END)
                assert outcome.state == case.state


@pytest.mark.parametrize(
    ("feature", "line", "register", "value"),
    [
        (
            "fpu",
            "d8c1 ftw=3 st0=0x3fff8000000000000000 st1=0x40008000000000000000",
            "st0",
            0x4000C000000000000000,
        ),  # 1+2
        ("fpu", "dbe3 ftw=0xff fsw=0x3841", "ftw", 0),  # fninit
        ("avx", "c5f457c2 ymm1h=0xff00ff ymm2h=0x0f", "ymm0h", 0xFF00F0),  # vxorps
        ("avx", "c5fc77 ymm5h=0xff", "ymm5h", 0),  # vzeroall
    ],
)
def test_x87_and_avx(native: Executor, feature: str, line: str, register: str, value: int) -> None:
    """x87 and AVX compute on what the case has set (Intel SDM, volume 2, of each instruction)."""
    (outcome,) = _run(native, line)
    if feature not in CPU:
        assert (outcome.status, outcome.vector) == ("exception", 6)
        return
    assert outcome.status == "ok"
    assert X86.values(outcome.state)[register] == value


def test_hidden_state_is_not_the_next_ones(native: Executor) -> None:
    """Selectors, segment bases, flags of the system (NT, AC, ID), the place of the last x87 instruction, mask registers
    and the far half of ZMM are as after a reset for each case.
    """
    selectors = _run(native, "8ee08ee88ed88ec0 rax=0x2b", "8ce08ceb8cd98cc2")
    assert [outcome.status for outcome in selectors] == ["ok", "ok"]
    assert _said(selectors[1]) == {}
    # or dword [rsp], NT | AC | ID by way of popfq
    flags = _run(native, "9c810c24004024009d", "9c58")
    assert flags[0].status == "ok"
    assert _said(flags[1]) == {"rax": 0x202}
    # fld1, and then fnstenv [rsp]: the instruction's address is its dword at 12
    place = _run(native, "d9e8", "d934248b5c240c")
    assert _said(place[1]).get("rbx", 0) == 0
    if "fsgsbase" in CPU:
        base = _run(native, f"f3480faed8 rax={DATA}", "65488b042508000000")
        assert [outcome.status for outcome in base] == ["ok", "exception"]
        assert (base[1].vector, base[1].address) == (14, 8)
    if "avx512f" in CPU:
        # mov eax, 255; kmovw k1, eax; vpternlogd zmm16, zmm16, zmm16, 255
        fill = "b8ff000000c5f892c862a37d4025c0ff"
        mask = "c5f893c1"  # kmovw eax, k1
        upper = "62e17c48110424"  # vmovups [rsp], zmm16
        outcomes = _run(native, fill, mask, fill, upper, fill + upper)
        assert [outcome.status for outcome in outcomes] == ["ok"] * 5
        assert _said(outcomes[1]) == {}
        assert outcomes[3].writes == ()
        assert outcomes[4].writes == ((PAGE, b"\xff" * 64),)


def test_another_mode(native: Executor) -> None:
    """A case that jumps to 32-bit code runs there, and the next one does not."""
    # push 0x23; push END - 2; retfq; then in 32-bit mode 40 is inc eax (in 64-bit mode a prefix)
    code = f"6a2368{(END - 2).to_bytes(4, 'little').hex()}48cb4090"
    inside, outside = _run(native, code, "4090")
    assert (inside.status, outside.status) == ("ok", "ok")
    assert (_said(inside).get("rax"), _said(outside).get("rax")) == (1, None)


def test_the_clock_changes_nothing(native: Executor) -> None:
    """A case that the clock interrupts goes on with all that it had: its registers, NT and ID, vectors."""
    # pushfq; or dword [rsp], NT | ID; popfq; then for a while: loop; pushfq; pop rax
    long = "9c810c24004020009de2fe9c58"
    state = f"rcx={1 << 23} ymm3h=0x123456789 xmm3=0x77 st2=0x3fff8000000000000000 r9=5"
    outcomes = _run(native, *[f"{long} {state}"] * 16)  # of some 10 ms each: 3 ticks and more
    assert {outcome.status for outcome in outcomes} == {"ok"}
    assert len(set(outcomes)) == 1
    assert _said(outcomes[0])["rax"] & 0x204000 == 0x204000
    assert X86.values(outcomes[0].state)["ymm3h"] == (0x123456789 if "avx" in CPU else 0)


def test_writes_as_python_tells_them(native: Executor) -> None:
    """What was written is told as the same patches that ``differences`` finds, on each executor that is C: single
    bytes near to each other, far from it, over lines, and at the window's ends.
    """
    draw = random.Random(3)
    cases, windows = [], []
    for _ in range(300):
        near = draw.randrange(DATA_SIZE)
        places = [min(DATA_SIZE - 1, max(0, near + draw.choice((-9, -8, -7, 0, 1, 7, 8, 9, 57, 64)))) for _ in range(7)]
        places[0] = draw.choice((0, DATA_SIZE - 1, near))
        memory = ((draw.randrange(DATA_SIZE - 8), draw.randbytes(8)), (near & ~7, draw.randbytes(8)))
        before = Case(isa=X86, code=b"\x90", state=X86.default, memory=memory).window
        after = bytearray(before)
        code = b""
        for place in places:
            after[place] = draw.choice((after[place], 0, 0x5A))
            code += (
                b"\xc6\x83" + place.to_bytes(4, "little") + after[place : place + 1]
            )  # mov byte [rbx + place], value
        cases.append(Case(isa=X86, code=code, state=X86.state({"rbx": DATA}), memory=memory))
        windows.append((before, bytes(after)))
    expected = [differences(*window) for window in windows]
    assert [outcome.writes for outcome in native.run(cases)] == expected
    with executor("unicorn", X86) as unicorn:
        assert [outcome.writes for outcome in unicorn.run(cases)] == expected


def test_no_system_call_of_any_number(native: Executor) -> None:
    """Each number, by each of the ways into the kernel, ends the case; one that would end the process as well."""
    numbers = [*range(480), *(0x40000000 + number for number in range(0, 480, 7)), 2**64 - 1]
    outcomes = _run(native, *[f"{code} rax={number}" for code in ("0f05ffc0", "cd80ffc0") for number in numbers])
    assert {outcome.status for outcome in outcomes} == {"unsupported"}
    assert native.deaths == 0


def test_nothing_else_is_mapped(native: Executor) -> None:
    """In the process of the cases there are the two windows and its own five megabytes, whose code cannot be written,
    above all that 46 bits can say, and at another place each time.
    """

    def maps(others: set[psutil.Process]) -> list[tuple[int, int, str]]:
        (process,) = set(psutil.Process().children()) - others
        found = []
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            place, kind, *_ = line.split()
            start, _, end = place.partition("-")
            if "[vsyscall]" not in line:
                found.append((int(start, 16), int(end, 16), kind))
        return found

    places = []
    for _ in range(2):
        native.close()
        others = set(psutil.Process().children())
        _run(native, "90")
        code, data, *own = maps(others)
        assert (code[:2], data[:2]) == ((CODE, CODE + PAGE), (DATA, DATA + DATA_SIZE))
        assert [kind for _, _, kind in own] == ["rw-p", "r-xp", "rw-s"]
        assert own[0][0] >= 1 << 46
        assert own[-1][1] - own[0][0] < 6 << 20
        places.append(own[0][0])
    assert places[0] != places[1]


def test_another_version(native: Executor) -> None:
    """A program that was compiled for another layout of states says so, and runs nothing."""
    done = subprocess.run(
        [program(X86), str(X86.size + 1), "0", "1", "2", "1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (72, "")
    assert "another version" in done.stderr
