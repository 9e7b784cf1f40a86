"""x86 instructions made from iced-x86's table: every form, what is said of each."""

from __future__ import annotations

from random import Random

import pytest

from vmtest.errors import UsageError
from vmtest.forms import BAD, forms
from vmtest.fuzz.generate import Generator, select
from vmtest.model.case import Case
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE, isa

X86 = forms("x86_64")
# iced-x86 describes this one in a way that its own decoder does not read.
UNREAD = {"montmul_64"}


def _case(line: str) -> Case:
    return Case.parse(f"x86_64 {line}")


def test_every_form_is_made() -> None:
    """Of every form of 64-bit mode there are instructions: what is made for one is, mostly, read as that one."""
    random = Random(1)
    missed = set()
    for name in X86.names:
        made = (X86.make(random, name).code for _ in range(500))
        if not any([one.form for one in X86.decode(code)] == [name] for code in made):
            missed.add(name)
    assert missed == UNREAD
    assert len(X86.names) > 4000


def test_the_same_random_makes_the_same() -> None:
    """What is made depends on nothing but the random numbers."""
    first = [X86.make(Random(7), name) for name in X86.names[::97]]
    assert [X86.make(Random(7), name) for name in X86.names[::97]] == first


def test_memory_operands_are_in_the_window() -> None:
    """Registers that a draft sets make its operand one in the data window, in most cases."""
    random, inside = Random(3), 0
    for _ in range(300):
        draft = X86.make(random, "add_rm64_r64")
        case = Case(isa=X86.isa, code=draft.code, state=X86.isa.state(draft.registers))
        from vmtest.forms.x86_access import accesses

        (one,) = X86._decoded(case.code, case.start)  # type: ignore[attr-defined]
        found = list(accesses(case, one))
        inside += not found or any(DATA <= address < DATA + DATA_SIZE for address, _, _ in found)
    assert inside > 250


@pytest.mark.parametrize(
    ("code", "form"),
    [
        ("4801d8", "add_rm64_r64"),
        ("c4e2f8f3db", "vex_blsi_r64_rm64"),
        ("f3480fbdc3", "lzcnt_r64_rm64"),
        ("f00fb3cc", f"{BAD} lock"),
        ("f20fae00", f"{BAD} f2 0fae"),
        ("c4e04058c0", f"{BAD} c4 table 0"),
        ("c4e24001c0", f"{BAD} c4 table 2"),
        ("06", f"{BAD} 06"),
    ],
)
def test_names(code: str, form: str) -> None:
    """A form's name is iced-x86's; what is no instruction is named by its opcode and the prefixes that tell."""
    assert X86.decode(bytes.fromhex(code))[0].form == form


def test_code_that_is_cut_off() -> None:
    """All of the code is decoded, and what is bad takes the rest of it."""
    assert [(one.form, one.size) for one in X86.decode(bytes.fromhex("90480000c7"))] == [
        ("nopd", 1),
        ("add_rm8_r8", 3),
        ("(bad) c7", 1),
    ]


@pytest.mark.parametrize(
    ("line", "undefined"),
    [
        ("480fbcc3 rax=1", {"rax": -1, "rflags": 0x895}),  # bsf of 0: SDM, volume 2
        ("480fbc06 rsi=0x20000000", {"rax": -1, "rflags": 0x895}),  # bsf of 0 in memory
        ("480fbc06 rsi=0x20000000 [7]=80", {"rflags": 0x895}),
        ("480fbcc3 rbx=4", {"rflags": 0x895}),
        ("66c1d009", {"rflags": 0x800}),  # rcl ax, 9
        ("660fa4d811", {"rax": -1, "rflags": 0x8D5}),  # shld ax, bx, 17
        ("660fa4d80f", {"rflags": 0x810}),
        ("480fafc3f2ae", {"rflags": 0xD4}),  # imul; repne scasb, which may have nothing to do
        ("480fafc3ae", {}),
        ("660fc8", {"rax": -1}),  # bswap ax
        ("d8c1", {"fsw": 0x4500}),  # fadd
        ("d9f8 ftw=3 st0=0x3fff8000000000000000 st1=0x3fff8000000000000000", {}),  # fprem of 1 and 1
        ("d9f8 ftw=0xc0 fsw=0x3000 st0=1 st1=0x3fff8000000000000000", {}),  # whose top is 6
        ("d9f8 ftw=3 fsw=0x3000 st0=1 st1=0x3fff8000000000000000", {"fsw": 0x4100}),
        ("d9f8 ftw=3 st0=0x3fff8000000000000000", {"fsw": 0x4300}),  # by 0
        ("d9f8 ftw=3 st0=0x3fff8000000000000000 st1=0x7fff8000000000000000", {}),  # by infinity: the quotient is 0
        ("d9f8 ftw=1 st0=0x3fff8000000000000000", {"fsw": 0x4100}),  # by nothing: C1 is 0
        ("d9f5 ftw=3 st0=0x7fffc000000000000000 st1=0x3fff8000000000000000", {"fsw": 0x4300}),  # fprem1 of no number
        ("d9f8 ftw=3 st0=0x40008000000000000000 st1=0x3fff0000000000000001", {"fsw": 0x4300}),  # nor is that one
        ("d9f8 ftw=3 st0=0x43e78000000000000000 st1=0x3fffc000000000000000", {"fsw": 0x4300}),  # not at once
        ("d9f8 ftw=3 st0=0x403e8000000000000000 st1=0x3fffc000000000000000", {}),
        ("d9f890 ftw=3 st0=0x3fff8000000000000000 st1=0x3fff8000000000000000", {}),
        ("d9e8d9f8 ftw=3", {"fsw": 0x4700}),  # behind fld1, which leaves C2 undefined, too
        ("d9ff ftw=1", {"fsw": 0x4100}),  # fcos: C2 says whether it was in range
        ("dbf1 ftw=3", {}),  # fcomi leaves them
        ("f7e3b8c00d0020f0f65c70007500", {}),  # mul; mov; lock neg, which defines all; jne
        ("7500f7e3f0f65c7000", {"rflags": 0xD4}),  # jne, over mul or over all; lock neg
        ("4801d8", {}),
    ],
)
def test_what_is_undefined(line: str, undefined: dict[str, int]) -> None:
    """Registers and flags that the manual leaves undefined are named, by the values that the case begins with."""
    assert dict(X86.undefined(_case(line))) == undefined


@pytest.mark.parametrize(
    ("line", "causes"),
    [
        ("0f2801 rcx=0x20000008", {"misaligned", "wide"}),  # movaps xmm0, [rcx]
        ("0f1001 rcx=0x20000008", {"wide"}),  # movups
        ("488b01 rcx=0x8000000000000000", {"not canonical"}),
        ("ffe1 rcx=0x8000000000000000", {"not canonical"}),
        ("fa", {"privileged"}),
        ("66e900000000", {"size of a branch"}),
        ("9048b8", {"cut off", "no instruction"}),
        ("f00fb3cc", {"cut off", "no instruction"}),
        ("480fa301 rcx=0x20000000 rax=0x7fffffffffffffff", {"not canonical"}),  # bt [rcx], rax
        ("456522f0", {"misplaced REX"}),
        ("480fafc375009c", {"undefined flags"}),  # imul; jne; pushf
        ("f2e100", {"repeated branch"}),
        ("4d667f0f", {"misplaced REX", "size of a branch"}),
        ("660f810000fa", {"cut off", "no instruction", "size of a branch"}),
        ("9d9c", {"privileged", "undefined flags"}),
        ("dd17 rdi=0x20001ffc", {"C1 of rounding", "over an edge"}),
        ("df17 rdi=0x20001ffc", {"C1 of rounding"}),
        ("f30f7f07 rdi=0x20001ff8", {"wide", "over an edge"}),
        ("66f20f58c1", {"several prefixes"}),
        ("f2f3ae", {"several prefixes", "repeated compare"}),
        ("f2f3c20800", {"repeated branch"}),
        ("f2f3c6ff00", {"no instruction", "cut off"}),
        ("66f20f38f1c0", set()),  # crc32 of 16 bits
        ("0f0dc7", {"prefetch of a register"}),
        ("f3a6 rcx=1", {"repeated compare", "two operands"}),
        ("7503000000f1", {"read and written", "banned"}),  # jne to int1
        ("e900000010 rax=0x8000000000000000", {"not canonical", "jumps away", "cut off", "read and written"}),
        ("f066430f1c2da6f6ff0f", {"cut off", "no instruction"}),
        ("ebfe", {"loop"}),
        ("0100", {"read and written"}),
        (
            "4076fa",
            {"loop", "read and written", "privileged", "jumps away", "cut off"},
        ),  # jbe into the zeros before, from which it comes to cli
        ("a6", {"two operands"}),
        ("36488b01", {"segment override"}),
        (
            "36488b01 rcx=0x8000000000000000",
            {"segment override", "not canonical", "not canonical with an override"},
        ),
        ("4801d8", set()),
    ],
)
def test_causes(line: str, causes: set[str]) -> None:
    """What may raise an exception that some executors do not know is found from the case alone."""
    assert X86.causes(_case(line)) == causes


def test_banned() -> None:
    """What tells the time or the machine, draws, waits, calls a kernel or leaves for other segments has its reason."""
    for name in ("rdtsc", "rdrand_r64", "cpuid", "syscall", "mov_rm16_sreg", "jmp_m1632", "in_al_dx", "wrmsr", "hlt"):
        assert X86.banned(name), name
    assert not X86.banned("add_rm64_r64")


def test_approximations_are_alike() -> None:
    """Of RCPPS two results within the error that the manual allows are alike, and others are not."""
    case = _case("0f53c1")
    one = 0x3F800000
    assert X86.alike(case, "xmm0", one, one + 0x100)
    assert not X86.alike(case, "xmm0", one, one + 0x10000)
    assert not X86.alike(_case("0f58c1"), "xmm0", one, one + 1)


def test_rules() -> None:
    """A rule is what the manual says: of the flags, of what is no instruction, of a case that the table knows."""
    assert X86.rule("adc_rm64_r64", "flags").startswith("modified OF SF ZF AF PF CF")
    assert "#UD" in X86.rule(f"{BAD} f0 0fb3", "exception")
    assert "operand size" in X86.rule("lzcnt_r64_rm64", "registers")


def test_selecting() -> None:
    """Patterns are of names and extensions; a banned form is made where it is named in full."""
    row = isa("x86_64")
    assert select(row, "vex_blsi_r64_rm64") == ["vex_blsi_r64_rm64"]
    assert {"vex_blsi_r64_rm64", "andn_r64_r64_rm64"} & set(select(row, "BMI1"))
    assert "rdtsc" not in select(row, None)
    assert select(row, "rdtsc") == ["rdtsc"]
    assert select(row, "rdtsc,nop*")[0] == "rdtsc"
    with pytest.raises(UsageError, match="is not made: it tells the time"):
        select(row, "rdtsc*")
    with pytest.raises(UsageError, match="no form of x86_64 matches 'frob'"):
        select(row, "frob")


def test_generation_is_a_function_of_the_seed() -> None:
    """Chunk n of a seed is the same whatever was made before, and another one for another seed."""
    row = isa("x86_64")
    names = select(row, None)

    def made(seed: int, number: int) -> list[str]:
        return [str(case) for case in Generator(row, names, seed=seed).chunk(number, 50)]

    generator = Generator(row, names, seed=5)
    generator.chunk(0, 50)
    assert [str(case) for case in generator.chunk(3, 50)] == made(5, 3)
    assert made(5, 3) != made(6, 3)
    assert made(5, 3) != made(5, 4)


def test_no_banned_instruction_by_chance() -> None:
    """Neither random bytes nor mutants have a banned instruction in them."""
    row = isa("x86_64")
    generator = Generator(row, select(row, None), seed=2, sources=("bytes", "mutants"), corpus=(_case("0f31"),))
    for case in generator.chunk(0):
        for one in X86.decode(case.code, case.start):
            assert one.form.startswith(BAD) or not X86.banned(one.form)


def test_cases_end_in_time() -> None:
    """Cases fit: code in its page, states of the right size, the flags that are fixed as they are to be."""
    row = isa("x86_64")
    for case in Generator(row, select(row, None), seed=1, length=4).chunk(0):
        assert len(case.state) == row.size
        assert CODE <= case.start < CODE + PAGE
        assert row.values(case.state)["rflags"] & row.fixed["rflags"][0] == 0x202
