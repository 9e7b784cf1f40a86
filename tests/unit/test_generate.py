"""What cases of a seed have in them: values, prefixes, states of floating point, widths of addresses."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from iced_x86 import Decoder

from vmtest.forms import BAD, forms
from vmtest.forms.x86_access import accesses
from vmtest.fuzz.generate import Generator, select, values_of
from vmtest.model.case import Case
from vmtest.model.isa import isa

X86 = isa("x86_64")


def _cases(seed: int = 1, name: str = "x86_64", patterns: str | None = None) -> list[Case]:
    row = isa(name)
    return Generator(row, select(row, patterns), seed=seed, sources=("forms",)).chunk(0)


def _begun(seed: int, register: str) -> set[int]:
    return {X86.values(case.state)[register] for case in _cases(seed, patterns="nopd")}


def test_values_are_of_the_seed() -> None:
    """Another seed has other values, and after some chunks there are others too; the same one has the same."""
    assert _begun(1, "xmm5") == _begun(1, "xmm5")
    assert len(_begun(1, "xmm5") & _begun(2, "xmm5")) < len(_begun(1, "xmm5")) / 2
    generator = Generator(X86, select(X86, "nopd"), seed=1, sources=("forms",))
    later = {X86.values(case.state)["xmm5"] for case in generator.chunk(64)}
    assert len(_begun(1, "xmm5") & later) < len(later) / 2


def test_numbers_of_80_bits() -> None:
    """Most of what x87 begins with are ordinary numbers, whose integer bit is set; all other classes are there."""
    classes: Counter[str] = Counter()
    for value in (int.from_bytes(data, "little") for data in values_of(10, Random(1))):
        exponent, integer, fraction = value >> 64 & 0x7FFF, value >> 63 & 1, value & (1 << 63) - 1
        if exponent == 0x7FFF:
            classes[("infinity" if not fraction else "nan") if integer else "unsupported"] += 1
        elif exponent == 0:
            classes["denormal" if value % (1 << 64) else "zero"] += 1
        else:
            classes["normal" if integer else "unsupported"] += 1
    assert classes["normal"] > sum(classes.values()) / 3
    assert classes.keys() == {"infinity", "nan", "unsupported", "denormal", "zero", "normal"}


def test_states_of_floating_point() -> None:
    """A share of the cases has other rounding, precision, tags and tops than others; exceptions are masked in all."""
    values = [X86.values(case.state) for case in _cases(patterns="nopd")]
    for register, bits in (("mxcsr", 0xE040), ("fcw", 0xF00), ("fsw", 0x3800)):
        seen = {value[register] & bits for value in values}
        assert len(seen) >= 8, register
    assert 0.1 < sum(value["mxcsr"] != 0x1F80 for value in values) / len(values) < 0.4
    assert all(value["mxcsr"] & 0x1FBF == 0x1F80 and value["fcw"] & 0x3F == 0x3F for value in values)
    assert not any(value["fsw"] & 0xFF or value["fcw"] & 0x300 == 0x100 for value in values)


def test_locked_and_repeated() -> None:
    """LOCK is on a share of what allows it, in memory; a repeat prefix on half of the string instructions, with a small
    count mostly.
    """
    locked = [case for case in _cases(patterns="add_rm64_r64") if case.code[:1] == b"\xf0"]
    assert len(locked) > 50
    bad = [case for case in locked if forms("x86_64").decode(case.code)[0].form.startswith(BAD)]
    assert len(bad) < len(locked) / 8  # where the prefix is one that was put before anything
    repeated = [case for case in _cases(patterns="movsb_m8_m8,scasd*") if case.code[0] in (0xF2, 0xF3)]
    assert len(repeated) > 300
    small = sum(X86.values(case.state)["rcx"] <= 8 for case in repeated)
    assert small > len(repeated) * 0.8


@pytest.mark.parametrize("mode", [16, 32])
def test_addresses_of_16_bits(mode: int) -> None:
    """In 16-bit mode addresses have 16 bits and 32, both mostly in the window."""
    row, widths, inside = isa("x86_16"), Counter[int](), 0
    cases = _cases(name="x86_16", patterns="add_rm32_r32")
    for case in cases:
        (one,) = Decoder(16, case.code, ip=case.start)
        reached = [address for address, _, _ in accesses(case, one)]
        if reached:
            widths[32 if 0x67 in case.code[:3] else 16] += 1
            inside += row.data <= reached[0] < row.data + 0x2000
    assert widths[mode] > sum(widths.values()) / 4
    assert inside > sum(widths.values()) * 0.8
