/*
 * The executor `native`: runs cases on the CPU itself, in this very process, and catches what comes of them.
 *
 *   native STATE-SIZE SOURCE SINK PROGRESS PARENT
 *
 * It is a worker as vmtest/executors/worker.py describes one: batches of packed cases come in by the descriptor SOURCE,
 * packed outcomes go out by SINK, the number of the case that runs is in the shared page PROGRESS, and it ends when its
 * parent is no longer PARENT.
 *
 * A case ends with an exception, be it that of coming to its end, and the kernel makes a signal of that. Its frame tells
 * all that there is to know (registers, vectors, trap number, error code, CR2), and to return from it with another
 * content is to begin the next case. So all that comes after the start is in the handler: one signal, one sigreturn a
 * case.
 *
 * What keeps a case from doing harm:
 * - Nothing is mapped but its two windows and ourselves: 5 MiB at a random page of 64 TiB, above all that 46 bits can
 *   say. Nothing that a case begins with, or can ask, has to do with where that is.
 * - Of ourselves the code cannot be written, and the control block is sealed with a checksum that is looked at after
 *   each case. Where it is broken we end, and the case has killed us.
 * - A system call (by any of the ways into the kernel) is refused before the kernel has seen it, and ends the case,
 *   unless it comes from one of two instructions of ours; and from there too nothing is let through but six calls, which
 *   read from SOURCE and write to SINK alone. A seccomp filter does that, and system call user dispatch before it.
 *
 * There are no variables: all that changes is in one `struct world`, at a place that is not known before. Numbers and
 * layouts that packed.h does not have: Linux's uapi headers (asm/sigcontext.h, asm/ucontext.h, linux/seccomp.h).
 */
#include "packed.h"

/* vmtest/executors/worker.py */
#define READY 0xFFFFFFFFu

/* A batch is read as it comes, a piece of at most PAGE * 2 at a time, and answered in one: see OUTPUT. */
enum { MOST_CASES = 512, INPUT = 1 << 17, MOST_OUTCOME = OUTCOME + STATE_X86 + DATA_SIZE + 16, STACK = 1 << 17,
       OUTPUT = 8 + MOST_CASES * MOST_OUTCOME };
/* How we end: what is wrong with what came in, with the world. */
enum { DONE = 0, NONSENSE = 70, DAMAGED = 71, CANNOT = 72 };

/* ---- what the kernel gives and takes ------------------------------------------------------------------------- */

struct frame { /* struct ucontext, with struct sigcontext in it */
    ulong uc_flags, link, stack, stack_flags, stack_size;
    ulong registers[16]; /* r8-r15 rdi rsi rbp rbx rdx rax rcx rsp */
    ulong rip, rflags;
    u16 cs, gs, fs, ss;
    ulong error, trap, old_mask, cr2;
    u8 *vectors; /* as XSAVE has them */
    ulong reserved[8];
    ulong mask;
};
enum { FEATURES = 472 }; /* of the vectors: which ones there are */
enum { WITH_VECTORS = 1, WITH_SS = 6, USER_CS = 0x33, USER_SS = 0x2b };
/* A state's general registers, by their place in `registers`; RFLAGS is behind them. */
static const u8 order[16] = { 13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7 };

enum { SYS_read = 0, SYS_write = 1, SYS_poll = 7, SYS_mmap = 9, SYS_mprotect = 10, SYS_munmap = 11,
       SYS_rt_sigaction = 13, SYS_rt_sigprocmask = 14, SYS_rt_sigreturn = 15, SYS_setitimer = 38, SYS_getppid = 110,
       SYS_sigaltstack = 131, SYS_prctl = 157, SYS_setrlimit = 160, SYS_exit_group = 231, SYS_seccomp = 317,
       SYS_getrandom = 318 };
enum { SIGILL = 4, SIGTRAP = 5, SIGBUS = 7, SIGFPE = 8, SIGSEGV = 11, SIGPROF = 27, SIGSYS = 31 };
enum { READ = 1, WRITE = 2, EXEC = 4, SHARED = 1, PRIVATE = 2, ANONYMOUS = 0x20, FIXED = 0x100000 /* or not at all */ };
enum { POLLIN = 1, POLLOUT = 4, EINTR = 4, EAGAIN = 11 };
enum { NT = 1 << 14, ID = 1 << 21, VDSO = 4 * PAGE };

/* The two instructions that may make a system call, and the entry of the handler. A handler begins with the case's NT,
 * AC and ID, which sigreturn does not set: they are cleared, or for a case that goes on, as on_signal() returns them. */
__asm__(".text\n"
        ".globl _start\n_start:\n mov %rsp,%rdi\n and $-16,%rsp\n call begin\n"
        ".globl syscall6\nsyscall6:\n mov %rdi,%rax\n mov %rsi,%rdi\n mov %rdx,%rsi\n mov %rcx,%rdx\n mov %r8,%r10\n"
        " mov %r9,%r8\n mov 8(%rsp),%r9\n syscall\n"
        ".globl called\ncalled:\n ret\n"
        ".globl restorer\nrestorer:\n mov $15,%eax\n syscall\n"
        ".globl returned\nreturned:\n ud2\n"
        ".globl handler\nhandler:\n pushq $0x202\n popfq\n sub $8,%rsp\n call on_signal\n add $8,%rsp\n"
        " push %rax\n popfq\n ret\n"
        ".globl leap\nleap:\n mov %rdx,%rsp\n call *%rsi\n");
extern long syscall6(long number, long a, long b, long c, long d, long e, long f);
/* Hidden ones are found from where we are, and so still after we have moved. */
extern HIDDEN const char called[], restorer[], returned[], handler[];
extern HIDDEN const char __executable_start[], _end[]; /* the linker's */
extern void leap(void *world, void (*to)(void *), void *stack);
#define sys(n, a, b, c) syscall6(SYS_##n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define sys4(n, a, b, c, d) syscall6(SYS_##n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

/* ---- the world ------------------------------------------------------------------------------------------------- */

struct world {
    struct control {
        int source, sink, parent;
        u32 running;       /* a case is under way */
        u32 left, number;  /* cases of this batch that have not begun; all of it */
        u32 have, at;      /* bytes in `input`, and how many of them are done with */
        u32 answered;      /* bytes in `output` */
        u32 serial, tick;  /* the case, and which one the last tick of the clock has seen */
        u32 bases;         /* rdfsbase and its like can be used */
        u32 *progress;
        ulong features;    /* of the vectors in a frame: XCR0's bits */
        ulong end;         /* of the world */
        ulong landing;     /* where the kernel goes on behind a system call of 32-bit code: the vDSO, which is unmapped */
    } control;
    ulong seal;
    u8 began[STATE_X86] __attribute__((aligned(16)));
    u8 before[DATA_SIZE] __attribute__((aligned(16))); /* the data window as this case began with it */
    u8 input[INPUT], output[OUTPUT];
    u8 stack[STACK] __attribute__((aligned(PAGE))), start[PAGE];
};
enum { SIZE = (sizeof(struct world) + PAGE - 1) & -PAGE };

/* Our code has moved to right behind it. (The compiler need not know: it takes what it sees declared for constant.) */
static struct world *world(void)
{
    ulong code;
    __asm__("lea __executable_start(%%rip),%0" : "=r"(code));
    return (struct world *)(code - SIZE);
}

static ulong seal(const struct control *control)
{
    const ulong *words = (const ulong *)control;
    ulong sum = 0x9E3779B97F4A7C15;
    for (ulong i = 0; i < sizeof *control / 8; i++) sum = (sum ^ words[i]) * 0xD6E8FEB86659FD93;
    return sum;
}

static void leave(int code)
{
    for (;;) sys(exit_group, code, 0, 0);
}

/* Until a descriptor is ready; not for longer than who started us is there. */
static void wait_for(struct control *c, int fd, short events)
{
    struct { int fd; short events, found; } wanted = { fd, events, 0 };
    while (sys(poll, &wanted, 1, 100) <= 0)
        if (sys(getppid, 0, 0, 0) != c->parent) leave(DONE);
}

/* The next n bytes of what comes in. */
static const u8 *take(struct world *w, u32 n)
{
    struct control *c = &w->control;
    if (n > INPUT) leave(NONSENSE);
    if (c->have - c->at < n) {
        copy(w->input, w->input + c->at, c->have - c->at);
        c->have -= c->at, c->at = 0;
    }
    while (c->have < n) {
        wait_for(c, c->source, POLLIN);
        long r = sys(read, c->source, w->input + c->have, INPUT - c->have);
        if (r == -EINTR || r == -EAGAIN) continue;
        if (r <= 0) leave(DONE);
        c->have += (u32)r;
    }
    c->at += n;
    return w->input + c->at - n;
}

static void answer(struct world *w)
{
    struct control *c = &w->control;
    u32 head[2] = { c->answered - 8, c->number };
    copy(w->output, head, 8);
    for (u32 at = 0; at < c->answered;) {
        wait_for(c, c->sink, POLLOUT);
        long r = sys(write, c->sink, w->output + at, c->answered - at);
        if (r == -EINTR || r == -EAGAIN) continue;
        if (r <= 0) leave(DONE);
        at += (u32)r;
    }
}

/* ---- one case -------------------------------------------------------------------------------------------------- */

static void begin_case(struct world *w, struct frame *f)
{
    struct control *c = &w->control;
    if (c->left == 0) {
        c->progress[1] = c->progress[0] = 0;
        if (c->number) answer(w);
        const u32 *head = (const u32 *)take(w, 8);
        c->left = c->number = head[1], c->answered = 8;
        if (c->number == 0 || c->number > MOST_CASES) leave(NONSENSE);
    }
    const u8 *head = take(w, 3);
    u32 length = head[0], patches = get16(head + 1);
    clear((void *)CODE, PAGE), copy((u8 *)CODE + PAGE - length, take(w, length), length);
    copy(w->began, take(w, STATE_X86), STATE_X86);
    clear(w->before, DATA_SIZE);
    while (patches--) {
        const u8 *p = take(w, 4);
        u32 at = get16(p), size = get16(p + 2);
        if (at + size > DATA_SIZE) leave(NONSENSE);
        copy(w->before + at, take(w, size), size);
    }
    copy((void *)DATA, w->before, DATA_SIZE);

    const ulong *general = (const ulong *)w->began;
    for (int i = 0; i < 16; i++) f->registers[order[i]] = general[i];
    f->rip = CODE + PAGE - length;
    f->rflags = (general[16] & FLAGS_SHOWN) | FLAGS_ON;
    f->cs = USER_CS, f->ss = USER_SS, f->fs = f->gs = 0;
    f->uc_flags = WITH_VECTORS | WITH_SS;
    f->mask = ~(1ul << (SIGILL - 1) | 1ul << (SIGTRAP - 1) | 1ul << (SIGBUS - 1) | 1ul << (SIGFPE - 1)
                | 1ul << (SIGSEGV - 1) | 1ul << (SIGPROF - 1) | 1ul << (SIGSYS - 1));
    set_vectors(f->vectors, w->began + STATE_XMM, VECTORS, c->features);
    c->progress[0] = c->number - c->left, c->progress[1] = 1;
    c->left--, c->serial++, c->running = 1;
}

static void end_case(struct world *w, const struct frame *f, enum status status)
{
    struct control *c = &w->control;
    struct outcome o = { status, 0, f->trap, f->error, f->cr2, f->rip };
    if (status == EXCEPTION && f->trap == PAGE_FAULT && f->rip == END_OF_CODE && f->cr2 == END_OF_CODE) o.status = OK;
    if (o.status == OK) o.known = END_TOLD;
    if (o.status == EXCEPTION) {
        o.known = END_TOLD | VECTOR_TOLD;
        if (f->trap < 32 && 1ul << f->trap & WITH_ERROR) o.known |= ERROR_TOLD;
        if (f->trap == PAGE_FAULT) o.known |= ADDRESS_TOLD;
    }
    u8 *to = w->output + c->answered, *end = to + OUTCOME;
    u32 patches = 0;
    if (o.known) {
        u8 *state = end;
        copy(state, w->began, STATE_X86);
        ulong *general = (ulong *)state;
        for (int i = 0; i < 16; i++) general[i] = f->registers[order[i]];
        general[16] = (f->rflags & FLAGS_SHOWN) | FLAGS_ON;
        tell_vectors(state + STATE_XMM, f->vectors, VECTORS, c->features);
        end = put_patches(state + STATE_X86, w->before, (const u8 *)DATA, &patches);
    }
    put_head(to, &o, patches);
    c->answered += (u32)(end - to);
    c->running = 0;
}

/* Segment registers and their bases are not the frame's to set. */
static void reset_segments(const struct control *c)
{
    u16 ds, es, fs, gs, flat = USER_SS, null = 0;
    __asm__ volatile("mov %%ds,%0\n mov %%es,%1\n mov %%fs,%2\n mov %%gs,%3" : "=r"(ds), "=r"(es), "=r"(fs), "=r"(gs));
    if (ds | es) __asm__ volatile("mov %0,%%ds\n mov %0,%%es" : : "r"(null));
    /* Some CPUs keep the base where the selector becomes null, so it is a flat one first. */
    if (fs) __asm__ volatile("mov %0,%%fs\n mov %1,%%fs" : : "r"(flat), "r"(null));
    if (gs) __asm__ volatile("mov %0,%%gs\n mov %1,%%gs" : : "r"(flat), "r"(null));
    if (c->bases) __asm__ volatile("wrfsbase %0\n wrgsbase %0" : : "r"(0ul));
}

/* One that was refused; or one of 32-bit code, of which the kernel fails to read the arguments and then goes on in the
 * vDSO, which is not there. */
static int is_system_call(const struct control *c, int number, ulong rip)
{
    return number == SIGSYS || (c->landing && rip - c->landing < VDSO);
}

/* By `handler`. What it returns are the flags to go back with. */
ulong on_signal(int number, const int *info, struct frame *f)
{
    struct world *w = world();
    struct control *c = &w->control;
    (void)info;
    if (!w->seal && number == SIGPROF) return FLAGS_ON; /* on a slow host, before the start has come to its end */
    if (w->seal != seal(c)) leave(DAMAGED);
    if (number == SIGPROF) {
        if (sys(getppid, 0, 0, 0) != c->parent) leave(DONE);
        if (c->tick != c->serial) { /* it began since the last tick, and has still time */
            c->tick = c->serial, w->seal = seal(c);
            return FLAGS_ON | (f->rflags & (NT | ID));
        }
    }
    reset_segments(c);
    if (!c->running)
        c->features = *(ulong *)(f->vectors + FEATURES);
    else
        end_case(w, f, number == SIGPROF ? TIMEOUT : is_system_call(c, number, f->rip) ? UNSUPPORTED : EXCEPTION);
    begin_case(w, f);
    w->seal = seal(c);
    return FLAGS_ON;
}

/* ---- the start ------------------------------------------------------------------------------------------------- */

static void check(long result, const char *what)
{
    if (result >= 0) return;
    ulong n = 0;
    while (what[n]) n++;
    sys(write, 2, "native: the kernel refuses ", 27), sys(write, 2, what, n), sys(write, 2, "\n", 1);
    leave(CANNOT);
}

/* A system call is let through from our two instructions, each for what it is for; of any other the case hears. */
static void refuse_system_calls(struct control *c)
{
    enum { ALLOW = 0x7FFF0000, REFUSE = 0x30000, X86_64 = (int)0xC000003E };
    enum { NUMBER = 0, ARCH = 4, PLACE = 8, PLACE_HIGH = 12, FIRST = 16 }; /* struct seccomp_data */
    enum { AT_NUMBER = 7, AT_READ = 14, AT_WRITE = 16, NO = 18, YES = 19 };
#define LOAD(what) { 0x20, 0, 0, what }
#define IS(here, value, yes, no) { 0x15, (u8)((yes) - (here) - 1), (u8)((no) - (here) - 1), (u32)(value) }
    struct { u16 code; u8 yes, no; u32 value; } filter[] = {
        LOAD(ARCH),       IS(1, X86_64, 2, NO),
        LOAD(PLACE_HIGH), IS(3, (ulong)called >> 32, 4, NO),
        LOAD(PLACE),      IS(5, (ulong)called, AT_NUMBER, 6), IS(6, (ulong)returned, AT_NUMBER, NO),
        LOAD(NUMBER),     IS(8, SYS_rt_sigreturn, YES, 9),    IS(9, SYS_poll, YES, 10),
                          IS(10, SYS_getppid, YES, 11),       IS(11, SYS_exit_group, YES, 12),
                          IS(12, SYS_read, AT_READ, 13),      IS(13, SYS_write, AT_WRITE, NO),
        LOAD(FIRST),      IS(15, c->source, YES, NO),
        LOAD(FIRST),      IS(17, c->sink, YES, NO),
        { 0x06, 0, 0, REFUSE },
        { 0x06, 0, 0, ALLOW },
    };
    /* Filters let uretprobe and uprobe pass, which are for the kernel's own trampolines and do nothing elsewhere. Kernels
     * before 5.11 have neither those nor this. */
    syscall6(SYS_prctl, 59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, (long)called, returned - called + 1, 0, 0);
    struct { u16 length; void *filter; } program = { sizeof filter / sizeof *filter, filter };
    check(sys4(prctl, 38 /* PR_SET_NO_NEW_PRIVS */, 1, 0, 0), "to give up new privileges");
    check(sys(seccomp, 1 /* SECCOMP_SET_MODE_FILTER */, 4 /* SPEC_ALLOW */, &program), "the seccomp filter");
}

static void unmap(ulong start, ulong end)
{
    check(sys(munmap, start, end - start, 0), "to unmap what it had mapped");
}

/* By leap(), at our new place. */
static void settle(void *place)
{
    struct world *w = place;
    struct control *c = &w->control;
    ulong top = (1ul << 47) - PAGE;
    unmap(0, CODE), unmap(CODE + PAGE, DATA), unmap(DATA + DATA_SIZE, (ulong)w), unmap(c->end, top);
    struct { const char *handler; ulong flags; const char *restorer; ulong mask; } action;
    action.handler = handler, action.restorer = restorer, action.mask = ~0ul;
    action.flags = 0x4 | 0x08000000 | 0x04000000; /* SA_SIGINFO, SA_ONSTACK, SA_RESTORER */
    struct { void *at; ulong flags, size; } stack = { w->stack, 0, STACK };
    check(sys(sigaltstack, &stack, 0, 0), "a stack for signals");
    static const u8 caught[] = { SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGPROF, SIGSYS };
    for (ulong i = 0; i < sizeof caught; i++)
        check(sys4(rt_sigaction, caught[i], &action, 0, 8), "a handler for signals");
    ulong none = 0;
    check(sys4(rt_sigprocmask, 2 /* SIG_SETMASK */, &none, 0, 8), "a signal mask");
    /* Microseconds of our own, so that it is nothing to us how busy the host is. A case has one or two of them. */
    ulong period[4] = { 0, 50000, 0, 50000 };
    check(sys(setitimer, 2 /* ITIMER_PROF */, period, 0), "a clock");
    refuse_system_calls(c);
    c->progress[0] = 0, c->progress[1] = 0;
    copy(w->output, (u32[2]){ 0, READY }, 8);
    c->answered = 8, c->number = READY;
    answer(w);
    c->number = 0;
    w->seal = seal(c);
    __asm__ volatile("ud2"); /* on_signal() begins the first case */
    leave(CANNOT);
}

static long number(const char *text)
{
    long n = 0;
    while (*text) n = n * 10 + (*text++ - '0');
    return n;
}

static ulong auxiliary(const long *stack, ulong wanted)
{
    const long *p = stack + 1 + stack[0] + 1;
    while (*p) p++; /* the environment */
    for (p++; *p; p += 2)
        if ((ulong)*p == wanted) return (ulong)p[1];
    return 0;
}

static void *map(ulong at, ulong size, int access, int kind, int fd)
{
    long found = syscall6(SYS_mmap, (long)at, (long)size, access, kind, fd, 0);
    check(found < 0 && found > -PAGE ? found : 0, "to map memory");
    if ((ulong)found != at) check(-1, "to map memory where it is wanted");
    return (void *)found;
}

static int has_xsave(void)
{
    u32 a = 1, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return c >> 27 & 1;
}

void begin(long *stack)
{
    char **args = (char **)(stack + 1);
    ulong none[2] = { 0, 0 }, draw = 0, image = (ulong)_end - (ulong)__executable_start;
    if (stack[0] != 6 || number(args[1]) != STATE_X86) check(-1, "nothing: these arguments are for another version");
    check(sys(setrlimit, 4 /* RLIMIT_CORE */, none, 0), "to leave no core");
    check(sys(getrandom, &draw, 8, 0), "a random number");
    image = (image + PAGE - 1) & -(ulong)PAGE;
    if (!has_xsave()) check(-1, "XSAVE");
    /* Anywhere between 2^46 and 2^47 - 2^40, below what else the kernel maps; the code within 4 GiB: see the filter. */
    ulong base = (1ul << 46) + (draw % ((1ul << 46) - (1ul << 40)) & -(ulong)PAGE);
    if ((base + SIZE) >> 32 != (base + SIZE + image) >> 32) base -= image + PAGE;
    struct world *w = map(base, SIZE, READ | WRITE, PRIVATE | ANONYMOUS | FIXED, -1);
    u8 *text = map(base + SIZE, image, READ | WRITE, PRIVATE | ANONYMOUS | FIXED, -1);
    copy(text, __executable_start, image);
    check(sys(mprotect, text, image, READ | EXEC), "to protect its code");
    struct control *c = &w->control;
    c->source = (int)number(args[2]), c->sink = (int)number(args[3]), c->parent = (int)number(args[5]);
    c->progress = map(base + SIZE + image, PAGE, READ | WRITE, SHARED | FIXED, (int)number(args[4]));
    c->end = base + SIZE + image + PAGE;
    c->bases = auxiliary(stack, 26 /* AT_HWCAP2 */) >> 1 & 1;
    c->landing = auxiliary(stack, 33 /* AT_SYSINFO_EHDR */);
    map(CODE, PAGE, READ | WRITE | EXEC, PRIVATE | ANONYMOUS | FIXED, -1);
    map(DATA, DATA_SIZE, READ | WRITE | EXEC, PRIVATE | ANONYMOUS | FIXED, -1);
    ulong moved = (ulong)text - (ulong)__executable_start;
    leap(w, (void (*)(void *))((ulong)settle + moved), w->start + PAGE);
}
