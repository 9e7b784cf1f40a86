"""The table of A64 instructions: against the manual by hand, against itself, and against capstone's decoder."""

from __future__ import annotations

import random
from itertools import combinations

import capstone
import pytest

from vmtest.forms import forms
from vmtest.forms.aarch64 import Table
from vmtest.model.case import Case
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE

TABLE = forms("aarch64")
assert isinstance(TABLE, Table)
MADE = [name for name in TABLE.names if not TABLE.banned(name)]
BAD = "(bad)"
UNPREDICTABLE = " (unpredictable)"


def _made(seed: int, each: int) -> list[tuple[str, bytes]]:
    draw = random.Random(seed)
    return [(name, TABLE.make(draw, name).code) for name in MADE for _ in range(each)]


def test_every_form_is_made() -> None:
    """Each form is made, and decodes to itself, but for a few percent that are reserved on purpose; the same seed makes
    the same.
    """
    made = _made(1, 60)
    bad = odd = 0
    for name, code in made:
        ((form, size),) = TABLE.decode(code)
        assert size == 4
        assert form in (name, name + UNPREDICTABLE) or form.startswith(BAD), (name, code.hex())
        bad += form.startswith(BAD)
        odd += form.endswith(UNPREDICTABLE)
    assert len(MADE) > 1300
    assert 0.003 * len(made) < bad < 0.04 * len(made)
    assert 0 < odd < 0.01 * len(made)
    assert made[:5000] == _made(1, 60)[:5000]


def test_no_word_is_of_two_forms() -> None:
    """Where two rows fit a word one of them is the special case of the other."""
    draw = random.Random(2)
    for one, other in combinations(TABLE.rows.values(), 2):
        both = one.mask & other.mask
        if (one.match ^ other.match) & both or both in (one.mask, other.mask):
            continue
        for _ in range(200):
            word = (draw.getrandbits(32) & ~one.mask | one.match) & ~other.mask | other.match
            assert not (one.fits(word) and other.fits(word)), (one.name, other.name)


# Words (not bytes in memory's order) from the manual's diagrams, by hand.
BY_HAND = [
    ("8b020020", "add_shifted_x shift=0 Rm=2 imm6=0 Rn=1 Rd=0"),
    ("91400421", "add_imm_x sh=1 imm12=1 Rn=1 Rd=1"),
    ("8bc20020", BAD),  # the shift is ROR
    ("0b028020", BAD),  # by 32 of 32 bits
    ("8b2257e0", BAD),  # extended and shifted by 5
    ("92401c00", "and_imm_x N=1 immr=0 imms=7 Rn=0 Rd=0"),
    ("12401c00", BAD),  # N of 32 bits
    ("9240fc00", BAD),  # all ones
    ("1200f800", BAD),
    ("d2824680", "movz_x hw=0 imm16=4660 Rd=0"),
    ("52c24680", BAD),  # shifted by 32 of 32 bits
    ("72824680", "movk_w hw=0 imm16=4660 Rd=0"),
    ("10000000", "adr simm=0 Rd=0"),
    ("70ffffe0", "adr simm=-1 Rd=0"),
    ("d503201f", "hint CRm=0 op2=0"),
    ("d503207f", "wfi"),
    ("d503233f", "pac_hint3 op2=1"),
    ("d503245f", "hint CRm=4 op2=2"),  # bti c
    ("d5033fdf", "isb CRm=15"),
    ("d53be040", "mrs_msr L=1 o0=1 op1=3 CRn=14 CRm=0 op2=2 Rt=0"),  # cntvct_el0
    ("d53b4200", "mrs_nzcv Rt=0"),
    ("d51b4400", "msr_fpcr Rt=0"),
    ("d50b7420", "sys L=0 op1=3 CRn=7 CRm=4 op2=1 Rt=0"),  # dc zva
    ("d65f03c0", "ret Rn=30"),
    ("14000001", "b simm=4"),
    ("54ffffe1", "b_cond simm=-4 cond=1"),
    ("b7f80020", "tbnz b5=1 b40=31 simm=4 Rt=0"),
    ("d4000001", "svc imm16=0"),
    ("f94003e0", "ldr_x_uimm uimm=0 Rn=31 Rt=0"),
    ("3dc00420", "ldr_q_uimm uimm=16 Rn=1 Rt=0"),
    ("f8408420", "ldr_x_post simm=8 Rn=1 Rt=0"),
    ("f8408421", "ldr_x_post (unpredictable) simm=8 Rn=1 Rt=1"),
    ("f84087ff", "ldr_x_post simm=8 Rn=31 Rt=31"),
    ("f8627820", "ldr_x_reg Rm=2 option=3 S=1 Rn=1 Rt=0"),
    ("f8621820", BAD),  # the option is 0
    ("a9be7bfd", "stp_x_pre simm=-32 Rt2=30 Rn=31 Rt=29"),
    ("a9400420", "ldp_x simm=0 Rt2=1 Rn=1 Rt=0"),
    ("a9400020", "ldp_x (unpredictable) simm=0 Rt2=0 Rn=1 Rt=0"),
    ("a9000020", "stp_x simm=0 Rt2=0 Rn=1 Rt=0"),
    ("c85ffc20", "ldaxr_x Rs=31 Rt2=31 Rn=1 Rt=0"),
    ("c8007c20", "stxr_x (unpredictable) Rs=0 Rt2=31 Rn=1 Rt=0"),
    ("08217c02", BAD),  # casp of an odd register
    ("f8210041", "ldadd_x A=0 R=0 Rs=1 Rn=2 Rt=1"),
    ("4c407000", "ld1x1 Q=1 size=0 Rn=0 Rt=0"),
    ("0c408c00", BAD),  # ld2 of 1D
    ("4d40c800", "ld1r Q=1 S=0 size=2 Rn=0 Rt=0"),
    ("1e222820", "fadd_s Rm=2 Rn=1 Rd=0"),
    ("1ea22820", BAD),
    ("1ee22820", "fadd_h Rm=2 Rn=1 Rd=0"),
    ("9e780000", "fcvtzs_x_d Rn=0 Rd=0"),
    ("1e7e0000", "fjcvtzs Rn=0 Rd=0"),
    ("1e42a020", "scvtf_fixed_w_d scale=40 Rn=1 Rd=0"),
    ("1e422020", BAD),  # 56 bits of 32
    ("4e228420", "add_v Q=1 size=0 Rm=2 Rn=1 Rd=0"),
    ("0ee28420", BAD),  # add of 1D
    ("5ee28420", "add_1 size=3 Rm=2 Rn=1 Rd=0"),
    ("6e21dc20", "fmul_v Q=1 sz=0 Rm=1 Rn=1 Rd=0"),
    ("2e61dc20", BAD),
    ("4f000420", "movi_s_v Q=1 cmode=0 imm8=1 Rd=0"),
    ("6f00f420", "fmov_imm_2d_v imm8=1 Rd=0"),
    ("2f00f420", BAD),
    ("4f080420", "sshr_v Q=1 immh=1 immb=0 Rn=1 Rd=0"),
    ("0f400420", BAD),  # shift of 1D
    ("4e0d1c20", "ins_general imm5=13 Rn=1 Rd=0"),
    ("4e101c20", BAD),
    ("0e083c20", BAD),  # umov of a doubleword to 32 bits
    ("4e083c20", "umov_x imm5=8 Rn=1 Rd=0"),
    ("4e284820", "aese Rn=1 Rd=0"),
    ("5e021020", "sha1p Rm=2 Rn=1 Rd=0"),
    ("9ac44c41", "crc32x Rm=4 Rn=2 Rd=1"),
    ("1ac44c41", BAD),
    ("00000000", "udf imm16=0"),
    ("04000000", BAD),  # SVE
    ("ffffffff", BAD),
]


@pytest.mark.parametrize(("word", "told"), BY_HAND, ids=[word for word, _ in BY_HAND])
def test_by_hand(word: str, told: str) -> None:
    """Encodings that were put together by hand from the manual are told as what they are."""
    (said,) = TABLE.text(bytes.fromhex(word)[::-1])
    assert sorted(said.split()[:1] if told == BAD else said.split()) == sorted(told.split())


def test_cut_off() -> None:
    """What is cut off is bad, and what comes before it is told."""
    assert [form for form, _ in TABLE.decode(bytes.fromhex("2000028b1f2003"))] == ["add_shifted_x", BAD]
    assert sum(size for _, size in TABLE.decode(bytes(range(61)))) == 61


# Where capstone 5 and the manual differ, by form.
REFUSED_BY_CAPSTONE = {
    **dict.fromkeys(("ldtr_w", "ldtr_x", "ldtrb", "ldtrh", "ldtrsb_w", "ldtrsh_w"), "they write no base back"),
    "msr_imm": "the row stands for all of the kind",
    "tags": "the row stands for all of the kind",
    "ldraa": "the row stands for all of the kind, of which none is unpredictable",
}
UNKNOWN_TO_CAPSTONE = {"cssc", "mops", "mte"}  # of mte it knows some
TAKEN_BY_CAPSTONE = {"mrs": "op0 is 0", "msr": "op0 is 0", "tcancel": "transactions", "tcommit": "transactions"}


def _agree(disassembler: capstone.Cs, code: bytes) -> bool:
    ((form, _),) = TABLE.decode(code)
    said = next((found[2] for found in disassembler.disasm_lite(code, 0)), "")
    scalable = int.from_bytes(code, "little") >> 25 & 15 < 4  # SVE and SME are in there
    if form.startswith(BAD):
        return not said or scalable or said in TAKEN_BY_CAPSTONE
    if form.endswith(UNPREDICTABLE) or TABLE.features(form) & UNKNOWN_TO_CAPSTONE:
        return True
    return bool(said) or form in REFUSED_BY_CAPSTONE


def test_as_capstone_decodes() -> None:
    """What is an instruction and what is not, capstone says alike: of made ones, of those with a bit changed, and of
    random words.
    """
    disassembler = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    draw = random.Random(3)
    made = [code for _, code in _made(4, 30)]
    changed = [(int.from_bytes(code, "little") ^ 1 << draw.randrange(10, 32)).to_bytes(4, "little") for code in made]
    codes = [*made, *changed, *(draw.randbytes(4) for _ in range(40000))]
    assert [code[::-1].hex() for code in codes if not _agree(disassembler, code)] == []


def test_names_as_capstone() -> None:
    """Forms begin with the manual's mnemonic: capstone says the same of each, but for its aliases."""
    disassembler = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    said: dict[str, set[str]] = {}
    for name, code in _made(5, 20):
        if TABLE.decode(code)[0].form == name and not TABLE.features(name) & UNKNOWN_TO_CAPSTONE:
            said.setdefault(name, set()).update(found[2] for found in disassembler.disasm_lite(code, 0))
    unlike = {name.partition("_")[0] for name, told in said.items() if name.partition("_")[0] not in _plain(told)}
    shifts = {"sbfm", "bfm", "ubfm", "lslv", "lsrv", "asrv", "rorv", "movz", "movn"}
    loads = {f"{kind}1x{number}" for kind in ("ld", "st") for number in (1, 2, 3, 4)}
    aliased = {"b", "umov", "ins", "not", "bfmlal", "dup", "dsb", "orr", "mrs", "msr"}
    assert unlike <= shifts | loads | aliased


def _plain(told: set[str]) -> set[str]:
    return {text.partition(".")[0] for text in told}


def test_memory_is_reached() -> None:
    """The base register of a load or store, and its index, are such that it reaches the data window, mostly wholly."""
    draw = random.Random(6)
    inside = total = 0
    for name in MADE:
        row = TABLE.rows[name]
        kind, _, size = row.access.partition(":")
        if kind not in ("offset", "base", "exact", "ordered", "index"):
            continue
        for _ in range(20):
            code, registers = TABLE.make(draw, name)
            if not registers:
                continue
            start = _reached(int.from_bytes(code, "little"), name, registers)
            assert DATA - int(size) - 15 <= start <= DATA + DATA_SIZE
            inside += DATA <= start <= DATA + DATA_SIZE - int(size)
            total += 1
    assert total > 5000
    assert inside > 0.9 * total


def _reached(word: int, name: str, registers: dict[str, int]) -> int:
    """The address, as the manual's pseudocode has it."""
    row = TABLE.rows[name]
    field = {name: field.get(word) for name, field in row.fields.items()}
    base = registers["sp" if field["Rn"] == 31 else f"x{field['Rn']}"]
    kind, _, size = row.access.partition(":")
    if kind in ("offset", "ordered"):
        return (base + field.get("simm", field.get("uimm", 0))) % 2**64
    if kind == "index":
        index = registers.get(f"x{field['Rm']}", 0)
        if field["option"] in (2, 6):
            index %= 2**32
            if field["option"] == 6 and index >> 31:
                index -= 2**32
        return (base + (index << (int(size).bit_length() - 1) * field["S"])) % 2**64
    return base


def test_what_else_is_known() -> None:
    """Extensions, what is not made and why, privilege, and the manual's rules are told by form."""
    assert TABLE.features("ldadd_x") == {"lse"}
    assert TABLE.features("fcmla_v_h") == {"fcma", "fp16"}
    assert TABLE.features("add_shifted_x") == TABLE.features(BAD) == frozenset()
    assert TABLE.features("ldapr_x (unpredictable)") == {"rcpc"}
    assert "waits" in TABLE.banned("wfi")
    assert "tells the time" in TABLE.banned("mrs_msr")
    assert TABLE.banned("stxr_x") == TABLE.banned(BAD) == TABLE.banned("mrs_nzcv") == ""
    assert TABLE.privileged(Case.parse("aarch64 2000028b020000d4"))  # add, hvc
    assert not TABLE.privileged(Case.parse("aarch64 2000028b010000d4"))
    assert "undefined" in TABLE.rule(BAD, "exception")
    assert "UNPREDICTABLE" in TABLE.rule("ldp_x (unpredictable)", "exception")
    assert TABLE.rule("crc32b", "exception") == "needs crc32; without it an undefined-instruction exception"
    assert "by zero" in TABLE.rule("udiv_x", "registers")
    assert "FPMaxNum" in TABLE.rule("fmaxnm_v", "vectors")
    assert TABLE.rule("add_imm_w", "registers") == ""


def test_branches_end() -> None:
    """Branches mostly go forward by a few instructions, and jumps to the end of the page of code."""
    draw = random.Random(7)
    jumps = [TABLE.make(draw, "br").registers for _ in range(400)]
    assert sum(CODE + PAGE in registers.values() for registers in jumps) > 250
    said = [TABLE.text(TABLE.make(draw, "cbz_x").code)[0] for _ in range(400)]
    assert sum(any(f"simm={step} " in text for step in (4, 8, 12, 16)) for text in said) > 300


def test_causes() -> None:
    """What may lead to an exception that not every executor knows is told: a mode, alignment, what is cut off."""
    said = {
        "d53be040": {"privileged"},  # mrs x0, cntvct_el0
        "c85f7c20": {"misaligned"},  # ldxr x0, [x1]
        "085f7c20": set(),  # ldxrb
        "c85f7c40": set(),  # ldxr x0, [x2]
        "8b020020": set(),
    }
    for word, causes in said.items():
        code = bytes.fromhex(word)[::-1].hex()
        assert TABLE.causes(Case.parse(f"aarch64 {code} x1=0x20000004 x2=0x20000008")) == causes, word
    assert TABLE.causes(Case.parse("aarch64 2000028b20")) == {"cut off", "no instruction"}
    # Of 8 bytes: stur x0, [x1, #4]; str x0, [x1, #8]; str x0, [x1], #8; str x0, [x1, x2]; str x0, [x1, w2, sxtw].
    for word, offset in (("f8004020", 4), ("f9000420", 8), ("f8008420", 0), ("f8226820", 3), ("f822c820", -16)):
        code = bytes.fromhex(word)[::-1].hex()
        for place, causes in ((-4, {"over an edge"}), (-8, set()), (0, set())):
            index = f"x2={offset % 2**32 if offset < 0 else offset}"
            case = Case.parse(f"aarch64 {code} x1={DATA + DATA_SIZE + place - offset} {index}")
            assert TABLE.causes(case) == causes, (word, place)
    for line, causes in (
        ("20001fd6 x1=0x4000000010000ffc", {"top byte", "loop"}),  # br x1
        ("20001fd6 x1=0x10000ffc", {"loop"}),
        ("00000014", {"loop"}),  # b .
        ("01000014", set()),
        ("200040f9 x1=0x1000000020000000", {"top byte"}),  # ldr x0, [x1]
        ("2000028b x1=0x1000000020000000", set()),
    ):
        assert TABLE.causes(Case.parse(f"aarch64 {line}")) == causes, line
