/*
 * What native.c and loops.c share: cases and outcomes as vmtest/model/case.py packs them, in memory where vmtest/model/isa.py
 * says, and how x86 has its vectors (Intel SDM, volume 1, sections 10.5.1 and 13.4). No libc, as in ../_agent/agent.c.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long ulong;

/* vmtest/model/isa.py */
#define CODE 0x10000000ul
#define DATA 0x20000000ul
enum { PAGE = 4096, DATA_SIZE = 2 * PAGE };
#define END_OF_CODE (CODE + PAGE)
/* vmtest/model/case.py */
enum status { OK, EXCEPTION, UNSUPPORTED, TIMEOUT, DIED };
enum { VECTOR_TOLD = 1, ERROR_TOLD = 2, ADDRESS_TOLD = 4, END_TOLD = 8, APART = 8, OUTCOME = 36 };

struct word { ulong word; } __attribute__((packed, may_alias));

static inline void copy(void *to, const void *from, ulong n)
{
#if defined(__x86_64__)
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
#else
    u8 *t = to;
    const u8 *f = from;
    for (; n >= 8; n -= 8, t += 8, f += 8) ((struct word *)t)->word = ((const struct word *)f)->word;
    while (n--) *t++ = *f++;
#endif
}

static inline void clear(void *to, ulong n)
{
#if defined(__x86_64__)
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(0) : "memory");
#else
    u8 *t = to;
    for (; n >= 8; n -= 8, t += 8) ((struct word *)t)->word = 0;
    while (n--) *t++ = 0;
#endif
}

/* Whether they are not the same; n is any number, and what most are is quick. */
static inline int differs(const u8 *one, const u8 *other, ulong n)
{
    for (; n >= 8; n -= 8, one += 8, other += 8)
        if (((const struct word *)one)->word != ((const struct word *)other)->word) return 1;
    while (n--)
        if (*one++ != *other++) return 1;
    return 0;
}

/* the compiler may call these two */
#define HIDDEN __attribute__((visibility("hidden")))
HIDDEN void *memcpy(void *to, const void *from, ulong n) { copy(to, from, n); return to; }
HIDDEN void *memset(void *to, int c, ulong n) { u8 *t = to; while (n--) *t++ = (u8)c; return to; }

static inline u32 get16(const u8 *p) { return p[0] | (u32)p[1] << 8; }

/* ---- outcomes -------------------------------------------------------------------------------------------------- */

struct outcome {
    enum status status;
    u32 known; /* which of the following are: *_TOLD */
    ulong vector, error, address, end;
};

/* Its head; what follows is the state, of those that have one, and then the patches. */
static void put_head(u8 *to, const struct outcome *o, u32 patches)
{
    ulong told[4] = {
        o->known & VECTOR_TOLD ? o->vector : 0, o->known & ERROR_TOLD ? o->error : 0,
        o->known & ADDRESS_TOLD ? o->address : 0, o->known & END_TOLD ? o->end : 0,
    };
    u16 number = (u16)patches;
    to[0] = (u8)o->status, to[1] = (u8)o->known;
    copy(to + 2, told, sizeof told), copy(to + 34, &number, 2);
}

static inline u8 *put_patch(u8 *to, const u8 *window, u32 start, u32 end)
{
    u16 head[2] = { (u16)start, (u16)(end - start) };
    copy(to, head, 4), copy(to + 4, window + start, end - start);
    return to + 4 + end - start;
}

/* What of the data window has changed, as `differences` of case.py tells it: where they end, and how many they are. */
static u8 *put_patches(u8 *to, const u8 *before, const u8 *now, u32 *number)
{
    typedef ulong line __attribute__((vector_size(64), aligned(16)));
    const line *was = (const line *)before, *is = (const line *)now;
    u32 start = 0, end = 0; /* of the patch that may still grow */
    *number = 0;
    for (u32 n = 0; n < DATA_SIZE / 64; n++) {
        line d = was[n] ^ is[n];
        if (!(d[0] | d[1] | d[2] | d[3] | d[4] | d[5] | d[6] | d[7])) continue;
        for (u32 at = 64 * n; at < 64 * n + 64; at++) {
            if (before[at] == now[at]) continue;
            if (end && at - end >= APART) to = put_patch(to, now, start, end), ++*number, end = 0;
            if (!end) start = at;
            end = at + 1;
        }
    }
    if (end) to = put_patch(to, now, start, end), ++*number;
    return to;
}

/* ---- x86 ------------------------------------------------------------------------------------------------------- */

/* A state: general registers, RFLAGS, XMM, MXCSR, the upper halves of YMM, FCW FSW FTW, ST. In 64-bit mode: */
enum { GENERAL = 17, VECTORS = 16 * 16, HALVES = 16 * 16, STATE_XMM = GENERAL * 8, STATE_MXCSR = STATE_XMM + VECTORS,
       STATE_YMM = STATE_MXCSR + 4, STATE_X87 = STATE_YMM + HALVES, STATE_ST = STATE_X87 + 5, STATE_X86 = STATE_ST + 80 };
/* Of RFLAGS: what is a program's, and what is always on. */
#define FLAGS_SHOWN 0xCD5ul
#define FLAGS_ON 0x202ul
/* An area as XSAVE has it, up to what is the system's own in a signal frame. */
enum { FCW = 0, MXCSR = 24, ST = 32, XMM = 160, LEGACY = 464, XSTATE_BV = 512, YMM = 576, SSE = 3, AVX = 4 };
enum { PAGE_FAULT = 14 };
/* The exceptions that have an error code: Intel SDM, volume 3, table 6-1. */
#define WITH_ERROR 0x227D00ul

/* `from` is a state from its XMM on, which have `size` bytes. `features` are those of XCR0. What is not set here
 * (AVX-512, PKRU, ...) is to be as after a reset. */
static inline void set_vectors(u8 *area, const u8 *from, ulong size, ulong features)
{
    const u8 *mxcsr = from + size, *halves = mxcsr + 4, *x87 = halves + size, *st = x87 + 5;
    clear(area, LEGACY); /* also where the last x87 instruction was */
    copy(area + XMM, from, size), copy(area + MXCSR, mxcsr, 2); /* of 4: two are reserved */
    if (features & AVX) clear(area + YMM, HALVES), copy(area + YMM, halves, size);
    copy(area + FCW, x87, 5);
    for (int i = 0; i < 8; i++) copy(area + ST + 16 * i, st + 10 * i, 10);
    clear(area + XSTATE_BV, 64);
    *(ulong *)(area + XSTATE_BV) = SSE | (features & AVX);
}

/* A CPU that has no AVX leaves its registers as they were: what is told of them is what the state has already. */
static inline void tell_vectors(u8 *to, const u8 *area, ulong size, ulong features)
{
    u8 *mxcsr = to + size, *halves = mxcsr + 4, *x87 = halves + size, *st = x87 + 5;
    copy(to, area + XMM, size), copy(mxcsr, area + MXCSR, 4);
    if (features & AVX) copy(halves, area + YMM, size);
    copy(x87, area + FCW, 5);
    for (int i = 0; i < 8; i++) copy(st + 10 * i, area + ST + 16 * i, 10);
}
