"""How a QEMU ended, by what it has left: its signature, which is the same for all versions and line numbers."""

from __future__ import annotations

import re
import signal
from typing import NamedTuple

__all__ = ["Crash", "crash", "internal_error"]


LINES = 30
"""Of QEMU's words that are kept with a crash: a sanitizer's report is as long, up to the memory around."""


class Crash(NamedTuple):
    """``kind`` is "assertion", "abort", "signal", "hang", "memory", "sanitizer", "error", "internal-error" or "exit".
    ``signature`` says what it was, ``words`` are QEMU's own. ``done`` is how many operations were answered before.
    ``where`` is the place in QEMU's code, of this build, where that was looked at; "" where it was not.
    """

    kind: str
    signature: str
    words: str
    done: int
    where: str = ""

    @property
    def key(self) -> str:
        """What tells it from others of the same QEMU: where there are no words, by its place."""
        at = self.where.partition(" ")[0] if self.kind in ("signal", "abort", "hang", "memory") else ""
        return f"{self.signature} at {at}" if at else self.signature

    @property
    def last_words(self) -> str:
        """Of ``words`` the lines that say how it ended, some LINES of them; the last ones where none does."""
        found = [match.start() for kind, rule in _RULES if kind == self.kind and (match := rule.search(self.words))]
        if not found:
            return "\n".join(self.words.strip().splitlines()[-LINES:])
        return "\n".join(self.words[self.words.rfind("\n", 0, found[0]) + 1 :].strip().splitlines()[:LINES])

    @property
    def is_clean(self) -> bool:
        """Whether QEMU has ended by itself, in order: that is no crash."""
        return self.kind == "exit"


_OF_MEMORY = (-signal.SIGTRAP, -signal.SIGABRT, 1)
_RULES = (
    # glibc's assert()
    ("assertion", re.compile(r"(?P<file>[^\s:]+\.\w+):\d+: (?P<where>.+?): Assertion [`'](?P<what>.+)' failed")),
    # GLib's g_assert() and g_assert_not_reached()
    (
        "assertion",
        re.compile(
            r"ERROR:(?P<file>[^\s:]+):\d+:(?P<where>\w+): (?:assertion failed:? ?(?P<what>.*)|(?P<other>code .+))"
        ),
    ),
    ("sanitizer", re.compile(r"(?P<what>\w+Sanitizer: [\w-]+).*?#\d+ 0x\w+ in (?P<where>\w+) (?P<file>\S+?):", re.S)),
    ("sanitizer", re.compile(r"(?P<file>[^\s:]+):\d+:\d+: runtime error: (?P<what>.+)")),
    ("error", re.compile(r"hardware error: (?P<what>.+)")),
    # error_abort (util/error.c), and Rust
    ("error", re.compile(r"Unexpected error in (?P<where>\w+)\(\) at (?P<file>\S+?):\d+:\n(?:qemu\S*: )?(?P<what>.+)")),
    ("error", re.compile(r"panicked at (?P<file>\S+?):\d+:\d+:\n(?P<what>.+)")),
    ("memory", re.compile(r"(?:failed to allocate|Cannot allocate|out of memory|rss limit exhausted)(?P<what>)")),
)


def crash(exit_code: int, words: str, done: int) -> Crash:
    """What an exit code (less than zero for a signal) and the standard error of a QEMU come to."""
    for kind, rule in _RULES:
        # What was said of memory is why it ended only where a failed allocation ends it (GLib's is SIGTRAP).
        if kind == "memory" and exit_code not in _OF_MEMORY:
            continue
        if (found := rule.search(words)) and exit_code != 0:
            said = found.groupdict("")
            where = " ".join(part for part in (_file(said.get("file", "")), _function(said.get("where", ""))) if part)
            what = _plain(said.get("what") or said.get("other", ""), has_code=kind != "error")
            return Crash(kind, ": ".join(part for part in (where, what) if part) or "out of memory", words, done)
    if exit_code >= 0:
        return Crash("exit", f"status {exit_code}", words, done)
    name = signal.Signals(-exit_code).name
    return Crash("abort" if name == "SIGABRT" else "signal", name, words, done)


def internal_error(words: str) -> str:
    """What QEMU says of a machine that it has stopped since it cannot go on, as far as it is the same each time."""
    found = re.search(r"KVM internal error\. Suberror: \d+|KVM: entry failed, hardware error \w+", words)
    return found[0] if found else "the machine was stopped"


def _file(path: str) -> str:
    """Without the directories that a build adds in front."""
    ours = "accel|audio|backends|block|chardev|hw|include|migration|net|qom|rust|softmmu|system|target|ui|util"
    return re.sub(rf"^.*?(?=(?:{ours})/)", "", path, count=1)


def _function(text: str) -> str:
    """The name alone: some compilers give the whole signature."""
    found = re.search(r"(\w+)\(", text)
    return found[1] if found else text


def _plain(text: str, *, has_code: bool) -> str:
    """Without numbers that are of this run: in what is code small ones are the code's."""
    return re.sub(rf"\b0x[0-9a-fA-F]+\b|\b\d{{{4 if has_code else 1},}}\b", "N", text.strip())
