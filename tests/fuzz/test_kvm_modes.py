"""The executors kvm and kvm-user in every mode of x86: what the manual says, rings kept apart, all registers told."""

from __future__ import annotations

import signal
from importlib import import_module
from pathlib import Path

import pytest
from oncase import having, run

from vmtest.executors import EXECUTORS
from vmtest.executors.kvm import Engine
from vmtest.model.case import Case, Outcome
from vmtest.model.isa import DATA, ISAS, PAGE, isa

KVM = ("kvm", "kvm-user")


def _said(line: str, outcome: Outcome) -> dict[str, int]:
    return Case.parse(line).isa.said(outcome.state)


def _in_hardware(name: str, isa_name: str) -> bool:
    row = EXECUTORS[name]
    having(name, isa_name).close()
    return "in hardware" in import_module(row.module).describe(isa(isa_name))


# Intel SDM, volume 2, of each instruction; volume 1, section 3.6, of operand and address sizes.
COMES_TO = [
    ("x86_32 40", {"eax": 1}),  # inc eax: a REX prefix in 64-bit mode
    ("x86_32 6648 eax=0x10000", {"eax": 0x1FFFF, "eflags": 0x296}),  # dec ax
    ("x86_32 d50a eax=0x0203", {"eax": 0x17, "eflags": 0x206}),  # aad: 2 * 10 + 3
    ("x86_32 8b0424 [0x1000]=44332211", {"eax": 0x11223344}),
    ("x86_32 01c3 eax=0xffffffff ebx=1", {"eax": 0xFFFFFFFF, "eflags": 0x257}),
    ("x86_32 58 [0x1000]=01000000", {"eax": 1, "esp": 0x20001004}),
    ("x86_16 40 eax=0xffff", {"eflags": 0x256}),  # inc ax: 16 bits
    ("x86_16 6640 eax=0xffff", {"eax": 0x10000, "eflags": 0x216}),
    ("x86_16 8b07 ebx=0x3000 [0x1000]=2211", {"eax": 0x1122, "ebx": 0x3000}),  # mov ax,[bx]
    ("x86_16 678b03 ebx=0x2000 [0]=2211", {"eax": 0x1122, "ebx": 0x2000}),  # mov ax,[ebx]
    ("x86_16 58 [0x1000]=2211", {"eax": 0x1122, "esp": 0x3002}),
]


@pytest.mark.parametrize("name", KVM)
@pytest.mark.parametrize("isa_name", ["x86_32", "x86_16"])
def test_what_comes_of_it(name: str, isa_name: str) -> None:
    """Operand sizes, address sizes and the stack's are those of the mode."""
    rows = [row for row in COMES_TO if row[0].startswith(isa_name)]
    for (line, registers), outcome in zip(rows, run(name, *(line for line, _ in rows)), strict=True):
        assert (outcome.status, outcome.end) == ("ok", isa(isa_name).code + PAGE), line
        assert _said(line, outcome) == registers, line


def test_pushes_in_each_mode() -> None:
    """A push writes 4 bytes in 32-bit code and 2 in 16-bit code, and nothing else is written: no exception's frame."""
    (wide,) = run("kvm", "x86_32 50 eax=0x11223344")
    (narrow,) = run("kvm", "x86_16 50 eax=0x11223344")
    (fault,) = run("kvm", "x86_16 500f0b eax=0x11223344")
    assert wide.writes == ((0xFFC, b"\x44\x33\x22\x11"),)
    assert narrow.writes == fault.writes == ((0xFFE, b"\x44\x33"),)
    assert fault.vector == 6


USER, WRITE, PRESENT = 4, 2, 1  # Intel SDM, volume 3, figure 4-12


@pytest.mark.parametrize("name", KVM)
@pytest.mark.parametrize("isa_name", ["x86_64", "x86_32", "x86_16"])
def test_page_faults(name: str, isa_name: str) -> None:
    """A page fault is told with its address, and an error code that has the ring and what was tried."""
    ring = USER if name == "kvm-user" else 0
    register = "rbx" if isa_name == "x86_64" else "ebx"
    code = "678b03" if isa_name == "x86_16" else "8b03"
    store = code.replace("8b", "89")
    read, write, over = run(
        name,
        f"{isa_name} {code} {register}=0x5000",
        f"{isa_name} {store} {register}=0x5000",
        f"{isa_name} b8",
    )
    case = Case.parse(f"{isa_name} {code}")
    assert (read.vector, read.error, read.address, read.end) == (14, ring, 0x5000, case.start)
    assert (write.vector, write.error, write.address) == (14, ring | WRITE, 0x5000)
    assert (over.vector, over.address) == (14, case.isa.code + PAGE)


def test_rings() -> None:
    """In ring 3 the system's pages cannot be read and what is for ring 0 is #GP; in ring 0 both can be done."""
    read = "x86_64 488b03 rbx=0xffffffff80009000"
    clear = "x86_64 fa"  # cli
    system, user = run("kvm", read, clear), run("kvm-user", read, clear)
    assert [outcome.status for outcome in system] == ["ok", "ok"]
    assert (user[0].vector, user[0].error) == (14, USER | PRESENT)
    assert (user[1].vector, user[1].error) == (13, 0)


@pytest.mark.parametrize("isa_name", EXECUTORS["kvm-user"].isas)
@pytest.mark.parametrize("code", ["0f05", "480f05", "cd80", "f3cd80"])
def test_system_calls(isa_name: str, code: str) -> None:
    """A system call is no exception of the case's: ring 3 cannot run it, as the traced process cannot, and the case
    behind it runs.
    """
    if code.startswith("48") and isa_name != "x86_64":
        code = code[2:]
    call, after = run("kvm-user", f"{isa_name} {code}", f"{isa_name} 90")
    assert (call.status, after.status) == ("unsupported", "ok")


def test_software_interrupts() -> None:
    """In ring 3 INT3 is #BP and what other INTs raise is #GP with their gate's number (Intel SDM, volume 3, 6.13); a
    KVM that has #UD for that tells no #UD of any case.
    """
    if not _in_hardware("kvm-user", "x86_64"):
        pytest.skip("ring 3 runs in KVM's emulator here")
    breakpoint_, other, trap, none = run("kvm-user", "x86_64 cc", "x86_64 cd21", "x86_64 f1", "x86_64 0f0b")
    assert (breakpoint_.vector, trap.vector) == (3, 1)
    if other.status == "unsupported":
        assert none.status == "unsupported"
    else:
        assert (other.vector, other.error, none.vector) == (13, 0x21 * 8 + 2, 6)


THIRD = "f30f5ec1 xmm0=0x3f800000 xmm1=0x40400000"  # divss


@pytest.mark.parametrize("name", KVM)
@pytest.mark.parametrize("isa_name", ["x86_64", "x86_32", "x86_16"])
def test_who_runs_it(name: str, isa_name: str) -> None:
    """What is said to run in hardware does SSE arithmetic; what KVM's emulator runs is unsupported where it knows no
    such instruction, and never an exception.
    """
    hardware = _in_hardware(name, isa_name)
    (third,) = run(name, f"{isa_name} {THIRD}")
    assert third.status == ("ok" if hardware else "unsupported")
    if hardware:
        assert _said(f"{isa_name} {THIRD}", third)["xmm0"] == 0x3EAAAAAB


# Intel SDM, volume 1, section 8.1; volume 2 of each. A st is as 80 bits: 1.0 is 3fff8000000000000000.
ONE, TWO = 0x3FFF8000000000000000, 0x40008000000000000000
X87 = [
    ("d9e8", {"fsw": 0x3800, "ftw": 0x80, "st0": ONE}),  # fld1
    ("d9e8d9e8", {"fsw": 0x3000, "ftw": 0xC0, "st0": ONE, "st1": ONE}),
    (f"d8c1 ftw=3 st0={ONE:#x} st1={ONE:#x}", {"ftw": 3, "st0": TWO, "st1": ONE}),  # fadd st0,st1
    (f"d9c9 fsw=0x3000 ftw=0xc0 st0={ONE:#x} st1={TWO:#x}", {"fsw": 0x3000, "ftw": 0xC0, "st0": TWO, "st1": ONE}),
    (f"ddd8 ftw=1 st0={ONE:#x}", {"fsw": 0x800, "st7": ONE}),  # fstp st0: popped
]


def test_what_kvm_refuses_to_run() -> None:
    """A case that KVM_RUN fails of has ended the virtual CPU: that is no timeout, and the next one has another CPU."""
    having("kvm").close()
    before = signal.getsignal(signal.SIGUSR1)
    try:
        engine = Engine(isa("x86_64"))
        case = Case.parse("x86_64 ffc0")
        assert engine.run(case).status == "ok"
        with Path("/dev/null").open("rb") as other:
            engine.engine.vcpu = other.fileno()
            assert engine.run(case).status == "died"
        assert engine.run(case).status == "ok"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_x87() -> None:
    """The x87's stack begins as the case says and is told with its words, in ring 3, where that is hardware."""
    if not _in_hardware("kvm-user", "x86_64"):
        pytest.skip("ring 3 runs in KVM's emulator here")
    lines = [f"x86_64 {line}" for line, _ in X87]
    for line, (_, registers), outcome in zip(lines, X87, run("kvm-user", *lines), strict=True):
        assert outcome.status == "ok", line
        assert _said(line, outcome) == registers, line


def test_avx() -> None:
    """Both halves of an AVX register begin as the case says and are told, and are not the next one's."""
    if "avx" not in Path("/proc/cpuinfo").read_text() or not _in_hardware("kvm-user", "x86_64"):
        pytest.skip("no AVX in ring 3 here")
    add = "x86_64 c5f5fed1 ymm1h=0x100000002 xmm1=3"  # vpaddd ymm2,ymm1,ymm1
    clear = "x86_64 c5f877 xmm0=5 ymm0h=7"  # vzeroupper
    old = "x86_64 0f28c8 xmm0=5 ymm1h=7"  # movaps keeps the upper half
    outcomes = run("kvm-user", add, clear, old, "x86_64 c5f877")
    assert _said(add, outcomes[0]) == {"xmm1": 3, "ymm1h": 0x100000002, "xmm2": 6, "ymm2h": 0x200000004}
    assert _said(clear, outcomes[1]) == {"xmm0": 5}
    assert _said(old, outcomes[2]) == {"xmm0": 5, "xmm1": 5, "ymm1h": 7}
    assert _said("x86_64 90", outcomes[3]) == {}


def test_what_is_set_once() -> None:
    """DR6, which keeps its bits, and the base of GS that SWAPGS puts away are no later case's (Intel SDM, volume 3,
    section 17.2.3; volume 2, SWAPGS).
    """
    status, read = "x86_64 0f21f0", "x86_64 0f01f8654c8b042500000000"  # mov rax,dr6; swapgs; mov r8,gs:[0]
    trap = "x86_64 9d90 [0x1000]=0203000000000000"  # popf with TF
    base = "x86_64 0f22e0f3480faedb0f01f8 rax=0x50620 rbx=0x20000000"  # mov cr4,rax; wrgsbase rbx; swapgs
    before, trapped, after, fails, swapped, again = run("kvm", status, trap, status, read, base, read)
    assert (trapped.vector, swapped.status) == (1, "ok")
    assert after == before
    assert again == fails


@pytest.mark.parametrize("name", ["kvm-user", "native", "qemu"])
def test_code_that_a_far_return_leads_to(name: str) -> None:
    """Vectors are set and told for code that a case has made in its window, also where a far return leads to it."""
    if name == "kvm-user" and not _in_hardware("kvm-user", "x86_64"):
        pytest.skip("ring 3 runs in KVM's emulator here")
    line = "x86_64 48890748cb rax=0xf4c1580f rdi=0x20000000 xmm0=0x40400000 xmm1=0x40400000"  # addps xmm0,xmm1; hlt
    (outcome,) = run(name, f"{line} [0x1000]=00000020000000003300000000000000")
    assert (outcome.vector, outcome.end) == (13, DATA + 3)
    assert _said(line, outcome)["xmm0"] == 0x40C00000


@pytest.mark.parametrize("name", KVM)
@pytest.mark.parametrize("isa_name", ["x86_32", "x86_16"])
def test_state_is_kept(name: str, isa_name: str) -> None:
    """What a case begins with is what a nop leaves, of every register that an executor is not blind to."""
    row = ISAS[isa_name]
    values = {n: 0x11 * (k + 1) for k, n in enumerate(("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"))}
    values |= {"eflags": 0xCD7, "xmm7": 1 << 127, "ymm7h": 1 << 126, "mxcsr": 0x3F80, "st7": ONE, "ftw": 0x80}
    if "avx" not in Path("/proc/cpuinfo").read_text():
        del values["ymm7h"]
    case = Case(isa=row, code=bytes.fromhex("eb0162" + "90"), state=row.state(values))  # jmp over a VEX byte
    (outcome,) = run(name, str(case))
    assert outcome.status == "ok"
    assert row.said(outcome.state) == row.said(case.state)
