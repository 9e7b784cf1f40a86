"""The tables' language: what a line says of words, and what a line that says nonsense is told."""

from __future__ import annotations

from random import Random

import pytest

from vmtest.forms.encoding import Row, parse


def _rows(*lines: str) -> dict[str, Row]:
    return {row.name: row for row in parse("\n".join(lines), "some.txt")}


def test_fields() -> None:
    """A field's bits may lie anywhere in the word, in any order; it is signed if its name says so."""
    row = _rows("= simm[12|10:5] 00000 00000 000 simm[4:1|11] 1100011", "b")["b"]
    field = row.fields["simm"]
    assert (row.mask, row.match, row.size) == (0x01FFF07F, 0x63, 4)
    for value in (-4096, -2, 0, 2, 2046, 4094):
        assert field.get(field.put(value)) == value
    assert field.put(-2) == field.mask == 0xFE000F80
    assert field.put(2048) == 0x80
    assert _rows("= uimm[8:6] 1111111111111", "u")["u"].fields["uimm"].get(0xFFFF) == 0x1C0


def test_conditions() -> None:
    """What a word must be and must not be is said by fields, one by one or put together, in binary or decimal."""
    rows = _rows(
        "widths Q=1 size=2 rd=5 rs=5",
        "= _ Q size rd rs",
        "a 000 size.Q!=110 rd!=2",
        "b 001 size=00|1x rd!=10",
        "c 010 rd!=rs",
        "d 011 rd=rs",
    )

    def word(name: str, q: int, size: int, rd: int, rs: int) -> int:
        return rows[name].match | q << 12 | size << 10 | rd << 5 | rs

    assert [rows["a"].fits(word("a", q, size, 0, 0)) for q in (0, 1) for size in (2, 3)] == [True, False, True, True]
    assert [rows["a"].fits(word("a", 0, 0, rd, 0)) for rd in (1, 2, 3)] == [True, False, True]
    assert [rows["b"].fits(word("b", 0, size, 0, 0)) for size in range(4)] == [True, False, True, True]
    assert [rows["b"].fits(word("b", 0, 0, rd, 0)) for rd in (2, 10)] == [True, False]
    assert [rows["c"].fits(word("c", 0, 0, 3, rs)) for rs in (3, 4)] == [False, True]
    assert [rows["d"].fits(word("d", 0, 0, 3, rs)) for rs in (3, 4)] == [True, False]
    assert not rows["a"].fits(word("b", 0, 0, 0, 0))


def test_unpredictable() -> None:
    """What all holds of one option makes a word unpredictable, and such are not drawn."""
    row = _rows("widths rd=5 rs=5 rt=5", "= 0 rd rs rt", "a ?rd=rs,rs!=31 ?rt!=7")["a"]
    assert [
        row.unpredictable(rd << 10 | rs << 5 | rt) for rd, rs, rt in ((1, 1, 7), (31, 31, 7), (1, 2, 7), (1, 2, 3))
    ] == [
        True,
        False,
        False,
        True,
    ]
    draw = Random(1)
    assert not any(row.unpredictable(row.draw(draw)) for _ in range(500))


def test_options_and_braces() -> None:
    """A line with braces is a row for each alternative; extensions of the section and of the row are both needed."""
    rows = _rows(
        "widths rd=5",
        "[one] # a section",
        "= _ 0000000000 rd",
        "x_{w|h}  {0|1} {|+two} @load:{4|2} !why",
        "[]",
        "= 1111111111111111",
        "y",
    )
    assert list(rows) == ["x_w", "x_h", "y"]
    assert [rows[name].features for name in rows] == [{"one"}, {"one", "two"}, frozenset()]
    assert [rows[name].access for name in rows] == ["load:4", "load:2", ""]
    assert [rows[name].match for name in rows] == [0, 0x8000, 0xFFFF]
    assert (rows["x_h"].banned, rows["y"].banned) == ("why", "")


def test_boundaries_are_drawn_more_often() -> None:
    """Of a wide field the least and the greatest value are drawn far more often than any other, and registers alike."""
    row = _rows("widths rd=5 rs=5 imm=16", "= 000000 rd rs imm", "a")["a"]
    draw = Random(2)
    words = [row.draw(draw) for _ in range(2000)]
    values = [row.fields["imm"].get(word) for word in words]
    assert values.count(0) > 20
    assert values.count(0xFFFF) > 20
    assert sum(row.fields["rd"].get(word) == row.fields["rs"].get(word) for word in words) > 200
    assert all(row.fits(word) for word in words)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("= 000 rd", "a"), "some.txt:2: a: there is no field 'rd'"),
        (("= 0000", "a"), "it has 4 bits"),
        (("= _ _ 00000000000000", "a 1"), "1 of 2 holes are filled"),
        (("= 0000000000000000", "a 1"), "'1' is not an option"),
        (("= 0000000000000000", "a rd!=3"), "there is no field 'rd'"),
        (("= 0000000000000000", "a_{w|x} {1|2|3}"), "zip"),
    ],
)
def test_nonsense(lines: tuple[str, ...], told: str) -> None:
    """A line that cannot be is told with its place and what is wrong with it."""
    with pytest.raises(ValueError) as caught:
        _rows(*lines)
    assert told in str(caught.value)
