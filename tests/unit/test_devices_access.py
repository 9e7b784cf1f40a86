"""Operations on devices and their lines: what can be said is said as QEMU reads it, and nothing else can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtest.devices import access as a
from vmtest.devices.lines import parse
from vmtest.errors import UsageError

SIZES, PORT_SIZES = st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4])
ADDRESSES, PORTS = st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFF)
PATHS = st.text("abcxyz019/[]-", min_size=1, max_size=20)


@st.composite
def accesses(draw: st.DrawFn) -> a.Access:
    """Any that QEMU takes."""
    size, few = draw(SIZES), draw(PORT_SIZES)
    value, low = draw(st.integers(0, (1 << 8 * size) - 1)), draw(st.integers(0, 1 << 63))
    return draw(
        st.sampled_from(
            [
                a.In(draw(PORTS), few),
                a.Out(draw(PORTS), draw(st.integers(0, (1 << 8 * few) - 1)), few),
                a.Read(draw(ADDRESSES), size),
                a.Write(draw(ADDRESSES), value, size),
                a.Load(low, draw(st.integers(1, 64))),
                a.Store(low, draw(st.binary(min_size=1, max_size=64))),
                a.Fill(low, draw(st.integers(1, 64)), draw(st.integers(0, 255))),
                a.ClockStep(draw(st.none() | st.integers(0, 1 << 40))),
                a.ClockSet(draw(st.integers(0, 1 << 40))),
                a.Intercept(draw(PATHS), draw(st.booleans())),
                a.SetLine(draw(PATHS), draw(st.just("") | PATHS), draw(st.integers(0, 99)), draw(st.integers(-1, 1))),
                a.Endianness(),
                a.LoadModule(draw(PATHS), draw(PATHS)),
                a.Rtas(draw(PATHS), draw(st.integers(0, 16)), low, draw(st.integers(0, 16)), low),
                a.Csr(draw(st.integers(0, 8)), draw(st.integers(0, 0xFFF)), draw(st.none() | ADDRESSES)),
                a.Flush(),
                a.Reset(),
            ]
        )
    )


@given(accesses())
def test_lines_and_back(access: a.Access) -> None:
    """Each operation is what its own line says, in one line with single spaces."""
    line = a.encode(access)
    assert parse(line.decode()) == access
    assert line == b" ".join(line.split())


# softmmu/qtest.c of QEMU 7.2: qemu_strtou64() with base 0, and two digits a byte as far as there are any.
@pytest.mark.parametrize(
    ("line", "access"),
    [
        ("outl 0xcf8 0x80000804", a.Out(0xCF8, 0x80000804, 4)),
        ("outb 0x70 0x1ff", a.Out(0x70, 0xFF, 1)),
        ("writew 4096 010", a.Write(0x1000, 8, 2)),
        ("write 0x10 0x3 0x01020", a.Store(0x10, b"\x01\x02\x00")),
        ("write 0x10 0x4 0x0102", a.Store(0x10, b"\x01\x02\x00\x00")),
        ("write 0x10 0x1 0x0102", a.Store(0x10, b"\x01")),
        ("b64write 0x10 2 AQI=", a.Store(0x10, b"\x01\x02")),
        ("  readl   0x10\n", a.Read(0x10, 4)),
        ("clock_step", a.ClockStep()),
        ("csr get_csr 0 0x300 0", a.Csr(0, 0x300)),
        ("csr set_csr 1 768 0x8", a.Csr(1, 0x300, 8)),
        ("rtas get-time-of-day 0 0x0 8 0x1000", a.Rtas("get-time-of-day", 0, 0, 8, 0x1000)),
    ],
)
def test_lines_that_others_write(line: str, access: a.Access) -> None:
    """Numbers of all bases, too many and too few digits are read as QEMU reads them."""
    assert parse(line) == access


@pytest.mark.parametrize(
    "line",
    [
        "", "inb", "inb 0x10000", "inq 0x10", "inb 0x10 0x10", "outb 0x10", "readl -1", "readl 0x10000000000000000",
        "read 0x0 0x0", "read 0x0 0x10000000", "read 0xffffffffffffffff 0x2", "write 0x0 0x1 ff", "write 0x0 0x1 0xzz",
        "memset 0x0 0x0 0x1", "clock_step -1", "set_irq_in path name 0", "quit", "b64write 0x0 0x1 !",
        "csr get_csr 0 0x1000 0", "csr swap_csr 0 0x300 0", "csr get_csr 0 0x300",
        "rtas name 99 0x0 0 0x0", "endianness 1",
    ],
)  # fmt: skip
def test_what_cannot_be_said(line: str) -> None:
    """A line that QEMU could not read, or would abort at, is one clear error."""
    with pytest.raises(UsageError):
        parse(line)


@pytest.mark.parametrize(
    "access",
    [
        a.In(0x10000, 1), a.In(0, 8), a.Out(0, 256, 1), a.Out(-1, 0, 1), a.Read(1 << 64, 1), a.Read(0, 3),
        a.Write(0, -1, 4), a.Load(0, 0), a.Store(0, b""), a.Fill(0, 1, 256), a.ClockStep(-1),
        a.Intercept("two words"), a.SetLine("path", "a\nb", 0, 1),
        a.Csr(0, 0x1000), a.Csr(0, 0x300, -1), a.Rtas("a b", 0, 0, 0, 0),
        a.Rtas("name", 17, 0, 0, 0), a.LoadModule("", "x"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_said(access: a.Access) -> None:
    """So is a value that is out of range: nothing of it is sent."""
    with pytest.raises(UsageError):
        a.encode(access)
