"""What crash reports look like: one row a format. A new format is a new row, with a line that it matches.

``heads`` are the literals of which one begins the text of a kernel line (its prefix of level, time stamp and caller
is gone); ``starts`` is matched there. The first row that matches wins, so the special ones stand before the general
ones. In ``title``, ``{name}`` is what the group of that name matched and ``{where}`` is " in FUNCTION", found as
``site`` says, or nothing. The tests hold every row to its ``example``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from vmtest.model.observation import Severity

__all__ = ["CONSEQUENCES", "DUMP_LINE", "FORMATS", "INDEPENDENT", "Format", "Site"]


class Site(Enum):
    """Where the function of a report's title is found."""

    NONE = "the title names none, or the first line does"
    PC = "the program counter in the register dump, or else the first frame"
    TRACE = "the first frame of the call trace that is not the reporting machinery"
    WAITER = "the same, and not scheduling or locking either"


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of report."""

    kind: str
    severity: Severity
    heads: tuple[str, ...]
    starts: re.Pattern[str]
    title: str
    example: str
    site: Site = Site.NONE
    continues: frozenset[str] = frozenset()
    """Kinds of an open report that such a line merely goes on with."""
    stamped: bool = False
    """Too general to be believed on a line without a time stamp."""


WARNING, ERROR, FATAL = Severity.WARNING, Severity.ERROR, Severity.FATAL

FUNC = r"(?P<func>[A-Za-z_][\w.$]*)(?:\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?)?"
FILE = r"(?P<file>[\w./+-]+):\d+"

# A panic soon after an error is taken for its consequence, unless its reason is one that needs no cause; soon after
# a mere warning only if its reason says that something before was fatal.
INDEPENDENT = re.compile(r"sysrq triggered|VFS: |No working init|No init found|Requested init|Out of memory|NMI: ")
CONSEQUENCES = re.compile(
    r".*\bpanic_on_\w+ set|hung_task: blocked tasks|softlockup: hung tasks|Hard LOCKUP|RCU Stall|Fatal exception|Oops"
)
# What the lines after a report's first look like. Others may stand among them; it ends after the last of these.
DUMP_LINE = re.compile(
    # frames and lists are indented; registers ("RAX: 0..", "x29: ..", "pc : f+0x1/0x2"); rulers; hex dumps
    r"\s|[A-Za-z0-9_ ]{1,12}: *(?:\[?<?[0-9a-f]{4,}\b|0x|\w+\+0x|\d+:)|\[<?[0-9a-f]{8,}|={8}|-{8}|---\[|"
    r"\S+\+0x[0-9a-f]+/0x|"
    r"Call [Tt]race|CPU: |Hardware name|Workqueue: |Modules linked in|Unloaded tainted|Code: |Kernel (?:panic|Offset)|"
    # memory checkers and the slab allocator
    r"Read |Write |Pointer tag|Allocated|Freed|allocated by|freed by|Uninit|Local variable|Bytes |Memory |The buggy|"
    r"page|flags: |raw: |head: |Object |Redzone |Padding |Slab |FIX |Reported by|shift exponent|index \d+ is|"
    # faults
    r"Mem abort|Data abort|swapper |user pgtable|PGD |#PF|Oops|Internal error|Faulting |Fault in|Failing address|"
    r"PHYS_OFFSET|SMP: |CPU features|Memory Limit|note: |Stack|Process |Krnl |NIP|LR |PC is|LR is|Disabling lock|"
    # lockups, stalls, hung tasks, locking rules
    r"rcu: |Sending NMI|NMI backtrace|Showing |task:|workqueue |\"echo 0|BUG: |watchdog: |irq event|hardirqs|softirqs|"
    r"in_atomic|preempt_count|Preemption disabled|RCU nest|stack backtrace|but task|other info|which lock|the existing|"
    r"-> #|\d+ locks? held|INFO: lockdep"
)
# Every architecture's die() ends its first line in [#1]. It stands for itself only if nothing explained it before.
AFTER_CAUSE = "oops bug list kasan kfence"


def row(
    kind: str,
    severity: Severity,
    heads: str,
    starts: str,
    title: str,
    example: str,
    *,
    site: Site = Site.NONE,
    continues: str = "",
    stamped: bool = False,
) -> Format:
    """A Format; ``heads`` are separated by "|", the kinds in ``continues`` by spaces."""
    return Format(
        kind=kind,
        severity=severity,
        heads=tuple(heads.split("|")),
        starts=re.compile(starts, re.ASCII),
        title=title,
        example=example,
        site=site,
        continues=frozenset(continues.split()),
        stamped=stamped,
    )


FORMATS: tuple[Format, ...] = (
    # The end marker begins a report as well: the first line may be lost behind unfinished output of a user.
    row("panic", FATAL, "Kernel panic - |---[ end Kernel panic",
        r"(?:---\[ end )?Kernel panic - not syncing: (?P<reason>.*)", "Kernel panic: {reason}",
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b"),
    # Memory checkers.
    row("kasan", ERROR, "BUG: KASAN: ", r"BUG: KASAN: (?P<bug>(?:double-free or )?[\w-]+)(?: in " + FUNC + ")?",
        "KASAN: {bug}{access}{where}",
        "BUG: KASAN: slab-out-of-bounds in kmalloc_oob_right+0xa8/0xbc [test_kasan]"),
    row("kfence", ERROR, "BUG: KFENCE: ", r"BUG: KFENCE: (?P<bug>.+?) in " + FUNC, "KFENCE: {bug}{where}",
        "BUG: KFENCE: out-of-bounds read in test_out_of_bounds_read+0xa6/0x234"),
    row("kmsan", ERROR, "BUG: KMSAN: ", r"BUG: KMSAN: (?P<bug>[\w-]+) in " + FUNC, "KMSAN: {bug}{where}",
        "BUG: KMSAN: uninit-value in test_uninit_kmsan_check_memory+0x1be/0x380 [kmsan_test]"),
    row("kcsan", WARNING, "BUG: KCSAN: ", r"BUG: KCSAN: (?P<bug>[\w-]+) in " + FUNC, "KCSAN: {bug}{where}",
        "BUG: KCSAN: data-race in test_kernel_read / test_kernel_write"),
    row("ubsan", WARNING, "UBSAN: ", r"UBSAN: (?P<bug>[\w-]+(?: [a-z][\w-]+)*) in " + FILE,
        "UBSAN: {bug} at {file}{where}", "UBSAN: shift-out-of-bounds in lib/test_ubsan.c:37:4", site=Site.TRACE),
    row("memory", ERROR, "BUG ", r"BUG (?P<cache>\S+) \((?:Not tainted|Tainted.*?)\): (?P<bug>[A-Z][\w ]+)",
        "slab: {bug}{where}", "BUG kmalloc-64 (Not tainted): Right Redzone overwritten", site=Site.TRACE),
    row("memory", ERROR, "BUG: Bad page ", r"BUG: (?P<bug>Bad page (?:state|map|cache))", "BUG: {bug}{where}",
        "BUG: Bad page state in process insmod  pfn:03e2c", site=Site.TRACE),
    # Faults. x86 says "BUG: ...", most others "Unable to handle ..."; mips and loongarch put the CPU before it.
    row("oops", ERROR, "BUG: |Unable to handle |CPU ",
        r"(?:CPU \d+ )?(?:BUG: )?(?:[Uu]nable to handle )?[Kk]ernel NULL pointer dereference",
        "BUG: NULL pointer dereference{where}",
        "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000", site=Site.PC),
    row("oops", ERROR, "BUG: ", r"BUG: (?:\S{1,12} )?stack guard page was hit", "BUG: stack guard page was hit{where}",
        "BUG: TASK stack guard page was hit at 00000000c1d2e3f4 (stack is 0000000055aa66bb..0000000077cc88dd)",
        site=Site.PC),
    row("oops", ERROR, "BUG: unable to |BUG: Unable to |Unable to handle |CPU |Unhandled fault: ",
        r"(?:CPU \d+ )?(?:BUG: )?(?:[Uu]nable to handle (?:page fault|kernel|unknown)|Unhandled fault: )",
        "BUG: unable to handle page fault{where}",
        "BUG: unable to handle page fault for address: ffffffffdeadbeef", site=Site.PC),
    row("oops", ERROR, "traps: PANIC: |PANIC: ", r"(?:traps: )?PANIC: double fault", "PANIC: double fault{where}",
        "traps: PANIC: double fault, error_code: 0x0", site=Site.PC, continues="oops"),
    # BUG() and its relatives.
    row("list", ERROR, "kernel BUG at ", r"kernel BUG at lib/list_debug\.c:\d+!", "corrupted list{where}",
        "kernel BUG at lib/list_debug.c:28!", site=Site.WAITER),
    row("bug", ERROR, "kernel BUG at |Kernel BUG at ", "[Kk]ernel BUG at " + FILE, "kernel BUG at {file}{where}",
        "kernel BUG at mm/slub.c:4023!", site=Site.PC),
    row("refcount", WARNING, "refcount_t: ", r"refcount_t: (?P<bug>.+?)\.?$", "refcount_t: {bug}{where}",
        "refcount_t: underflow; use-after-free.", site=Site.WAITER),
    # Lockups and stalls.
    row("lockup", ERROR, "watchdog: |BUG: soft lockup", "(?:watchdog: )?BUG: soft lockup", "soft lockup{where}",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [insmod:97]", site=Site.PC),
    row("lockup", ERROR, "watchdog: |NMI watchdog: ",
        r"(?:NMI )?watchdog: (?:CPU\d+: )?Watchdog detected hard LOCKUP", "hard lockup{where}",
        "watchdog: Watchdog detected hard LOCKUP on cpu 1", site=Site.PC),
    row("lockup", WARNING, "BUG: workqueue lockup", "BUG: workqueue lockup", "workqueue lockup",
        "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!", continues="stall lockup"),
    row("lockup", ERROR, "BUG: spinlock ", r"BUG: spinlock (?P<bug>[a-z ]+) on CPU", "spinlock {bug}{where}",
        "BUG: spinlock lockup suspected on CPU#0, insmod/97", site=Site.WAITER),
    row("stall", WARNING, "rcu: INFO: |INFO: ", r"(?:rcu: )?INFO: \w+ (?:self-)?detected (?:expedited )?stalls? on CPU",
        "RCU stall{where}", "rcu: INFO: rcu_preempt self-detected stall on CPU", site=Site.PC, continues="stall"),
    row("hung-task", WARNING, "INFO: task ", r"INFO: task .+:\d+ (?:is )?blocked .*for more than", "task hung{where}",
        "INFO: task insmod:97 blocked for more than 120 seconds.", site=Site.WAITER),
    # Locking rules.
    row("lockdep", WARNING, "WARNING: |INFO: |[ INFO: |[ BUG: |BUG: ",
        r"(?:\[ )?(?:WARNING|INFO|BUG): (?P<bug>possible (?:circular locking dependency|"
        r"recursive locking|irq lock inversion dependency)|"
        r"inconsistent lock state|suspicious RCU usage|\w+-safe -> \w+-unsafe lock order|bad unlock balance|"
        r"held lock freed|lock held when returning to user space|Nested lock was not taken|Invalid wait context|"
        r"trying to register non-static key)", "lockdep: {bug}{where}",
        "WARNING: possible circular locking dependency detected", site=Site.WAITER),
    row("atomic", ERROR, "BUG: ", r"BUG: (?P<bug>sleeping function called from invalid context|"
        r"scheduling while atomic|using \w+\(\) in preemptible)", "BUG: {bug}{where}",
        "BUG: scheduling while atomic: insmod/97/0x00000002", site=Site.WAITER),
    # Hardware.
    row("hardware", ERROR, "mce: [Hardware Error]|[Hardware Error]",
        r"(?:mce: )?\[Hardware Error\]: (?:CPU \d+: )?Machine [Cc]heck", "machine check",
        "mce: [Hardware Error]: CPU 0: Machine Check Exception: 5 Bank 0: b200000000000000", continues="hardware"),
    # WARN(): old kernels name no CPU; new ones (6.18) put the function before it.
    row("warning", WARNING, "WARNING: ", "WARNING: (?:CPU: .+? PID: .+? )?at " + FILE + f"(?: {FUNC})?",
        "WARNING at {file}{where}", "WARNING: CPU: 0 PID: 97 at kernel/softirq.c:376 __local_bh_enable_ip+0x78/0xb0",
        site=Site.PC, continues="refcount"),
    row("warning", WARNING, "WARNING: ", f"WARNING: {FILE} at {FUNC}", "WARNING at {file}{where}",
        "WARNING: lib/refcount.c:28 at refcount_warn_saturate+0xa4/0xe0, CPU#0: insmod/97", continues="refcount"),
    # die(): x86 and s390 name the exception, the others say Oops.
    row("oops", ERROR, "Oops: |general protection fault|stack segment|divide error|invalid opcode|double fault|"
        "alignment check|segment not present|invalid TSS|control protection|int3: |bounds: |stack guard page|"
        "illegal operation|addressing exception|specification exception",
        r"(?:Oops: )?(?P<what>general protection fault|stack segment|divide error|invalid opcode|double fault|"
        r"alignment check|segment not present|invalid TSS|control protection|int3|bounds|stack guard page|"
        r"illegal operation|addressing exception|specification exception)(?:, [^:]*)?: [^\[]*\[#\d+\]",
        "{what}{where}",
        "general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] PREEMPT SMP",
        site=Site.PC, continues=AFTER_CAUSE),
    row("oops", ERROR, "Internal error: |Oops|Kernel BUG [",
        r"(?:Internal error: |Oops|Kernel BUG)(?:Oops)?(?: - |: )?(?P<what>[A-Za-z][A-Za-z ()-]*[A-Za-z])?.*\[#\d+\]",
        "Oops: {what}{where}", "Internal error: Oops - Undefined instruction: 0000000002000000 [#1] SMP",
        site=Site.PC, continues=AFTER_CAUSE),
    row("bug", ERROR, "BUG: ", r"BUG: (?P<what>[A-Za-z].*)", "BUG: {what}",
        "BUG: non-zero pgtables_bytes on freeing mm: 4096", stamped=True, continues=AFTER_CAUSE),
)  # fmt: skip
