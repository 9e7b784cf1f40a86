"""Console bytes become the right crash reports, however they arrive and whatever else the guest prints."""

from __future__ import annotations

import re
import tomllib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmtest.crash import FORMATS, CrashScanner, Format, find_reports
from vmtest.crash.scanner import MAX_LINE, MAX_LINES, MAX_REPORTS, MAX_TEXT
from vmtest.crash.titles import function_name
from vmtest.model.observation import CrashReport, Severity

CRASHES = Path(__file__).parents[2] / "fixtures" / "crashes"
INDEX: list[dict[str, Any]] = tomllib.loads((CRASHES / "INDEX.toml").read_text())["transcript"]
NAMES = [entry["file"] for entry in INDEX]
WITH_REPORTS = [entry["file"] for entry in INDEX if entry.get("report")]

transcripts = pytest.mark.parametrize("entry", INDEX, ids=NAMES)
formats = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.example[:40])


def in_chunks(data: bytes, sizes: Iterator[int]) -> list[CrashReport]:
    """What a scanner finds that is fed chunks of these sizes."""
    scanner = CrashScanner()
    found: list[CrashReport] = []
    position = 0
    while position < len(data):
        size = next(sizes)
        found += scanner.feed(data[position : position + size])
        position += size
    return found + scanner.flush()


def cycle(sizes: list[int]) -> Iterator[int]:
    """The sizes again and again."""
    while True:
        yield from sizes


class TestTranscripts:
    @transcripts
    def test_gives_exactly_the_reports_of_the_index(self, entry: dict[str, Any]) -> None:
        """Each transcript gives the kinds, severities and titles that the index names, and no others."""
        found = find_reports((CRASHES / entry["file"]).read_bytes())
        assert [(r.kind, r.severity.name, r.title) for r in found] == [
            (r["kind"], r["severity"], r["title"]) for r in entry.get("report", [])
        ]

    @transcripts
    def test_bytes_one_by_one_change_nothing(self, entry: dict[str, Any]) -> None:
        """A transcript that arrives byte by byte gives the same reports as all of it at once."""
        data = (CRASHES / entry["file"]).read_bytes()
        assert in_chunks(data, cycle([1])) == find_reports(data)

    @settings(max_examples=60, deadline=None)
    @given(name=st.sampled_from(NAMES), sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=20))
    def test_the_way_it_is_cut_changes_nothing(self, name: str, sizes: list[int]) -> None:
        """Whatever the chunks, the reports, their texts and their offsets are the same."""
        data = (CRASHES / name).read_bytes()
        assert in_chunks(data, cycle(sizes)) == find_reports(data)

    @pytest.mark.parametrize("name", WITH_REPORTS)
    def test_titles_hold_nothing_that_differs_between_runs(self, name: str) -> None:
        """No title holds an address, an offset, a long number or a compiler's suffix."""
        for report in find_reports((CRASHES / name).read_bytes()):
            assert not re.search(
                r"0x|\+|\d{4,}|\b(?=\w*\d)[0-9a-f]{8,}\b|\.(?:isra|constprop|part|cold)\b", report.title
            )

    @pytest.mark.parametrize("name", WITH_REPORTS)
    def test_offset_and_text_point_at_the_report(self, name: str) -> None:
        """At the offset the stream holds the report's first line, and the text holds no time stamps."""
        data = (CRASHES / name).read_bytes()
        for report in find_reports(data):
            first, *_ = report.text.split("\n")
            assert first in data[report.offset :].split(b"\n")[0].decode()
            assert not re.search(r"^\[ *\d+\.\d{6}\]", report.text, re.MULTILINE)

    def test_the_index_is_complete(self) -> None:
        """Every transcript has one entry with its source, and no entry lacks its file."""
        assert sorted(NAMES) == sorted(path.name for path in CRASHES.glob("*.txt"))
        assert all(entry["source"].startswith(("captured: ", "format: ", "written: ")) for entry in INDEX)


class TestFormats:
    @formats
    def test_its_example_is_found(self, fmt: Format) -> None:
        """The row that matches an example is its own, and the fast search does not skip the example's line."""
        assert next(row for row in FORMATS if row.starts.match(fmt.example)) is fmt
        assert fmt.example.startswith(fmt.heads)
        assert " " in min(fmt.heads, key=len) or " " in fmt.example
        filler = b"nothing: to [see] here\r\n" * 9
        for prefix in (b"", b"<4>", b"\x1b[0m\r") if not fmt.stamped else ():
            assert [r.kind for r in find_reports(filler + prefix + fmt.example.encode() + b"\r\n")] == [fmt.kind]
        for prefix in (b"[    1.234567] ", b"<4>[    1.234567] ", b"/ # [12345.234567][   T12] "):
            (report,) = find_reports(filler + prefix + fmt.example.encode() + b"\r\n" + filler)
            assert (report.kind, report.severity) == (fmt.kind, fmt.severity)
            assert report.offset == len(filler) + prefix.index(b"[")

    @formats
    def test_its_example_is_nothing_when_a_user_types_it(self, fmt: Format) -> None:
        """A marker behind a prompt, in a quotation, in syslog or after a stamped boot is not the kernel's."""
        line = fmt.example.encode() + b"\r\n"
        for prefix in (b"/ # echo ", b"> ", b"grep: ", b"Nov 23 10:00:00 vm kernel: [   12.345678] "):
            assert find_reports(prefix + line) == []
        assert find_reports(b"[    0.000000] Linux version 6.1\r\n" + line) == []
        assert CrashScanner(timestamps=True).feed(line) == []


PANIC = b"[    1.000000] Kernel panic - not syncing: %b\r\n"
OOPS = b"[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000\r\n"
WARN = b"[    1.000000] WARNING: CPU: 0 PID: 1 at kernel/a.c:1 f+0x1/0x2\r\n"
OTHER = b"[    1.000000] usb 1-1: new device\r\n"


class TestBoundaries:
    def test_an_oops_waits_for_the_panic_that_it_leads_to(self) -> None:
        """Cause and consequence are one report: the title and kind of the first, the severity of the worse."""
        scanner = CrashScanner()
        assert scanner.feed(OOPS + OTHER * 3) == []
        assert (scanner.pending, scanner.fatal_pending) == (True, False)
        assert scanner.feed(PANIC % b"Fatal exception") == []
        assert scanner.fatal_pending
        (report,) = scanner.feed(b"[    1.000000] ---[ end Kernel panic - not syncing: Fatal exception ]---\r\n")
        assert (report.kind, report.severity, report.title) == ("oops", Severity.FATAL, "BUG: NULL pointer dereference")
        assert not scanner.pending

    def test_an_unrelated_panic_after_a_warning_is_its_own_report(self) -> None:
        """A warning does not swallow a panic that does not say it came of it."""
        kinds = [(r.kind, r.severity) for r in find_reports(WARN + PANIC % b"No working init found.  Try something.")]
        assert kinds == [("warning", Severity.WARNING), ("panic", Severity.FATAL)]
        (one,) = find_reports(WARN + PANIC % b"kernel: panic_on_warn set ...")
        assert (one.kind, one.severity) == ("warning", Severity.FATAL)

    def test_silence_completes_nothing_and_flush_does(self) -> None:
        """What is pending stays so until somebody who waited long enough says so, an unfinished line included."""
        scanner = CrashScanner()
        assert scanner.feed((PANIC % b"one") + b"[    1.000000] CPU: 0 PID: 1 Co") == []
        (report,) = scanner.flush()
        assert report.text.endswith("\nCPU: 0 PID: 1 Co")
        assert scanner.flush() == []
        assert scanner.feed(b"mm: init\r\n") == []

    def test_unrelated_lines_end_a_report(self) -> None:
        """A guest that goes on after a warning completes it without a flush, and its other lines are not in it."""
        (report,) = CrashScanner().feed(
            WARN + b"[    1.000000] Call Trace:\r\n[    1.000000]  g+0x1/0x2\r\n" + OTHER * 99
        )
        assert report.text.endswith("Call Trace:\n g+0x1/0x2")
        (report,) = CrashScanner().feed(WARN + b"user output\r\n" * 99)
        assert "user" not in report.text

    def test_after_a_panic_other_processors_complain_in_vain(self) -> None:
        """What is printed after a panic's end is no second report, but a new boot's crash is one."""
        end = b"[    1.000000] ---[ end Kernel panic - not syncing: x ]---\r\n"
        assert len(find_reports((PANIC % b"x") + end + WARN)) == 1
        assert len(find_reports((PANIC % b"x") + end + b"[    0.000000] Linux version 6\r\n" + WARN)) == 2

    def test_a_first_line_lost_behind_user_output_is_made_up_for(self) -> None:
        """On a console without time stamps a panic behind a prompt is found by its end marker."""
        (report,) = find_reports(
            b"/ # Kernel panic - not syncing: x\r\n---[ end Kernel panic - not syncing: x ]---\r\n"
        )
        assert (report.severity, report.title) == (Severity.FATAL, "Kernel panic: x")

    def test_stamps_can_be_declared(self) -> None:
        """A console whose kernel prints no stamps stays one, although a user prints a stamped log."""
        log, line = b"[    1.000000] usb 1-1: new device\r\n", b"Kernel panic - not syncing: x\r\n"
        assert find_reports(log + line) == []
        assert len(find_reports(log + line, timestamps=False)) == 1

    @pytest.mark.parametrize("size", [1, 700, MAX_LINE, 10**6])
    def test_the_rest_of_a_long_line_is_no_line(self, size: int) -> None:
        """Where a line that is too long is cut, nothing begins: neither a report nor a stamped line."""
        panic = b"Kernel panic - not syncing: x\r\n"
        for long in (b"y" * MAX_LINE, b"y " * MAX_LINE, b"y" * (MAX_LINE - 9) + b"    "):
            assert in_chunks(long[:MAX_LINE] + panic, cycle([size])) == []
            warning = b"WARNING: CPU: 0 PID: 1 at kernel/a.c:1 f+0x1/0x2\r\n"
            (report,) = in_chunks(warning + long[:MAX_LINE] + panic, cycle([size]))
            assert report.severity is Severity.WARNING
        log = b"y" * MAX_LINE + b"[    1.000000] usb 1-1: new device\r\n"
        assert len(in_chunks(log + panic, cycle([size]))) == 1

    @pytest.mark.parametrize("size", [1, 10**6])
    def test_only_a_stamp_at_the_line_start_teaches(self, size: int) -> None:
        """Output that merely holds a stamp does not make the console one whose kernel prints them."""
        panic = b"Kernel panic - not syncing: x\r\n"
        assert len(in_chunks(b"at [    1.000000] it began\r\n" + panic, cycle([size]))) == 1
        assert in_chunks(b"[    1.000000] it began\r\n" + panic, cycle([size])) == []

    def test_frames_of_an_interrupt_are_not_where_it_stalled(self) -> None:
        """The title names the interrupted function, not the timer interrupt that noticed, nor a guessed frame."""
        trace = b"Call Trace:\n <IRQ>\n tick+0x1/0x2\n </IRQ>\n ? old+0x1/0x2\n spin.cold+0x1/0x2\n main+0x1/0x2\n"
        (report,) = find_reports(b"rcu: INFO: rcu_sched self-detected stall on CPU\n" + trace)
        assert report.title == "RCU stall in spin"


class TestFloods:
    @pytest.mark.parametrize(
        "block",
        [
            b"BUG: " * 13_000 + b"\n",
            b"x" * 65_536,
            (b"[    1.000000] " + b"BUG: x " * 20 + b"\r\n") * 400,
            (b"[    1.000000] Kernel panic - not syncing: x\r\n") * 1400,
            (b"[    1.000000] Kernel panic - not syncing: x\r\n---[ end Kernel panic\r\n") * 900,
            (WARN + (b"[    1.000000]  " + b"y" * 9000 + b"\r\n") * 6),
            b"[    1.000000] BUG: KASAN: \xff\xfe\x00\x1b[" + bytes(range(256)) * 250,
        ],
    )
    def test_memory_and_reports_are_bounded(self, block: bytes) -> None:
        """Whatever a guest floods its console with, little is held, and reports are bounded in size and number."""
        scanner = CrashScanner()
        found: list[CrashReport] = []
        tracemalloc.start()
        for _ in range(20):
            found += scanner.feed(block)
        del found[:-1]
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 4 * MAX_TEXT + 8 * MAX_LINE
        assert peak < 2 * len(block) + MAX_REPORTS * 2 * MAX_TEXT

    def test_fifty_megabytes_of_output_leave_nothing_behind(self) -> None:
        """A long run of ordinary output is neither kept nor counted."""
        chunk = (b"Started session 12 of user root: ok [done]\r\n" * 1500)[:65_536]
        scanner = CrashScanner(timestamps=True)
        scanner.feed(chunk)
        tracemalloc.start()
        for _ in range(800):
            assert scanner.feed(chunk) == []
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 4 * MAX_LINE
        assert peak < 4 * 65_536

    def test_reports_are_cut_and_counted(self) -> None:
        """A report has at most so many lines and characters; beyond the limit reports are counted, not returned."""
        long = WARN + b"[    1.000000]  frame+0x1/0x2\r\n" * 5000
        (report,) = find_reports(long)
        assert report.text.count("\n") < MAX_LINES
        wide = WARN + b"[    1.000000]  " + b"y" * 3000 + b"\r\n"
        assert all(len(r.text) <= MAX_TEXT + MAX_LINE for r in find_reports(wide * 99))
        scanner = CrashScanner()
        assert len(scanner.feed(WARN * (MAX_REPORTS + 50))) == MAX_REPORTS
        assert scanner.dropped == 49
        assert len(scanner.feed(PANIC % b"x") + scanner.flush()) == 1

    @settings(max_examples=150, deadline=None)
    @given(
        parts=st.lists(
            st.sampled_from(
                [PANIC % b"x", OOPS, WARN, OTHER, b"\n", b"\r", b"\x1b[0m", b"[    1.000000] ", b"BUG: ", b"x"]
            )
            | st.binary(max_size=40)
            | st.sampled_from([b"y" * (MAX_LINE - 1), b"y" * MAX_LINE, b"y" * (2 * MAX_LINE + 3)]),
            max_size=30,
        ),
        sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=8),
    )
    def test_any_bytes_in_any_chunks_give_the_same(self, parts: list[bytes], sizes: list[int]) -> None:
        """For arbitrary output, long lines included, chunks do not matter and nothing raises."""
        data = b"".join(parts)
        assert in_chunks(data, cycle(sizes)) == find_reports(data)


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("foo+0x12/0x34", "foo"),
        ("foo.isra.0+0x1/0x2", "foo"),
        ("foo.constprop.0.isra.3", "foo"),
        ("foo.part.0.cold+0x5/0x9", "foo"),
        ("foo.llvm.1234567", "foo"),
        ("do_sys_open", "do_sys_open"),
    ],
)
def test_function_names_lose_what_the_compiler_added(symbol: str, name: str) -> None:
    """A function has one name whatever the compiler split it into."""
    assert function_name(symbol) == name


def test_last_line_without_its_end() -> None:
    """A report whose last line has come but for its newline is complete when it is flushed."""
    panic = b"[    1.500000] Kernel panic - not syncing: sysrq triggered crash\r\n[    1.600000] Call Trace:\r\n"
    last = b"[    1.700000] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---"
    for cut in range(len(last) + 1):
        scanner = CrashScanner()
        found = scanner.feed(panic + last[:cut])
        assert [report.kind for report in found + scanner.flush()] == ["panic"], last[:cut]
        assert not scanner.pending
