"""Cases without end, by a seed: instructions of every form, random bytes, what else a corpus is mutated into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from random import Random

from vmtest.errors import UsageError
from vmtest.forms import Draft, forms
from vmtest.model.case import Case, Patch
from vmtest.model.isa import CODE, DATA, DATA_SIZE, PAGE, Isa, Register

__all__ = ["CHUNK", "EDGES", "SOURCES", "Generator", "select", "values_of"]

CHUNK = 1024
"""Cases that are made and run at a time."""
SOURCES = {
    "forms": "instructions of every form, of which operands and prefixes are drawn",
    "bytes": "random bytes",
    "mutants": "instructions and the corpus's cases with some bits and bytes changed",
}
_SHARES = {"forms": 85, "bytes": 5, "mutants": 10}
EDGES = (
    0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x100000000,
    0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFE, 0xFFFFFFFFFFFFFFFF, CODE + PAGE, DATA + PAGE,
)  # fmt: skip
# Of floating-point numbers those that are treated in a way of their own: IEEE 754, single and double.
_SINGLES = (0, 0x80000000, 0x3F800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FA00000, 1, 0x7F7FFFFF, 0x4F000000)
_DOUBLES = (
    0, 1 << 63, 0x3FF0000000000000, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0x7FF4000000000000, 1,
    0x7FEFFFFFFFFFFFFF, 0x41DFFFFFFFC00000,
)  # fmt: skip
_BOX = b"\xff" * 4
"""Above a single in a register for doubles: RISC-V, volume I, chapter "D", NaN Boxing."""
_ONE = 0x3FFF, 1 << 63
# Of the 80 bits of x87 sign and exponent, and the integer bit with the fraction: zero, 1, 2.5, pi, the largest,
# infinity, QNaN, SNaN, the smallest denormal, and two that are unsupported and a pseudo-denormal (Intel SDM,
# volume 1, tables 4-3 and 8-3).
_EXTENDED = (
    (0, 0), _ONE, (0x4000, 5 << 61), (0x4000, 0xC90FDAA22168C235), (0x7FFE, (1 << 64) - 1), (0x7FFF, 1 << 63),
    (0x7FFF, 3 << 62), (0x7FFF, 5 << 61), (0, 1), (0x4000, 1 << 62), (0x7FFF, 0), (0, 1 << 63),
)  # fmt: skip
_KEPT = {"ftw": 0x0F}
"""Half of the x87 stack is in use, so that it is neither full for what loads nor empty for what computes."""
# What floating point is set to in some cases: bits of the register that are drawn. Exceptions stay masked, and none is
# raised. Intel SDM, volume 1: 10.2.3 (FTZ, rounding, DAZ), 8.1.5 (rounding, precision), 8.1.3 (conditions and top).
_DRAWN = {"mxcsr": 0xE040, "fcw": 0x0F00, "fsw": 0x7F00, "ftw": 0xFF}
_DRAWN_SHARE = 0.25
_POOL = 512
_WINDOW = 64
"""Bytes of the data window that are set where an address is."""
BLOCKS, EPOCH = 1024, 64
"""How many values of a block of registers there are to draw from, and after how many chunks there are others."""


def values_of(size: int, random: Random | None = None) -> list[bytes]:
    """What registers of so many bytes begin with: the edges, numbers of floating point, and others."""
    random, found = random or Random(size), []
    for _ in range(_POOL):
        if size == 10 and random.random() < 0.8:
            found.append(_extended(random))
            continue
        word, half = random.choice((EDGES, EDGES, _DOUBLES)), random.random() < 0.3
        pieces = random.choice(_SINGLES).to_bytes(4, "little") + _BOX if size == 8 and random.random() < 0.2 else b""
        while len(pieces) < size:
            if random.random() < 0.3:
                pieces += random.randbytes(8)
            elif half:
                pieces += b"".join(random.choice(_SINGLES).to_bytes(4, "little") for _ in range(2))
            else:
                pieces += random.choice(word).to_bytes(8, "little")
        found.append(pieces[:size])
    return found


def _extended(random: Random) -> bytes:
    """A number of x87: an ordinary one mostly, of any size or near to 1, or one of those that are treated in a way of
    their own.
    """
    drawn = random.random()
    if drawn < 0.4:
        exponent, fraction = random.choice(_EXTENDED)
    else:
        exponent = 0x3FFF + random.randrange(-70, 70) if drawn < 0.8 else random.randrange(1, 0x7FFF)
        fraction = 1 << 63 | random.getrandbits(63) & random.choice((-1, -1 << 40, -1 << 11))
    return fraction.to_bytes(8, "little") + (exponent | random.getrandbits(1) << 15).to_bytes(2, "little")


def select(isa: Isa, patterns: str | None) -> list[str]:
    """The forms that the patterns match, by their names or their extensions: ``bls*,BMI2``. None is for all that are
    not banned; a name that is written out is taken even so. Raises UsageError for a pattern that matches none.
    """
    known = forms(isa.name)
    if patterns is None:
        return [name for name in known.names if not known.banned(name)]
    found: dict[str, None] = {}
    words = [word for word in (word.strip().lower() for word in patterns.split(",")) if word]
    if not words:
        raise UsageError(f"{patterns!r} names no form", hint=f"such as {', '.join(known.names[::700])}")
    for pattern in words:
        matching = [name for name in known.names if _matches(pattern, name, known.features(name))]
        if not matching:
            raise UsageError(
                f"no form of {isa.name} matches {pattern!r}", hint=f"such as {', '.join(known.names[::700])}"
            )
        made = [name for name in matching if name == pattern or not known.banned(name)]
        if not made:
            raise UsageError(f"{pattern!r} is not made: {known.banned(matching[0])}", hint="name it in full")
        found |= dict.fromkeys(made)
    return list(found)


def _matches(pattern: str, name: str, features: frozenset[str]) -> bool:
    return fnmatchcase(name, pattern) or any(fnmatchcase(feature.lower(), pattern) for feature in features)


class Generator:
    """Makes the cases of a seed, chunk by chunk: chunk number n of a seed is always the same."""

    def __init__(
        self,
        isa: Isa,
        names: Sequence[str],
        *,
        seed: int = 0,
        length: int = 1,
        sources: Sequence[str] = tuple(SOURCES),
        corpus: Sequence[Case] = (),
    ) -> None:
        """``length`` is how many instructions a case has at most. Raises UsageError where there is nothing to draw."""
        self.isa, self.names, self.seed, self.length, self.corpus = isa, names, seed, length, corpus
        self._forms = forms(isa.name)
        self._banned = {name for name in self._forms.names if self._forms.banned(name) and name not in names}
        self._sources = [source for source in sources if names or source == "bytes" or (source == "mutants" and corpus)]
        if not self._sources and self._forms.names:
            raise UsageError(
                "fewer than two of the executors have what these forms need", hint="vmtest fuzz insn --help: --forms"
            )
        if not self._sources:
            raise UsageError(
                f"there is no table of the forms of {isa.name}", hint="--sources bytes, or mutants of a corpus"
            )
        self._shares = [_SHARES[source] for source in self._sources]
        self._epoch, self._blocks, self._pools = -1, list[list[bytes]](), dict[int, list[bytes]]()

    def chunk(self, number: int, size: int = CHUNK) -> list[Case]:
        """The cases of chunk number ``number``."""
        if number // EPOCH != self._epoch:
            self._epoch = number // EPOCH
            states = Random(f"{self.seed}/states/{self._epoch}")
            sizes = sorted({_WINDOW, *(register.size for register in self.isa.registers)})
            self._pools = {size: values_of(size, states) for size in sizes}
            self._blocks = _blocks(self.isa, states, self._pools)
        random = Random(f"{self.seed}/{number}")
        return [self._case(random) for _ in range(size)]

    def _case(self, random: Random) -> Case:
        source = random.choices(self._sources, self._shares)[0] if len(self._sources) > 1 else self._sources[0]
        if source == "forms":
            draft = self._instructions(random)
        elif source == "mutants" and self.corpus and (not self.names or random.random() < 0.5):
            return self._checked(random, lambda: _mutated_case(random, random.choice(self.corpus), self._pools))
        else:
            return self._checked(random, lambda: self._wild(random, source))
        return self._with_state(random, draft)

    def _wild(self, random: Random, source: str) -> Case:
        """Of random bytes, or a mutant of an instruction."""
        if source == "bytes":
            return self._with_state(random, Draft(random.randbytes(random.randrange(1, 16)), {}))
        draft = self._instructions(random)
        return self._with_state(random, draft._replace(code=mutated(random, draft.code)[: self.isa.code_most]))

    def _checked(self, random: Random, make: Callable[[], Case]) -> Case:
        """The first that begins where an instruction may, and has no banned one in it."""
        while True:
            case = make()
            if len(case.code) % case.isa.step:
                continue
            decoded = self._forms.decode(case.code, case.start)
            if not any(one.form in self._banned for one in decoded):
                return case

    def _with_state(self, random: Random, draft: Draft) -> Case:
        return Case(isa=self.isa, code=draft.code, state=self._state(random, draft), memory=self._memory(random, draft))

    def _instructions(self, random: Random) -> Draft:
        draft = self._forms.make(random, random.choice(self.names))
        if self.length == 1:
            return draft
        code, registers = draft.code, dict(draft.registers)
        for _ in range(random.randrange(self.length)):
            more = self._forms.make(random, random.choice(self.names))
            if len(code) + len(more.code) > self.isa.code_most:
                break
            code, registers = code + more.code, {**registers, **more.registers}
        return Draft(code, registers)

    def _state(self, random: Random, draft: Draft) -> bytes:
        """What its registers begin with: drawn, but for those that the draft sets."""
        state = bytearray(b"".join([block[int(random.random() * BLOCKS)] for block in self._blocks]))
        for name, value in draft.registers.items():
            place = self.isa.places[name]
            state[place] = value.to_bytes(place.stop - place.start, "little")
        return bytes(state)

    def _memory(self, random: Random, draft: Draft) -> tuple[Patch, ...]:
        """Something to read where its addresses are."""
        data = self.isa.data
        places = {value - data & -_WINDOW for value in draft.registers.values() if data <= value < data + DATA_SIZE}
        if not places:
            return ()
        return tuple((at, random.choice(self._pools[_WINDOW])) for at in sorted(places))


def _blocks(isa: Isa, random: Random, pools: Mapping[int, Sequence[bytes]]) -> list[list[bytes]]:
    """What states are put together from: for the registers of each kind, many values of all of them."""
    return [
        [b"".join([_value(isa, register, random, pools) for register in registers]) for _ in range(BLOCKS)]
        for registers in (list(several) for _, several in groupby(isa.registers, key=lambda register: register.kind))
    ]


def _value(isa: Isa, register: Register, random: Random, pools: Mapping[int, Sequence[bytes]]) -> bytes:
    """What one register begins with. The stack pointer does as it always does, and mostly the control of floating
    point.
    """
    if register.kind == "fp status":
        value = _KEPT.get(register.name, register.value)
        if (drawn := _DRAWN.get(register.name)) and random.random() < _DRAWN_SHARE:
            value = value & ~drawn | random.getrandbits(8 * register.size) & drawn
            if register.name == "fcw" and value & 0x300 == 0x100:  # a precision that is reserved
                value |= 0x200
        return value.to_bytes(register.size, "little")
    if isa.data <= register.value < isa.data + DATA_SIZE:
        return isa.default[isa.places[register.name]]
    drawn_bytes = random.choice(pools[register.size])
    mask = isa.fixed.get(register.name)
    if not mask:
        return drawn_bytes
    return (int.from_bytes(drawn_bytes, "little") & ~mask[0] | mask[1]).to_bytes(register.size, "little")


def mutated(random: Random, code: bytes) -> bytes:
    """The bytes with a bit or a byte changed, added or left out."""
    data = bytearray(code)
    for _ in range(random.randrange(1, 3)):
        at = random.randrange(len(data))
        how = random.randrange(4)
        if how == 0:
            data[at] ^= 1 << random.randrange(8)
        elif how == 1:
            data[at] = random.getrandbits(8)
        elif how == 2:
            data.insert(at, random.getrandbits(8))
        elif len(data) > 1:
            del data[at]
    return bytes(data)


def _mutated_case(random: Random, case: Case, pools: Mapping[int, Sequence[bytes]]) -> Case:
    code = mutated(random, case.code)[: case.isa.code_most] if random.random() < 0.7 else case.code
    values = case.isa.said(case.state)
    register = random.choice(case.isa.registers)
    if register.kind not in ("flags", "fp status"):
        values[register.name] = int.from_bytes(random.choice(pools[register.size]), "little")
    return Case(isa=case.isa, code=code, state=case.isa.state(values), memory=case.memory)
