"""One console line: what the kernel puts before its text, and how to skip the text that cannot matter.

Almost all output holds no line that begins a report. `next_stamped` and `next_plain` find the next one that may,
without looking at lines one by one; what they skip is certainly none. Measured on 64 KiB chunks with CPython 3.11,
in GB/s: a one-byte `bytes.find` 65 where the byte is absent; a `re` search whose pattern begins with literals 3-4,
and 1-3 where those literals are frequent; `bytes.find` of 5 bytes 1.3, of 26 bytes 4.4. One such literal a format
would take 4 ns a byte in sum; hence a gate byte, then one pattern anchored on the end of the stamp or of a line.
What comes of it, in the same units: where time stamps are known, 37 on output of users, 1.1 on the kernel's log;
where they are not, 0.6-1.0 on lines of words and 27 on text without spaces. Chunks of 4 KiB cost 1 µs a chunk more.
"""

from __future__ import annotations

import re

from vmtest.crash.formats import FORMATS

__all__ = ["clean", "find_stamp", "next_plain", "next_stamped", "split", "starts_with_stamp"]

# "[   12.345678] " and, with CONFIG_PRINTK_CALLER, "[   12.345678][    T1] ".
_STAMP = re.compile(rb"\[ {0,4}\d{1,9}\.\d{6}\](?:\[ *[TC]\d+\])? ")
_STAMP_START = re.compile(rb"\[ {0,4}\d{1,9}\.\d{6}\]")
# What may stand before the text of a line that has no stamp: colours, carriage returns, a log level.
_BEFORE = rb"(?:\x1b\[[0-9;?]*[A-Za-z]|[\r\x00])*(?:<\d{1,3}>)?"
_LEAD = re.compile(_BEFORE)
_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\x00]")


def _trie(words: set[str]) -> str:
    """A pattern for any of the words: one branch a first character, which `re` tries fastest."""
    if "" in words:
        return ""
    heads = sorted({word[0] for word in words})
    branches = [re.escape(head) + _trie({word[1:] for word in words if word[0] == head}) for head in heads]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


_HEADS = {head for fmt in FORMATS for head in fmt.heads}
_FIRST = "".join(sorted({re.escape(head[0]) for head in _HEADS})).encode()
_HEAD = _trie(_HEADS).encode()
# Each begins with literals and then a look at one character: most lines are done with after that.
_AFTER_STAMP = re.compile(rb"\] (?=[" + _FIRST + rb"])" + _HEAD)
_AFTER_LINE = re.compile(rb"\n(?=[\x1b\r\x00<" + _FIRST + rb"])" + _BEFORE + _HEAD)
_AT_START = re.compile(_BEFORE + _HEAD)


def next_stamped(data: bytes, start: int, end: int) -> int:
    """Where in data[start:end] a stamp is followed by what may begin a report; `end` if nowhere."""
    if data.find(b"]", start, end) < 0:
        return end
    found = _AFTER_STAMP.search(data, start, end)
    return found.start() if found else end


def next_plain(data: bytes, start: int, end: int, *, mid: bool) -> int:
    """The same for lines without a stamp; `mid` says that data[start] is not the beginning of a line."""
    # No format's first line is without a space, and much output (numbers, base64) is.
    if data.find(b" ", start, end) < 0:
        return end
    if not mid and _AT_START.match(data, start, end):
        return start
    found = _AFTER_LINE.search(data, start, end)
    return found.start() + 1 if found else end


def find_stamp(data: bytes, start: int, end: int, *, mid: bool) -> bool:
    """Whether a line of data[start:end] begins with a time stamp."""
    if data.find(b"[", start, end) < 0:
        return False
    for found in _STAMP_START.finditer(data, start, end):
        at = found.start()
        if data[at - 1] == 10 if at > start else not mid:
            return True
    return False


def starts_with_stamp(raw: bytes) -> bool:
    """Whether this line begins with a time stamp."""
    return _STAMP_START.match(raw) is not None


def split(raw: bytes) -> tuple[str, int]:
    """A line's text without the kernel's prefix, and where its time stamp begins (-1: there is none).

    The stamp may follow other text: the kernel does not begin a new line behind a prompt or unfinished output.
    Of several stamps the first counts if it begins the line (then the others belong to the text), else the last.
    """
    stamp = _STAMP.match(raw)
    if stamp is None and b"[" in raw:
        for stamp in _STAMP.finditer(raw):  # noqa: B007 - the last one is wanted
            pass
        if stamp is not None and raw.endswith(b"kernel: ", 0, stamp.start()):
            stamp = None  # a line of syslog's, which somebody prints
    if stamp is None:
        lead = _LEAD.match(raw)
        return raw[lead.end() if lead else 0 :].decode("utf-8", "replace").rstrip(), -1
    return raw[stamp.end() :].decode("utf-8", "replace").rstrip(), stamp.start()


def clean(text: str) -> str:
    """The text as a report keeps it."""
    return _NOISE.sub("", text)
