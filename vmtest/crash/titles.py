"""One stable line for a report: no addresses, numbers, PIDs, offsets or compiler suffixes, fit to deduplicate by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from vmtest.crash.formats import Format, Site

__all__ = ["function_name", "render", "scrub"]

MAX_TITLE = 160
"""Characters of a title; a guest may print a reason of any length."""

_FUNC = r"([A-Za-z_][\w.$]*)\+0x[0-9a-f]+"
# One alternative an architecture's name for its program counter. User-mode ones carry no symbol and never match.
_PC = re.compile(
    r"^\s*(?:RIP: 00[01]\d:|EIP: (?:00[67]\d:)?|pc : |epc ?: |PC is at |NIP |Krnl PSW : |psw : )"
    rf"(?:[0-9a-f]+ [0-9a-f]+ \(|\[?<?[0-9a-f]{{8,16}}>?\]? ?)*{_FUNC}"
)
_FRAME = re.compile(rf"(?:^|[\s(\]>]){_FUNC}/0x[0-9a-f]+")
_TRACE = re.compile(r"\s*(?:Call [Tt]race|[Bb]acktrace)\b")
_ACCESS = re.compile(r"(Read|Write) (?:of size|at addr) ")
_SUFFIX = re.compile(r"\.(?:isra|constprop|part|cold|llvm|lto_priv|clone)(?:\.\d+)?(?=\.|$)|\.\d+(?=\.|$)")

# Frames that tell how the report was made, not where the bug is.
_REPORTING = re.compile(
    r"^(?:dump_stack|show_stack|dump_backtrace|print_|panic$|_*warn|report_|__report_bug|handle_bug|exc_|asm_exc_|"
    r"__ubsan_|ubsan_|handle_(?:overflow|object)|__might_|___might_|__schedule_bug|check_preemption|kasan_|__kasan|"
    r"__asan|kfence_|kmsan_|__msan|object_err|slab_err|bad_page|check_slab|free_debug|alloc_debug|slab_|__slab|kfree|"
    r"free_to_partial|get_partial|get_any_partial|___slab|setup_object|kmem_cache|__kmem|"
    r"kmalloc|__kmalloc|free_unref|free_pcp|__free_|__list_|refcount_warn|lockdep_|__lock_|lock_|"
    r"mark_lock|check_(?:noncircular|prev|usage|irq|flags|object|bytes)|validate_chain|mark_usage|nmi_|rcu_dump|rcu_check|sched_show|trigger_|_*die|debug_smp|"
    r"walk_stackframe|unwind_|dump_|do_trap|handle_exception|el1h?_|ret_from_exception|spin_bug|spin_dump|"
    r"do_raw_|_raw_|fortify_|usercopy_|__check_object|__stack_chk)"
)
_WAITING = re.compile(
    r"^(?:__switch_to|__?schedule|schedule|preempt_schedule|io_schedule|context_switch|down(?:_|$)|up_|rwsem_|mutex_|__mutex|"
    r"wait_|__wait|do_wait|completion|rt_mutex|_raw_|do_raw_|usleep|msleep|percpu_rwsem|percpu_down|__down|"
    r"__percpu_down|rcu_read_|synchronize_|synchronise|prepare_to|finish_wait|__cond_resched|bit_wait|"
    r"queued_spin|lock_|refcount_|__list_)"
)


def function_name(symbol: str) -> str:
    """A symbol without its offset and without what the compiler appended to it."""
    return _SUFFIX.sub("", symbol.partition("+")[0])


def _frames(lines: Iterable[str]) -> Iterator[str]:
    """The functions of the first call trace that has any, without guesses and without interrupts taken in it."""
    started = nested = False
    for line in lines:
        if _TRACE.match(line):
            started = True
        elif started:
            if "</IRQ>" in line or "</NMI>" in line:
                nested = False
            elif "<IRQ>" in line or "<NMI>" in line:
                nested = True
            elif not nested and "? " not in line and "(unreliable)" not in line and (found := _FRAME.search(line)):
                yield function_name(found[1])


def _where(fmt: Format, lines: Sequence[str]) -> str:
    """The function that the title names, found in the whole report."""
    if fmt.site is Site.NONE:
        return ""
    counter = ""
    if fmt.site is Site.PC:
        counter = next((function_name(found[1]) for line in lines if (found := _PC.match(line))), "")
        if counter and not _REPORTING.match(counter):
            return counter
    waiting = fmt.site is Site.WAITER
    for name in _frames(lines):
        if not _REPORTING.match(name) and not (waiting and _WAITING.match(name)):
            return name
    return counter


def scrub(text: str) -> str:
    """The text without what differs from run to run."""
    text = re.sub(rf"{_FUNC}(?:/0x[0-9a-f]+)?", lambda found: function_name(found[1]), text)
    text = re.sub(r"\s*\([^()]*\d[^()]*\)|\s*\[[^\[\]]*\]", "", text)  # (0,0), (error -2), [module]
    text = re.sub(r"[\s,]*\b\w+\s*[=:]\s*(?:0x[0-9a-f]+|-?\d+)\b", "", text)  # exitcode=0x0000000b, pid: 12
    text = re.sub(r"\b0x[0-9a-f]+\b|\b(?=\w*\d)[0-9a-f]{8,}\b", "ADDR", text)
    text = re.sub(r"(?<![\w.-])-?\d+(?:\.\d+)?(?![\w.])|(?<=CPU)#?\d+\b", "N", text)
    return " ".join(text.split())


def _reason(text: str) -> str:
    """The first sentence of a panic's reason."""
    text = re.split(r"\.(?:\s|$)| \]---|\]---", text, maxsplit=1)[0]
    return scrub(text).rstrip(" :,!-") or "no reason given"


def render(fmt: Format, found: re.Match[str], lines: Sequence[str]) -> str:
    """The title of a report that began with the line matched by `found` and consists of `lines`."""
    fields = {name: scrub(value) if value else "" for name, value in found.groupdict().items()}
    if "reason" in fields:
        fields["reason"] = _reason(found["reason"])
    if fields.get("file"):
        path = found["file"]
        # An out-of-tree module is compiled under its absolute path, which is the builder's, not the bug's.
        fields["file"] = PurePosixPath(path).name if path.startswith("/") else path
    access = next((hit[1] for line in lines if (hit := _ACCESS.match(line))), "")
    fields["access"] = f" {access}"
    where = function_name(found["func"]) if fields.get("func") else _where(fmt, lines)
    fields["where"] = f" in {where}" if where else ""
    title = fmt.title.format(**fields)
    title = re.sub(r":\s*(?= in |$)", "", title)  # an optional part that was not there
    return " ".join(title.split())[:MAX_TITLE]
