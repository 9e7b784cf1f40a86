"""The table of RV64 instructions: against the manual by hand, against itself, and against capstone's decoder."""

from __future__ import annotations

import random
from itertools import combinations

import capstone
import pytest

from vmtest.forms import Instruction, forms
from vmtest.forms.riscv64 import Table
from vmtest.model.case import Case
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE

TABLE = forms("riscv64")
assert isinstance(TABLE, Table)
MADE = [name for name in TABLE.names if not TABLE.banned(name)]
BAD = "(bad)"


def _made(seed: int, each: int) -> list[tuple[str, bytes]]:
    draw = random.Random(seed)
    return [(name, TABLE.make(draw, name).code) for name in MADE for _ in range(each)]


def test_every_form_is_made() -> None:
    """Each form is made, and decodes to itself, but for a few percent that are reserved on purpose; the same seed makes
    the same.
    """
    made = _made(1, 200)
    others = dict.fromkeys(MADE, 0)
    for name, code in made:
        ((form, size),) = TABLE.decode(code)
        assert size == len(code)
        assert form in (name, BAD), (name, code.hex())
        others[name] += form == BAD
    assert len(MADE) > 230
    assert max(others.values()) < 20
    assert 0.001 * len(made) < sum(others.values()) < 0.04 * len(made)
    assert made[:5000] == _made(1, 200)[:5000]


def test_no_word_is_of_two_forms() -> None:
    """Where two rows fit a word one of them is the special case of the other."""
    draw = random.Random(2)
    for one, other in combinations(TABLE.rows.values(), 2):
        both = one.mask & other.mask
        if one.size != other.size or (one.match ^ other.match) & both or both in (one.mask, other.mask):
            continue
        for _ in range(200):
            word = (draw.getrandbits(32) & ~one.mask | one.match) & ~other.mask | other.match
            assert not (one.fits(word) and other.fits(word)), (one.name, other.name)


# The manual's chapters, and its listing of instructions, by hand.
BY_HAND = [
    ("13050001", "addi rd=10 rs1=0 simm=16"),
    ("1305f0ff", "addi simm=-1 rs1=0 rd=10"),
    ("b3822000", "add rs2=2 rs1=1 rd=5"),
    ("b7f2ffff", "lui simm=-4096 rd=5"),
    ("6f004000", "jal simm=4 rd=0"),
    ("eff0dfff", "jal simm=-4 rd=1"),
    ("e38e00fe", "beq simm=-4 rs2=0 rs1=1"),
    ("23b4a1fe", "sd simm=-24 rs2=10 rs1=3"),
    ("73000000", "ecall"),
    ("73000010", "system any=2097152"),
    ("73252000", "csrrs csr=2 rs1=0 rd=10"),
    ("73251000", "csrrs csr=1 rs1=0 rd=10"),
    ("732510c0", "csr_other csr=3073 rs1=0 funct3=2 rd=10"),  # rdtime
    ("2fa5b512", BAD),  # lr.w with rs2
    ("2fa50514", "lr.w aq=1 rl=0 rs1=11 rd=10"),
    ("53f5c500", "fadd.s rs2=12 rs1=11 rm=7 rd=10"),
    ("53d5c500", BAD),  # the rounding mode 5
    ("d3d505c2", BAD),
    ("537505c2", "fcvt.w.d rs1=10 rm=7 rd=10"),
    ("93150502", "slli shamt=32 rs1=10 rd=11"),
    ("9b150502", BAD),  # slliw by 32
    ("0f00f00f", "fence fm=0 pred=15 succ=15 rs1=0 rd=0"),
    ("0f100000", "fence.i unused=0 rs1=0 rd=0"),
    ("1300", BAD),  # cut off
    ("0000", BAD),
    ("ffff", BAD),
    ("0100", "c.addi simm=0 rd=0"),
    ("0508", "c.addi simm=1 rd=16"),
    ("0125", "c.addiw simm=0 rd=10"),
    ("0120", BAD),  # c.addiw with rd=0
    ("0161", BAD),  # c.addi16sp by 0
    ("3971", "c.addi16sp simm=-64"),
    ("0165", BAD),  # c.lui of 0
    ("0565", "c.lui simm=4096 rd=10"),
    ("7d75", "c.lui simm=-4096 rd=10"),
    ("0240", BAD),  # c.lwsp to x0
    ("0280", BAD),  # c.jr by x0
    ("8280", "c.jr rs1=1"),
    ("0290", "c.ebreak"),
    ("2e85", "c.mv rd=10 rs2=11"),
    ("419c", BAD),
    ("0080", BAD),
    ("e0ff", "c.sd uimm=248 rs1c=7 rs2c=0"),
    ("fdbf", "c.j simm=-2"),
    ("f5dd", "c.beqz simm=-4 rs1c=3"),
]


@pytest.mark.parametrize(("code", "told"), BY_HAND, ids=[code for code, _ in BY_HAND])
def test_by_hand(code: str, told: str) -> None:
    """Encodings that were put together by hand from the manual are told as what they are."""
    (said,) = TABLE.text(bytes.fromhex(code))
    assert sorted(said.split()[:1] if told == BAD else said.split()) == sorted(told.split())


def test_sequence() -> None:
    """Instructions of both sizes follow each other, and one that is cut off is bad."""
    assert TABLE.decode(bytes.fromhex("0100130500010100b382")) == [
        Instruction("c.addi", 2),
        Instruction("addi", 4),
        Instruction("c.addi", 2),
        Instruction(BAD, 2),
    ]


# Where capstone 5 and the manual differ, each form with what it is.
REFUSED_BY_CAPSTONE = {
    **dict.fromkeys(("fence", "fence.i"), "fields that are reserved are to be ignored, and hints are instructions"),
    **dict.fromkeys(("c.slli", "c.li", "c.add", "c.mv", "c.lui", "c.addi"), "hints, with rd=0, are instructions"),
    **dict.fromkeys(("fcvt.d.s", "fcvt.d.w", "fcvt.d.wu"), "a rounding mode is part of those that are exact, too"),
    "system": "rows that stand for all the rest",
    "cbo": "rows that stand for all the rest",
    "csr_other": "rows that stand for all the rest",
}
TAKEN_BY_CAPSTONE = {"c.lui": "of 0 is reserved", "c.unimp": "is defined as no instruction"}


def _capstone(disassembler: capstone.Cs, code: bytes) -> str:
    found = list(disassembler.disasm_lite(code, 0))
    return found[0][2] if found and found[0][1] == len(code) else ""


def _agree(disassembler: capstone.Cs, code: bytes) -> bool:
    ((form, _),) = TABLE.decode(code)
    said = _capstone(disassembler, code)
    if form == BAD:
        return said in ("", *TAKEN_BY_CAPSTONE)
    if TABLE.features(form):  # it knows none of the extensions beyond RV64GC
        return said == ""
    return bool(said) or form in REFUSED_BY_CAPSTONE


def test_as_capstone_decodes() -> None:
    """What is an instruction and what is not, capstone says alike: of made ones, and of random words."""
    disassembler = capstone.Cs(capstone.CS_ARCH_RISCV, capstone.CS_MODE_RISCV64 | capstone.CS_MODE_RISCVC)
    draw = random.Random(3)
    words = [draw.getrandbits(32) for _ in range(60000)]
    random_ = [
        (word | 3).to_bytes(4, "little") if word & 3 else (word & 0xFFFD).to_bytes(2, "little") for word in words
    ]
    codes = [*random_, *(code for _, code in _made(4, 60))]
    assert [code.hex() for code in codes if not _agree(disassembler, code)] == []


def test_names_as_capstone() -> None:
    """Forms are named as the manual does: capstone says the same of each, but for its aliases."""
    disassembler = capstone.Cs(capstone.CS_ARCH_RISCV, capstone.CS_MODE_RISCV64 | capstone.CS_MODE_RISCVC)
    said: dict[str, set[str]] = {}
    for name, code in _made(5, 60):
        if TABLE.decode(code)[0].form == name and not TABLE.features(name):
            told = _capstone(disassembler, code)
            said.setdefault(name, set()).add(told.removesuffix(".aqrl").removesuffix(".aq").removesuffix(".rl"))
    unlike = {name for name, names in said.items() if name not in names}
    assert unlike <= {"csrrw", "fence", "fence.i"}  # the first is fsrm, fsflags or fscsr; of the others it knows few


def test_memory_is_reached() -> None:
    """A load or store's base register is such that it reaches the data window, mostly wholly."""
    draw = random.Random(6)
    inside = total = 0
    for name in MADE:
        row = TABLE.rows[name]
        if not row.access.startswith(("mem", "atomic")):
            continue
        for _ in range(50):
            code, registers = TABLE.make(draw, name)
            if not registers:
                continue
            ((base, value),) = registers.items()
            word = int.from_bytes(code, "little")
            moved = row.fields.get("simm") or row.fields.get("uimm")
            start = (value + (moved.get(word) if moved else 0)) % 2**64
            size = int(row.access.partition(":")[2])
            assert DATA - size <= start <= DATA + DATA_SIZE
            inside += DATA <= start <= DATA + DATA_SIZE - size
            total += 1
            said = dict(field.partition("=")[::2] for field in TABLE.text(code)[0].split()[1:])
            number = said.get("rs1") or str(int(said["rs1c"]) + 8 if "rs1c" in said else 2)
            assert base == f"x{number}"
    assert total > 2000
    assert inside > 0.9 * total


def test_what_else_is_known() -> None:
    """Extensions, what is not made and why, privilege, and the manual's rules are told by form."""
    assert TABLE.features("sh1add.uw") == {"zba"}
    assert TABLE.features("add") == TABLE.features(BAD) == frozenset()
    assert "user mode" in TABLE.banned("system")
    assert "time" in TABLE.banned("csr_other")
    assert TABLE.banned("lr.w") == TABLE.banned(BAD) == ""
    assert TABLE.privileged(Case.parse("riscv64 130500017300100073005010"))  # addi, ebreak, wfi
    assert not TABLE.privileged(Case.parse("riscv64 1305000173001000"))
    assert "illegal" in TABLE.rule(BAD, "exception")
    assert TABLE.rule("clz", "exception") == "needs zbb; without it an illegal-instruction exception"
    assert TABLE.rule("add", "registers") == ""
    assert "canonical" in TABLE.rule("fadd.d", "vectors")


def test_branches_end() -> None:
    """Branches mostly go forward by a few instructions, and jumps to the end of the page of code."""
    draw = random.Random(7)
    jumps = [TABLE.make(draw, "c.jr").registers for _ in range(400)]
    assert sum(CODE + PAGE in registers.values() for registers in jumps) > 200
    said = [TABLE.text(TABLE.make(draw, "beq").code)[0] for _ in range(400)]
    assert sum(any(f"simm={step} " in text for step in (2, 4, 6, 8)) for text in said) > 300


def test_causes() -> None:
    """What may lead to an exception that not every executor knows is told: a mode, alignment, what is cut off."""
    assert TABLE.causes(Case.parse("riscv64 2fa50510 x11=0x20000004")) == set()  # lr.w
    assert TABLE.causes(Case.parse("riscv64 2fb50510 x11=0x20000004")) == {"misaligned"}  # lr.d
    assert TABLE.causes(Case.parse("riscv64 732510c013")) == {"privileged", "cut off", "no instruction"}  # rdtime
    assert TABLE.causes(Case.parse("riscv64 0100")) == set()
    for place, causes in ((-4, {"over an edge"}), (-8, set()), (0, set())):
        assert TABLE.causes(Case.parse(f"riscv64 23b4a1fe x3={DATA + DATA_SIZE + 24 + place}")) == causes  # sd by -24
