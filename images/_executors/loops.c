/*
 * The loops of the executors `unicorn` and `kvm`: a library that their worker, which is Python, loads. Python sets all up
 * and hands over a struct (vmtest/executors/loops.py has the same ones); a batch of packed cases is then run from here,
 * to packed outcomes, since what Python does for one case takes longer than the case.
 *
 * It calls nothing but what it is given the addresses of.
 */
#include "packed.h"

/* What each loop begins with. */
struct batch {
    u32 *progress;        /* the case that runs, and that one does: see vmtest/executors/worker.py */
    u8 *code, *data;      /* where the case's two windows are written */
    const u8 *before;     /* the data window as this case began with it */
    ulong end, data_at;   /* the case's addresses: behind its code, and of its data window */
    ulong size;           /* of a state */
    volatile u32 stopped; /* set by another thread, perhaps too late: what runs is over its time */
    volatile u32 stopping; /* that thread is still at it */
};

/* Make the windows ready for the case at `in`; its state, and by `length` that of its code. */
static const u8 *begin_case(struct batch *b, const u8 *in, u32 *length)
{
    u8 *before = (u8 *)b->before;
    u32 patches = get16(in + 1);
    *length = in[0];
    const u8 *state = in + 3 + *length, *p = state + b->size;
    clear(b->code, PAGE), copy(b->code + PAGE - *length, in + 3, *length);
    clear(before, DATA_SIZE);
    for (; patches--; p += 4 + get16(p + 2)) copy(before + get16(p), p + 4, get16(p + 2));
    copy(b->data, before, DATA_SIZE);
    return state;
}

/* Where the next case is. */
static const u8 *next_case(const struct batch *b, const u8 *in)
{
    const u8 *p = in + 3 + in[0] + b->size;
    for (u32 patches = get16(in + 1); patches--;) p += 4 + get16(p + 2);
    return p;
}

/* Tell an outcome with the state that is already behind its head; where the next one's place is. */
static u8 *end_case(const struct batch *b, u8 *to, const struct outcome *o)
{
    u8 *end = to + OUTCOME;
    u32 patches = 0;
    if (o->status == OK || o->status == EXCEPTION) end = put_patches(end + b->size, b->before, b->data, &patches);
    put_head(to, o, patches);
    return end;
}

/* A case may have to do with SSE, AVX or x87 where one of these bytes is: escapes and prefixes of theirs. To set and read
 * those takes as long as all the rest. */
static int has_vectors(const u8 *p, u32 n)
{
    while (n--) {
        u8 b = *p++;
        if (b == 0x0F || b == 0x62 || b == 0x9B || b == 0xC4 || b == 0xC5 || (b & 0xF8) == 0xD8) return 1;
    }
    return 0;
}

/* It may also jump to what it has in its data window, to which `patches` lead. */
static int uses_vectors(const struct batch *b, const u8 *state, u32 length)
{
    const u8 *in = state - length - 3, *p = state + b->size;
    if (has_vectors(in + 3, length)) return 1;
    for (u32 patches = get16(in + 1); patches--; p += 4 + get16(p + 2))
        if (has_vectors(p + 4, get16(p + 2))) return 1;
    return 0;
}

/* Whether it has made code of its own that may have to do with them, out of registers: in its page, or in the window
 * where it could jump there. */
static int may_jump(const u8 *p, u32 n)
{
    for (; n--; p++)
        if (*p == 0xFF || (*p & 0xF0) == 0x70 || (*p & 0xF0) == 0xE0 || *p == 0xC2 || *p == 0xC3 || *p == 0x9A || (*p & 0xFE) == 0xCA || *p == 0xCF) return 1;
    return 0;
}

static int has_made_code(const struct batch *b, const u8 *in)
{
    u32 length = in[0];
    static const u8 zeros[PAGE];
    if (differs(b->code + PAGE - length, in + 3, length) || differs(b->code, zeros, PAGE - length)) return 1;
    return may_jump(in + 3, length) && differs(b->data, b->before, DATA_SIZE);
}

typedef struct outcome run_case(void *engine, const u8 *state, u32 length, u8 *told, int vectors);

/* The bytes of all outcomes. A case whose time is over runs a second time: it may have been the one before it that was to
 * be stopped. So does one for which the vectors were not set, and which may have come to touch them; `lazy` is whether they
 * are left out where they need not be set. */
static ulong run_batch(void *engine, run_case *run, int lazy, const u8 *in, u32 number, u8 *out)
{
    struct batch *b = engine;
    u8 *to = out;
    for (u32 index = 0; index < number; index++, in = next_case(b, in)) {
        struct outcome o = { 0 };
        int vectors = !lazy || uses_vectors(b, in + 3 + in[0], in[0]);
        b->progress[0] = index, b->progress[1] = 1;
        for (int times = 0; times < 2; times++) {
            u32 length;
            const u8 *state = begin_case(b, in, &length);
            o = run(engine, state, length, to + OUTCOME, vectors);
            int again = !vectors && has_made_code(b, in);
            vectors |= again;
            if (o.status != TIMEOUT && !again) break;
        }
        to = end_case(b, to, &o);
    }
    return (ulong)(to - out);
}

/* ---- Unicorn --------------------------------------------------------------------------------------------------- */

struct unicorn {
    struct batch batch;
    void *uc, *fresh;
    int (*restore)(void *, void *), (*ctl)(void *, u32, ...), (*start)(void *, ulong, ulong, ulong, ulong);
    int (*write)(void *, const int *, void *const *, int), (*read)(void *, const int *, void **, int);
    int (*read_one)(void *, int, void *), (*stop)(void *);
    const int *ids; /* of the registers */
    void **places;  /* where in `state` each is */
    u8 *state;
    int number, pc;
    u32 drop;
    int access[3], illegal; /* their vectors, less than 0 where there is none; to read, to write, to fetch */
    int cut;                /* how many upper bits of an address it does not tell */
    const int *vectors;     /* of each interrupt, of 256 */
    ulong *fixed;           /* in `state`, the register of which some bits are no state of the program's */
    ulong fixed_mask, fixed_value;
    ulong mode;             /* added to the address where it begins */
    void (*renew)(void);    /* makes it anew, where it does not outlive a fetch that fails, or is not aligned */
    const int *x87_ids;     /* of FPCW, FPSW, FPTAG and FP0 to FP7; none where there are none */
    void **x87_places;      /* where in `x87` each is */
    u8 *x87, *x87_state;    /* SLOT bytes of each; FCW, FSW, FTW and ST0 to ST7 in `state` */
    struct outcome fault;   /* what the hooks have seen */
};

/* The library numbers x87 registers from the first one, and a state from the top of the stack; of each it has a tag of
 * two bits, 3 for empty, and a state has one bit (Intel SDM, volume 1, sections 8.1.7 and 10.5.1). */
enum { SLOT = 16, X87_NUMBER = 11, TAGS = 2, STACK_AT = 3, EMPTY = 3 };

static void set_x87(struct unicorn *e)
{
    u32 tags = 0;
    copy(e->x87, e->x87_state, 2), copy(e->x87 + SLOT, e->x87_state + 2, 2);
    for (u32 i = 0, top = e->x87_state[3] >> 3 & 7; i < 8; i++) {
        tags |= e->x87_state[4] >> i & 1 ? 0 : EMPTY << 2 * i;
        copy(e->x87 + SLOT * (STACK_AT + (i + top) % 8), e->x87_state + 5 + 10 * i, 10);
    }
    e->x87[SLOT * TAGS] = (u8)tags, e->x87[SLOT * TAGS + 1] = (u8)(tags >> 8);
    e->write(e->uc, e->x87_ids, e->x87_places, X87_NUMBER);
}

static void tell_x87(struct unicorn *e)
{
    e->read(e->uc, e->x87_ids, e->x87_places, X87_NUMBER);
    u32 tags = get16(e->x87 + SLOT * TAGS);
    copy(e->x87_state, e->x87, 2), copy(e->x87_state + 2, e->x87 + SLOT, 2);
    e->x87_state[4] = 0;
    for (u32 i = 0, top = e->x87_state[3] >> 3 & 7; i < 8; i++) {
        e->x87_state[4] |= (u8)((tags >> 2 * i & 3) != EMPTY) << i;
        copy(e->x87_state + 5 + 10 * i, e->x87 + SLOT * (STACK_AT + (i + top) % 8), 10);
    }
}

/* UC_ERR_* of unicorn.h. Those where an access fails keep no program counter. UC_MEM_*, of which three follow. */
enum { FETCH_UNMAPPED = 8, INVALID = 10, RAISED = 1u << 31, MEM_READ_UNMAPPED = 19 };
static int keeps_no_place(int error)
{
    return (error >= 6 && error <= 8) || (error >= 12 && error <= 14) || (error >= 19 && error <= 21);
}

static u32 told(int vector) { return vector < 0 ? 0 : VECTOR_TOLD; }

/* Hooks, which Python registers: an access that fails, and an exception or interrupt. */
int unicorn_fault(void *uc, int access, ulong address, int size, long value, struct unicorn *e)
{
    (void)uc, (void)size, (void)value;
    int vector = e->access[(u32)(access - MEM_READ_UNMAPPED) % 3];
    /* On x86 it cuts addresses to 52 bits: of those that the architecture has the upper ones are all alike. */
    address = (ulong)((long)(address << e->cut) >> e->cut);
    e->fault = (struct outcome){ 0, ADDRESS_TOLD | told(vector), (u32)vector, 0, address, 0 };
    return 0;
}

void unicorn_interrupt(void *uc, u32 number, struct unicorn *e)
{
    int vector = number < 256 ? e->vectors[number] : -1;
    e->fault = (struct outcome){ 0, RAISED | told(vector), (u32)vector, 0, 0, 0 };
    e->stop(uc);
}

static struct outcome unicorn_case(void *engine, const u8 *state, u32 length, u8 *to, int vectors)
{
    struct unicorn *e = engine;
    e->restore(e->uc, e->fresh); /* also an exception that it remembers, which would make the next one a double */
    ulong behind = e->batch.end, data = e->batch.data_at;
    int x87 = e->x87_ids && vectors;
    e->ctl(e->uc, e->drop, behind - PAGE, behind), e->ctl(e->uc, e->drop, data, data + DATA_SIZE);
    copy(e->state, state, e->batch.size);
    for (u32 i = 0; i < 8; i++) e->state[e->batch.size + i] = 0; /* what is no part of a state, and yet to be reset */
    e->write(e->uc, e->ids, e->places, e->number);
    if (x87) set_x87(e);
    e->fault.known = 0;
    int error = e->start(e->uc, behind - length + e->mode, behind, 0, 0);
    ulong end = 0;
    e->read(e->uc, e->ids, e->places, e->number), e->read_one(e->uc, e->pc, &end);
    if (e->batch.stopped) {
        while (e->batch.stopping) {} /* or the next case would be stopped, too */
        e->batch.stopped = 0;
        return (struct outcome){ .status = TIMEOUT };
    }
    if (x87) tell_x87(e);
    if ((error == FETCH_UNMAPPED || e->fault.known & RAISED) && e->renew) e->renew();
    if (e->fixed) *e->fixed = (*e->fixed & ~e->fixed_mask) | e->fixed_value;
    copy(to, e->state, e->batch.size);
    struct outcome o = e->fault;
    /* On some architectures it fetches what is behind the end. */
    if (o.known & ADDRESS_TOLD && end == behind && o.address == behind) error = 0, o.known = 0;
    o.status = error || o.known ? EXCEPTION : OK;
    o.known &= ~(u32)RAISED;
    if (error == INVALID) o.known = (o.known & ~(u32)VECTOR_TOLD) | told(e->illegal), o.vector = (ulong)e->illegal;
    if (!keeps_no_place(error)) o.known |= END_TOLD, o.end = end;
    return o;
}

ulong unicorn_batch(struct unicorn *e, const u8 *in, u32 number, u8 *out)
{
    return run_batch(e, unicorn_case, e->x87_ids != 0, in, number, out);
}

/* ---- KVM ------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
struct kvm {
    struct batch batch;
    int (*ioctl)(int, ulong, ...);
    u8 *run;          /* struct kvm_run */
    u8 *stack;        /* where the handlers' one begins: the exception's frame is below */
    const u8 *system; /* struct kvm_sregs */
    u8 *xsave;
    ulong stubs, features;
    ulong wide, general; /* bytes of a general register, and how many there are; behind them are the flags */
    ulong vectors;       /* bytes of all XMM */
    int vcpu, hides;     /* an exception that may be another one: 0 for none */
    const int *error;    /* errno of the thread that runs */
    void (*renew)(void); /* makes the CPU anew, and its tables; none in ring 3, which cannot change them */
};

/* include/uapi/linux/kvm.h; the stubs are one HLT each, STUB bytes from each other: see vmtest/executors/kvm.py */
enum { KVM_RUN = 0xAE80, IMMEDIATE_EXIT = 1, EXIT_REASON = 8, VALID = 288, DIRTY = 296, REGS = 304, SREGS = REGS + 144,
       CR2 = SREGS + 232, SREGS_SIZE = 0x138, SYNC = 3, HLT = 5, STUB = 8, RSP = 4, PENDING = 64, INTERRUPTED = 4 /* EINTR */ };
#define KVM_GET_XSAVE 0x9000AEA4ul
#define KVM_SET_XSAVE 0x5000AEA5ul
/* Where in a state each of struct kvm_regs is: rax rbx rcx rdx rsi rdi rsp rbp r8-r15. */
static const u8 order[16] = { 0, 3, 1, 2, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15 };

static ulong get_register(const u8 *state, ulong wide, ulong number)
{
    ulong value = 0;
    copy(&value, state + wide * number, wide);
    return value;
}

static void put_register(u8 *state, ulong wide, ulong number, ulong value) { copy(state + wide * number, &value, wide); }

/* Handlers: of the 256 exceptions, then of system calls, to which not every KVM gets: it may fail to fetch that. */
enum { SYSTEM_CALL = 256 };
static int is_system_call(const struct kvm *e, ulong vector, ulong end)
{
    ulong handler = e->stubs + SYSTEM_CALL * STUB;
    return vector == SYSTEM_CALL || (vector == PAGE_FAULT && (u32)end == (u32)handler);
}

/* It would need a device, has shut down, or KVM's emulator does not know the instruction. What is pending of it KVM
 * completes when it runs next, whatever the registers are by then: so that it does now (Documentation/virt/kvm/api.rst,
 * KVM_RUN, immediate_exit). */
static void finish_exit(struct kvm *e)
{
    for (int times = 0; times < PENDING; times++) {
        e->run[IMMEDIATE_EXIT] = 1, *(ulong *)(e->run + DIRTY) = 0;
        if (e->ioctl(e->vcpu, KVM_RUN, 0) < 0) break;
    }
    e->run[IMMEDIATE_EXIT] = 0;
}

/* MOV to DR, WRMSR, and the groups of LKGS, XSETBV and SWAPGS: what they change is set once, and not for each case. */
static int changes_system(const u8 *p, u32 n)
{
    for (; n > 1; n--, p++)
        if (p[0] == 0x0F && (p[1] == 0x23 || p[1] == 0x30 || p[1] <= 1)) return 1;
    return 0;
}

static struct outcome kvm_case(void *engine, const u8 *state, u32 length, u8 *told, int vectors)
{
    struct kvm *e = engine;
    ulong *regs = (ulong *)(e->run + REGS), wide = e->wide, general = e->general, behind = e->batch.end;
    ulong xmm = wide * (general + 1);
    if (vectors) {
        set_vectors(e->xsave, state + xmm, e->vectors, e->features);
        if (e->ioctl(e->vcpu, KVM_SET_XSAVE, e->xsave) < 0) return (struct outcome){ .status = UNSUPPORTED };
    }
    for (ulong i = 0; i < 16; i++) regs[i] = i < general ? get_register(state, wide, order[i]) : 0;
    regs[16] = behind - length, regs[17] = (get_register(state, wide, general) & FLAGS_SHOWN) | FLAGS_ON;
    copy(e->run + SREGS, e->system, SREGS_SIZE);
    *(ulong *)(e->run + VALID) = *(ulong *)(e->run + DIRTY) = SYNC;
    if (e->ioctl(e->vcpu, KVM_RUN, 0) < 0) { /* interrupted by stop(), or by whoever else; or it cannot be run */
        e->run[IMMEDIATE_EXIT] = 0;
        return (struct outcome){ .status = *e->error == INTERRUPTED ? TIMEOUT : DIED };
    }
    copy(told, state, e->batch.size);
    if (*(u32 *)(e->run + EXIT_REASON) != HLT) {
        finish_exit(e);
        return (struct outcome){ .status = UNSUPPORTED };
    }
    for (ulong i = 0; i < general; i++) put_register(told, wide, order[i], regs[i]);
    struct outcome o = { OK, END_TOLD, 0, 0, 0, regs[16] };
    ulong flags = regs[17], stub = regs[16] - 1 - e->stubs;
    if (stub <= SYSTEM_CALL * STUB) { /* an exception: error code, RIP, CS, RFLAGS, RSP, SS are on the stack */
        const ulong *frame = (const ulong *)(e->stack - 40);
        o.vector = stub / STUB, o.error = frame[-1], o.address = *(ulong *)(e->run + CR2);
        if (is_system_call(e, o.vector, frame[0]) || (e->hides && o.vector == (u32)e->hides))
            return (struct outcome){ .status = UNSUPPORTED };
        o.end = frame[0], flags = frame[2], put_register(told, wide, RSP, frame[3]);
        if (!(o.vector == PAGE_FAULT && o.end == behind && o.address == behind)) {
            o.status = EXCEPTION, o.known |= VECTOR_TOLD;
            if (o.vector < 32 && 1ul << o.vector & WITH_ERROR) o.known |= ERROR_TOLD;
            if (o.vector == PAGE_FAULT) o.known |= ADDRESS_TOLD;
        }
    }
    put_register(told, wide, general, (flags & FLAGS_SHOWN) | FLAGS_ON);
    if (vectors && e->ioctl(e->vcpu, KVM_GET_XSAVE, e->xsave) >= 0) tell_vectors(told + xmm, e->xsave, e->vectors, e->features);
    return o;
}

/* The same; the CPU is made anew behind a case in ring 0 that may have changed what is not set for each. */
static struct outcome kvm_clean_case(void *engine, const u8 *state, u32 length, u8 *told, int vectors)
{
    struct kvm *e = engine;
    struct outcome o = kvm_case(engine, state, length, told, vectors);
    const u8 *in = state - length - 3, *p = state + e->batch.size;
    int changed = changes_system(in + 3, length) || (o.status == EXCEPTION && o.vector == 1); /* DR6 keeps its bits */
    changed |= o.status == DIED; /* the next one is to have a CPU that can run */
    for (u32 patches = get16(in + 1); patches--; p += 4 + get16(p + 2)) changed |= changes_system(p + 4, get16(p + 2));
    if (changed && e->renew) e->renew();
    return o;
}

ulong kvm_batch(struct kvm *e, const u8 *in, u32 number, u8 *out)
{
    return run_batch(e, kvm_clean_case, 1, in, number, out);
}
#endif
