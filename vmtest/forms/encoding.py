"""Tables of instruction words: text with a line a form, in the manner of the manuals' own, and the rows made of it.

::

    widths rd=5 rs1=5 rs2=5         how many bits a field has
    [zba]                           the extension that the rows below need; [] is none
    = _ rs2 rs1 _ rd 0110011        a class: bits, fields, and holes that its rows fill, the highest bit first
    sh1add  0010000 010             a row: its form, what fills the holes, options

A field in pieces says which of its bits each has: ``simm[11:5]``; those whose names begin with "simm" are signed.
Options:

- ``rd!=0``, ``size.Q!=110``, ``immh=1xxx|01xx``: what is no instruction, or what alone is one. A value with as many
  digits as its fields have bits is binary, any other is decimal, and one that is the name of a field stands for that.
- ``?Rn=Rt,Rn!=31``: where all of that holds the manual calls it unpredictable.
- ``@simm:8``: how it reaches memory, and how many bytes; ``@branch``: where it goes. See the tables' own files.
- ``!why``: it is not made unless it is asked for; the table says what the word stands for.
- ``+fp16``: it needs that extension, too.

A line with alternatives in braces is a row for each: ``add_{w|x} {0|1} 00`` are ``add_w 0 00`` and ``add_x 1 00``.

Of two rows that fit, that with more fixed bits counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from random import Random

__all__ = ["Field", "Row", "Term", "parse", "read"]

Bits = tuple[int, int]
"""A mask, and what the bits under it are."""
Term = Callable[[int], bool]
"""Whether a word is so."""


@dataclass(frozen=True)
class Field:
    """``pieces`` are (place in the word, width, place in the value)."""

    name: str
    pieces: tuple[tuple[int, int, int], ...]

    @property
    def width(self) -> int:
        """Bits of its value, those below its lowest piece included."""
        return max(to + width for _, width, to in self.pieces)

    @property
    def mask(self) -> int:
        """Its bits in the word."""
        return self.put(-1)

    def get(self, word: int) -> int:
        """Its value in a word."""
        value = 0
        for at, width, to in self.pieces:
            value |= (word >> at & (1 << width) - 1) << to
        if self.name.startswith("simm") and value >> self.width - 1:
            value -= 1 << self.width
        return value

    def put(self, value: int) -> int:
        """The bits of a word in which it has that value."""
        word = 0
        for at, width, to in self.pieces:
            word |= (value >> to & (1 << width) - 1) << at
        return word


@dataclass(frozen=True, kw_only=True)
class Row:
    """A form. ``size`` is in bytes, ``access`` what its ``@`` says, ``banned`` what its ``!`` says, "" for nothing.

    ``refused`` is what a word must not be, ``wanted`` of what it must be one each, ``terms`` what must hold for it;
    ``odd`` is what makes it unpredictable, of which ``should`` is what bits should be.
    """

    name: str
    size: int
    mask: int
    match: int
    fields: Mapping[str, Field]
    features: frozenset[str] = frozenset()
    access: str = ""
    banned: str = ""
    refused: tuple[Bits, ...] = ()
    wanted: tuple[tuple[Bits, ...], ...] = ()
    terms: tuple[Term, ...] = ()
    odd: tuple[tuple[Term, ...], ...] = ()
    should: tuple[Bits, ...] = ()

    @cached_property
    def tweaks(self) -> list[tuple[Bits, ...]]:
        """What is drawn more often than other values, by field: the boundaries, and registers that are the same."""
        found = []
        for one in self.fields.values():
            top = 1 << one.width
            values = {0, 1, top - 1, top - 2, top >> 1, (top >> 1) - 1}
            found.append(tuple((one.mask, one.put(value)) for value in sorted(values)))
        registers = [one for name, one in self.fields.items() if name[0] in "rR" and one.width in (3, 5)]
        for one, other in combinations(registers, 2):
            if one.width == other.width:
                same = (one.put(number) | other.put(number) for number in range(1 << one.width))
                found.append(tuple((one.mask | other.mask, bits) for bits in same))
        return found

    def fits(self, word: int) -> bool:
        """Whether a word is of this form."""
        if word & self.mask != self.match:
            return False
        for mask, value in self.refused:
            if word & mask == value:
                return False
        for choices in self.wanted:
            if not any(word & mask == value for mask, value in choices):
                return False
        return all(term(word) for term in self.terms)

    def unpredictable(self, word: int) -> bool:
        """Whether the manual calls a word of this form unpredictable."""
        return any(all(term(word) for term in terms) for terms in self.odd)

    def draw(self, random: Random) -> int:
        """A word of this form, if it can be found soon: any at all but for the fields that get a boundary's value."""
        for attempt in range(50):
            if attempt == 1:
                random = Random(random.getrandbits(32))  # a strategy's draws are few, however many it takes
            word = self.careless(random)
            for choices in self.wanted:
                mask, value = choices[int(random.random() * len(choices))]
                word = word & ~mask | value
            for mask, value in self.should:
                word = word & ~mask | value
            if self.fits(word) and not (self.odd and self.unpredictable(word)):
                break
        return word

    def careless(self, random: Random) -> int:
        """A word with the fixed bits of this form, which may be reserved."""
        word = self.match | random.getrandbits(8 * self.size) & ~self.mask
        while self.tweaks and random.random() >= 0.5:  # what strategies draw first is 0, which is to end it
            choices = self.tweaks[int(random.random() * len(self.tweaks))]
            mask, value = choices[int(random.random() * len(choices))]
            word = word & ~mask | value
        return word


Special = Mapping[str, Callable[[Mapping[str, Field]], Term]]
"""Options of a table's own: what condition each makes of a row's fields."""


def read(name: str, special: Special | None = None) -> list[Row]:
    """The rows of data/NAME."""
    return parse(Path(__file__).with_name("data").joinpath(name).read_text(), name, special)


def parse(text: str, name: str, special: Special | None = None) -> list[Row]:
    """The rows of a table. Raises ValueError, with the place in the file of that name."""
    widths: dict[str, int] = {}
    feature, pattern = "", ""
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        try:
            if not words:
                continue
            if words[0] == "widths":
                widths |= {key: int(width) for key, _, width in (word.partition("=") for word in words[1:])}
            elif words[0].startswith("["):
                feature = words[0].strip("[]")
            elif words[0] == "=":
                pattern = " ".join(words[1:])
            else:
                rows += [_row(one, pattern.split(), widths, feature, special or {}) for one in _each(" ".join(words))]
        except KeyError as error:
            raise ValueError(f"{name}:{number}: {line.strip()}: there is no field {error}") from error
        except (ValueError, IndexError) as error:
            raise ValueError(f"{name}:{number}: {line.strip()}: {error}") from error
    return rows


def _each(line: str) -> list[list[str]]:
    """The words of the rows that a line stands for."""
    choices = [found.split("|") for found in re.findall(r"\{(.*?)\}", line)]
    return [re.sub(r"\{.*?\}", "{}", line).format(*now).split() for now in zip(*choices, strict=True)] or [line.split()]


def _row(words: list[str], pattern: list[str], widths: Mapping[str, int], feature: str, special: Special) -> Row:
    holes = pattern.count("_")
    fill, rest = iter(words[1 : 1 + holes]), words[1 + holes :]
    if len(words) < 1 + holes:
        raise ValueError(f"{len(words) - 1} of {holes} holes are filled")
    size, mask, match, fields = _fields([next(fill) if part == "_" else part for part in pattern], widths)
    options: dict[str, str] = {}
    features = {feature} - {""}
    refused: list[Bits] = []
    wanted: list[tuple[Bits, ...]] = []
    terms: list[Term] = []
    odd: list[tuple[Term, ...]] = []
    should: list[Bits] = []
    for option in rest:
        if option[0] in "@!":
            options["access" if option[0] == "@" else "banned"] = option[1:]
        elif option[0] == "+":
            features.add(option[1:])
        elif option[0] == "?":
            odd.append(tuple(_term(term, fields) for term in option[1:].split(",")))
            if "," not in option and (only := _choices(option[1:].replace("!=", "="), fields)[0]) and "!=" in option:
                should += only
        elif option in special:
            terms.append(special[option](fields))
        else:
            choices, equal = _choices(option, fields)
            if choices is None:
                terms.append(_term(option, fields))
            elif equal:
                wanted.append(choices)
            else:
                refused += choices
    return Row(
        name=words[0],
        size=size,
        mask=mask,
        match=match,
        fields=fields,
        features=frozenset(features),
        refused=tuple(refused),
        wanted=tuple(wanted),
        terms=tuple(terms),
        odd=tuple(odd),
        should=tuple(should),
        **options,
    )


def _fields(tokens: list[str], widths: Mapping[str, int]) -> tuple[int, int, int, dict[str, Field]]:
    """Bytes, mask, match and fields of a pattern."""
    mask = match = 0
    pieces: dict[str, list[tuple[int, int, int]]] = {}
    at = sum(_width(token, widths) for token in tokens)
    size = at // 8
    if at not in (16, 32):
        raise ValueError(f"it has {at} bits")
    for token in tokens:
        at -= (width := _width(token, widths))
        if set(token) <= {"0", "1"}:
            mask |= (1 << width) - 1 << at
            match |= int(token, 2) << at
            continue
        name, _, ranges = token.rstrip("]").partition("[")
        below = at + width
        for part in ranges.split("|") if ranges else [f"{width - 1}:0"]:
            high, _, low = part.partition(":")
            below -= (bits := int(high) - int(low or high) + 1)
            pieces.setdefault(name, []).append((below, bits, int(low or high)))
    return size, mask, match, {name: Field(name, tuple(found)) for name, found in pieces.items()}


def _width(token: str, widths: Mapping[str, int]) -> int:
    if set(token) <= {"0", "1"}:
        return len(token)
    _, bracket, ranges = token.rstrip("]").partition("[")
    if not bracket:
        return widths[token]
    parts = [part.partition(":") for part in ranges.split("|")]
    return sum(int(high) - int(low or high) + 1 for high, _, low in parts)


def _choices(option: str, fields: Mapping[str, Field]) -> tuple[tuple[Bits, ...] | None, bool]:
    """What the option says by masks, and whether it is what is wanted; None where fields are compared."""
    found = re.fullmatch(r"([\w.]+)(!?=)([\w|]+)", option)
    if found is None:
        raise ValueError(f"{option!r} is not an option")
    left, equal, right = found.groups()
    if right in fields:
        return None, equal == "="
    named = [fields[name] for name in left.split(".")]
    return tuple(_bits(value, named) for value in right.split("|")), equal == "="


def _bits(value: str, named: list[Field]) -> Bits:
    width = sum(field.width for field in named)
    if len(value) != width or set(value) - set("01x"):
        value = f"{int(value):0{width}b}"
    mask = match = 0
    for one in named:
        digits, value = value[: one.width], value[one.width :]
        mask |= one.put(int(re.sub("[01]", "1", digits).replace("x", "0"), 2))
        match |= one.put(int(digits.replace("x", "0"), 2))
    return mask, match


def _term(option: str, fields: Mapping[str, Field]) -> Term:
    choices, equal = _choices(option, fields)
    if choices is not None:
        return lambda word: any(word & mask == value for mask, value in choices) == equal
    left, _, right = option.replace("!", "").partition("=")
    one, other = fields[left], fields[right]
    return lambda word: (one.get(word) == other.get(word)) == equal
