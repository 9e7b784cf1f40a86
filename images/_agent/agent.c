/*
 * The guest agent: runs commands for the host over one virtio-serial port, raw bytes in frames.
 *
 *   vmtest-agent PORT
 *
 * A frame is a 12-byte little-endian header { u32 type, u32 id, u32 length } and `length` bytes. `id` names a
 * command and is chosen by the host. vmtest/qemu/agent.py is the other end and documents the frame types.
 *
 * It has no libc: raw system calls for three architectures cost 150 lines less than carrying a libc that must be
 * compiled for each of them, and the result is some 6 KiB that start in a millisecond under emulation.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long ulong;

enum { MAX_COMMANDS = 32, PAYLOAD = 65536, WINDOW = 65536, MAX_STRINGS = 4096, PROTOCOL = 3 };
enum frame { HELLO = 1, SPAWN, STDIN, KILL, STDIN_DONE, STDOUT, STDERR, EXIT, REFUSED, PING, WAKE, HOLD };
#define HELLO_ID 0x74736d76u /* "vmst": with HELLO and its length the 12 bytes by which a new agent finds its place */

/* ---- system calls ------------------------------------------------------------------------------------------ */

#if defined(__x86_64__)
enum { SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_rt_sigprocmask = 14, SYS_ioctl = 16, SYS_fcntl = 72,
       SYS_clone = 56, SYS_execve = 59, SYS_exit_group = 231, SYS_wait4 = 61, SYS_kill = 62, SYS_chdir = 80,
       SYS_setsid = 112, SYS_clock_settime = 227, SYS_openat = 257, SYS_ppoll = 271, SYS_signalfd4 = 289, SYS_dup3 = 292, SYS_pipe2 = 293,
       SYS_sched_setscheduler = 144, SYS_sched_setaffinity = 203, SYS_sched_getaffinity = 204, SYS_getcpu = 309 };
static long syscall6(long n, long a, long b, long c, long d, long e, long f)
{
    long r;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return r;
}
__asm__(".globl _start\n_start:\n mov %rsp,%rdi\n and $-16,%rsp\n call begin\n");
#elif defined(__aarch64__) || defined(__riscv) /* both use the kernel's generic numbers */
enum { SYS_read = 63, SYS_write = 64, SYS_close = 57, SYS_rt_sigprocmask = 135, SYS_ioctl = 29, SYS_fcntl = 25,
       SYS_clone = 220, SYS_execve = 221, SYS_exit_group = 94, SYS_wait4 = 260, SYS_kill = 129, SYS_chdir = 49,
       SYS_setsid = 157, SYS_clock_settime = 112, SYS_openat = 56, SYS_ppoll = 73, SYS_signalfd4 = 74, SYS_dup3 = 24, SYS_pipe2 = 59,
       SYS_sched_setscheduler = 119, SYS_sched_setaffinity = 122, SYS_sched_getaffinity = 123, SYS_getcpu = 168 };
static long syscall6(long n, long a, long b, long c, long d, long e, long f)
{
#if defined(__aarch64__)
    register long nr __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
                  x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(nr), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
#else
    register long nr __asm__("a7") = n, x0 __asm__("a0") = a, x1 __asm__("a1") = b, x2 __asm__("a2") = c,
                  x3 __asm__("a3") = d, x4 __asm__("a4") = e, x5 __asm__("a5") = f;
    __asm__ volatile("ecall" : "+r"(x0) : "r"(nr), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
#endif
    return x0;
}
#if defined(__aarch64__)
__asm__(".globl _start\n_start:\n mov x0,sp\n bl begin\n");
#else
__asm__(".globl _start\n_start:\n mv a0,sp\n andi sp,sp,-16\n call begin\n");
#endif
#else
#error "add the system call numbers and the entry of this architecture"
#endif
#define sys(n, a, b, c) syscall6(SYS_##n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define sys4(n, a, b, c, d) syscall6(SYS_##n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

enum { EINTR = 4, EAGAIN = 11, ENOENT = 2, EACCES = 13, ENOTDIR = 20, ENOEXEC = 8, E2BIG = 7 };
enum { O_RDWR = 2, O_NONBLOCK = 04000, O_CLOEXEC = 02000000, AT_FDCWD = -100 };
enum { POLLIN = 1, POLLOUT = 4, POLLERR = 8, POLLHUP = 16 };
enum { F_SETFL = 4, F_SETPIPE_SZ = 1031, FIONREAD = 0x541B, RNDADDENTROPY = 0x40085203, RNDRESEEDCRNG = 0x5207 };
enum { WNOHANG = 1, SIGKILL = 9, SIGPIPE = 13, SIGCHLD = 17, SIGCONT = 18 };
enum { SIG_BLOCK = 0, SIG_SETMASK = 2 };
enum { SCHED_OTHER = 0, SCHED_FIFO = 1, HIGHEST = 99 };
struct pollfd { int fd; short events, revents; };
struct timespec { long sec, nsec; };

/* the compiler may call these two for struct copies and initialisers */
void *memcpy(void *to, const void *from, ulong n) { u8 *t = to; const u8 *f = from; while (n--) *t++ = *f++; return to; }
void *memset(void *to, int c, ulong n) { u8 *t = to; while (n--) *t++ = (u8)c; return to; }
static ulong length(const char *s) { ulong n = 0; while (s[n]) n++; return n; }
static int starts(const char *s, const char *with, ulong n) { while (n--) if (*s++ != *with++) return 0; return 1; }

/* ---- state ------------------------------------------------------------------------------------------------- */

struct command {
    u32 id;
    int pid;              /* 0: this slot is free */
    int in, out, err;     /* our ends of its pipes; -1: closed */
    int in_ends;          /* the host has sent the end of its input */
    u32 in_start, in_len; /* what is left of `input` to be written */
    u8 input[WINDOW];
};

static int port;
static char **environment;
static struct command commands[MAX_COMMANDS];
static u8 outgoing[12 + PAYLOAD];
static u8 incoming[12 + PAYLOAD];
static u32 have;   /* bytes in `incoming` */
static int synced; /* a HELLO has been seen since we started */

static void put32(u8 *p, u32 v) { p[0] = (u8)v; p[1] = (u8)(v >> 8); p[2] = (u8)(v >> 16); p[3] = (u8)(v >> 24); }
static u32 get32(const u8 *p) { return p[0] | p[1] << 8 | p[2] << 16 | (u32)p[3] << 24; }

static void write_all(int fd, const u8 *p, ulong n)
{
    while (n) {
        long w = sys(write, fd, p, n);
        if (w == -EINTR) continue;
        if (w <= 0) return;
        p += w, n -= (ulong)w;
    }
}

/* The payload, if any, is already in outgoing + 12: what a command wrote is read straight into place. */
static void send_frame(u32 type, u32 id, u32 n)
{
    put32(outgoing, type), put32(outgoing + 4, id), put32(outgoing + 8, n);
    write_all(port, outgoing, 12 + n);
}

static void close_fd(int *fd)
{
    if (*fd >= 0) sys(close, *fd, 0, 0);
    *fd = -1;
}

static struct command *find(u32 id)
{
    for (int i = 0; i < MAX_COMMANDS; i++)
        if (commands[i].pid && commands[i].id == id) return &commands[i];
    return 0;
}

/* ---- running a command ------------------------------------------------------------------------------------- */

static void complain(const char *what, const char *name, long error)
{
    const char *why = error == -ENOENT ? "No such file or directory" : error == -EACCES ? "Permission denied"
                    : error == -ENOTDIR ? "Not a directory" : error == -ENOEXEC ? "Exec format error"
                    : error == -E2BIG ? "Argument list too long" : "failed";
    const char *parts[] = { "vmtest-agent: ", what, " ", name, ": ", why, "\n" };
    for (ulong i = 0; i < sizeof parts / sizeof *parts; i++) write_all(2, (const u8 *)parts[i], length(parts[i]));
}

static const char *variable(char **env, const char *name)
{
    ulong n = length(name);
    for (; *env; env++) if (starts(*env, name, n) && (*env)[n] == '=') return *env + n + 1;
    return "";
}

/* execve along PATH as a shell does it: 126 for what cannot be run, 127 for what is not there. */
static void execute(char **argv, char **env)
{
    static char path[4096];
    const char *name = argv[0], *dirs = variable(env, "PATH");
    long error = -ENOENT, r;
    ulong n = length(name);
    int has_slash = 0;
    for (const char *c = name; *c; c++) has_slash |= *c == '/';
    if (has_slash) {
        error = sys(execve, name, argv, env);
    } else while (n && *dirs) {
        ulong d = 0;
        while (dirs[d] && dirs[d] != ':') d++;
        if (d + 1 + n < sizeof path) {
            memcpy(path, dirs, d), path[d] = '/', memcpy(path + d + 1, name, n + 1);
            r = sys(execve, path, argv, env);
            if (r != -ENOENT && r != -ENOTDIR) error = r;
        }
        dirs += d + (dirs[d] == ':');
    }
    complain("cannot run", name, error);
    sys(exit_group, error == -ENOENT || error == -ENOTDIR ? 127 : 126, 0, 0);
}

/*
 * A process forked ahead that waits for its command: what is forked and piped before a snapshot is taken need not be
 * emulated by each clone before its first command runs. It is made while no command runs, for it would hold their
 * pipes open.
 */
static struct { int pid, request, in, out, err; } spare;

static void forget_spare(void)
{
    close_fd(&spare.request), close_fd(&spare.in), close_fd(&spare.out), close_fd(&spare.err);
    spare.pid = 0;
}

static int read_all(int fd, u8 *p, ulong n)
{
    while (n) {
        long r = sys(read, fd, p, n);
        if (r == -EINTR) continue;
        if (r <= 0) return 0;
        p += r, n -= (ulong)r;
    }
    return 1;
}

/* Payload: u32 number of arguments, u32 number of variables, then cwd, arguments and NAME=value, each with NUL. */
static const char *parse(u8 *p, u32 n, const char **cwd, char ***argv, char ***env)
{
    static char *strings[MAX_STRINGS + 2];
    u32 argc, envc, at = 8, count = 0;
    if (n < 9 || p[n - 1]) return "malformed SPAWN frame";
    argc = get32(p), envc = get32(p + 4);
    if (!argc || argc + (ulong)envc > MAX_STRINGS / 2) return "too many arguments";
    *cwd = (char *)p + at;
    at += (u32)length(*cwd) + 1;
    for (; count < argc + envc && at < n; count++) {
        /* one NULL after the arguments: the variables begin one place later */
        strings[count + (count >= argc)] = (char *)p + at;
        at += (u32)length((char *)p + at) + 1;
    }
    if (count != argc + envc) return "malformed SPAWN frame";
    strings[argc] = 0;
    *argv = strings, *env = strings + argc + 1;
    for (char **mine = environment; *mine && count < MAX_STRINGS; mine++) { /* ours, unless the host set its own */
        ulong name = 0;
        while ((*mine)[name] && (*mine)[name] != '=') name++;
        u32 i = 0;
        while (i < envc && !(starts((*env)[i], *mine, name) && (*env)[i][name] == '=')) i++;
        if (i == envc) (*env)[count++ - argc] = *mine;
    }
    (*env)[count - argc] = 0;
    return 0;
}

/* The life of a spare process: wait for a SPAWN's payload, become its command. */
static void child(int request, int in, int out, int err)
{
    long none[2] = { 0, 0 }, r;
    u8 size[4];
    const char *cwd;
    char **argv, **env;
    sys(setsid, 0, 0, 0);
    sys(dup3, in, 0, 0), sys(dup3, out, 1, 0), sys(dup3, err, 2, 0);
    if (!read_all(request, size, 4) || !read_all(request, incoming, get32(size))) sys(exit_group, 1, 0, 0);
    parse(incoming, get32(size), &cwd, &argv, &env);
    sys4(rt_sigprocmask, SIG_SETMASK, none, 0, 8);
    if (*cwd && (r = sys(chdir, cwd, 0, 0)) < 0) {
        complain("cannot change to", cwd, r);
        sys(exit_group, 126, 0, 0);
    }
    execute(argv, env);
}

static const char *fork_spare(void)
{
    int pipes[4][2]; /* request, in, out, err */
    for (int i = 0; i < 4; i++)
        if (sys(pipe2, pipes[i], O_CLOEXEC, 0) < 0) {
            while (i--) sys(close, pipes[i][0], 0, 0), sys(close, pipes[i][1], 0, 0);
            return "no pipe";
        }
    sys(fcntl, pipes[2][1], F_SETPIPE_SZ, 1 << 18); /* fewer switches on big output; refused quotas do not matter */
    long pid = syscall6(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0);
    int theirs[4] = { pipes[0][0], pipes[1][0], pipes[2][1], pipes[3][1] };
    int ours[4] = { pipes[0][1], pipes[1][1], pipes[2][0], pipes[3][0] };
    if (pid == 0) {
        for (int i = 0; i < 4; i++) sys(close, ours[i], 0, 0); /* or it would not notice our end */
        child(theirs[0], theirs[1], theirs[2], theirs[3]);
    }
    for (int i = 0; i < 4; i++) sys(close, theirs[i], 0, 0);
    spare.pid = (int)pid, spare.request = ours[0], spare.in = ours[1], spare.out = ours[2], spare.err = ours[3];
    if (pid < 0) {
        forget_spare();
        return "cannot fork: out of memory or processes";
    }
    for (int i = 0; i < 4; i++) sys(fcntl, ours[i], F_SETFL, O_NONBLOCK);
    return 0;
}

/* Whether the spare process has taken its command; the pipe may hold less than the longest one. */
static int request(u8 *p, u32 n)
{
    u8 size[4];
    put32(size, n);
    for (u32 at = 0, all = n + 4; at < all;) {
        long w = at < 4 ? sys(write, spare.request, size + at, 4 - at) : sys(write, spare.request, p + at - 4, all - at);
        if (w == -EAGAIN) {
            struct pollfd room = { spare.request, POLLOUT, 0 };
            struct timespec patience = { 1, 0 };
            if (sys4(ppoll, &room, 1, &patience, 0) == 0) return 0; /* somebody stops it again and again */
        } else if (w != -EINTR) {
            if (w <= 0) return 0;
            at += (u32)w;
        }
    }
    return 1;
}

static const char *start(struct command *c, u8 *p, u32 n)
{
    const char *cwd, *why = parse(p, n, &cwd, &(char **){ 0 }, &(char **){ 0 });
    for (int tries = 0; !why && tries < 2; tries++) {
        if (!spare.pid && (why = fork_spare())) break;
        sys(kill, spare.pid, SIGCONT, 0); /* somebody may have stopped it: it would never read */
        if (request(p, n)) {
            c->pid = spare.pid, c->in = spare.in, c->out = spare.out, c->err = spare.err;
            c->in_ends = 0, c->in_start = c->in_len = 0;
            close_fd(&spare.request);
            spare.pid = 0;
            return 0;
        }
        sys(kill, spare.pid, SIGKILL, 0); /* it was killed, or stopped, by somebody */
        forget_spare();
    }
    return why ? why : "the process that was to become the command was killed";
}

static void spawn(u32 id, u8 *p, u32 n)
{
    const char *why = "too many commands at once";
    for (int i = 0; i < MAX_COMMANDS; i++) if (!commands[i].pid) {
        commands[i].id = id;
        why = start(&commands[i], p, n);
        break;
    }
    if (why) {
        memcpy(outgoing + 12, why, length(why));
        send_frame(REFUSED, id, (u32)length(why));
    }
}

/* Hand on up to `most` bytes of what the command wrote; 0 at its end, negative when there is nothing now. */
static long relay(struct command *c, int *fd, u32 type, ulong most)
{
    long n = sys(read, *fd, outgoing + 12, most < PAYLOAD ? most : PAYLOAD);
    if (n > 0) send_frame(type, c->id, (u32)n);
    else if (n != -EAGAIN && n != -EINTR) close_fd(fd);
    return n;
}

/* What is in the pipe when the command ends belongs to it; a child that keeps the pipe open is not waited for. */
static void drain(struct command *c, int *fd, u32 type)
{
    int left = 0;
    if (*fd < 0 || sys(ioctl, *fd, FIONREAD, &left) < 0) left = 0;
    while (left > 0 && *fd >= 0) {
        long n = relay(c, fd, type, (ulong)left);
        if (n <= 0) break;
        left -= (int)n;
    }
    close_fd(fd);
}

static void reap(void)
{
    int status;
    long pid;
    while ((pid = sys4(wait4, -1, &status, WNOHANG, 0)) > 0) {
        if (pid == spare.pid) forget_spare();
        for (int i = 0; i < MAX_COMMANDS; i++) if (commands[i].pid == pid) {
            struct command *c = &commands[i];
            close_fd(&c->in), drain(c, &c->out, STDOUT), drain(c, &c->err, STDERR);
            put32(outgoing + 12, (u32)(status >> 8 & 0xff)), put32(outgoing + 16, (u32)(status & 0x7f));
            c->pid = 0;
            send_frame(EXIT, c->id, 8);
        }
    }
}

static void feed(struct command *c)
{
    if (c->in_len) {
        long n = sys(write, c->in, c->input + c->in_start, c->in_len);
        if (n == -EAGAIN || n == -EINTR) return;
        u32 done = n > 0 ? (u32)n : c->in_len; /* nobody reads any more: swallow it, as a closed pipe does */
        c->in_start += done, c->in_len -= done;
        put32(outgoing + 12, done);
        send_frame(STDIN_DONE, c->id, 4);
        if (n <= 0) close_fd(&c->in);
    }
    if (!c->in_len && c->in_ends) close_fd(&c->in);
}

static void take_input(u32 id, u8 *p, u32 n)
{
    struct command *c = find(id);
    if (!c) return; /* it ended while this was under way */
    if (!n) c->in_ends = 1;
    if (c->in_len + n > WINDOW) return; /* the host broke its promise */
    if (c->in_start) {
        for (u32 i = 0; i < c->in_len; i++) c->input[i] = c->input[c->in_start + i];
        c->in_start = 0;
    }
    memcpy(c->input + c->in_len, p, n);
    c->in_len += n;
    if (c->in >= 0) {
        feed(c);
    } else if (n) {
        c->in_len = 0;
        put32(outgoing + 12, n);
        send_frame(STDIN_DONE, id, 4);
    }
}

/* ---- the port ---------------------------------------------------------------------------------------------- */

/* To its group, or to itself where it was forked so recently that it has no group yet. */
static void signal_command(struct command *c, u32 number)
{
    if (sys(kill, -c->pid, number, 0) < 0) sys(kill, c->pid, number, 0);
}

static void hello(u8 *nonce, u32 n)
{
    for (int i = 0; i < MAX_COMMANDS; i++) if (commands[i].pid) { /* the host starts anew: so do we */
        signal_command(&commands[i], SIGKILL);
        close_fd(&commands[i].in), close_fd(&commands[i].out), close_fd(&commands[i].err);
        commands[i].pid = 0;
    }
    memcpy(outgoing + 12, nonce, n), put32(outgoing + 12 + n, PROTOCOL);
    send_frame(HELLO, HELLO_ID, n + 4);
}

/*
 * While the guest is held no other program of its runs: whoever restores a snapshot that was taken meanwhile wakes it
 * before any of them draws a random number or reads the clock. We have the highest priority and look for the next
 * frame without ever sleeping, and on each other CPU a process does likewise until we close its pipe.
 */
static struct { int yes, others; ulong cpus[16]; } held = { 0, -1, { 0 } };

static long take_cpu(u32 cpu)
{
    ulong only[16] = { 0 };
    int priority = HIGHEST;
    only[cpu / 64] = 1ul << cpu % 64;
    sys(sched_setaffinity, 0, sizeof only, only);
    return sys(sched_setscheduler, 0, SCHED_FIFO, &priority);
}

static void release(void)
{
    int none = 0;
    if (!held.yes) return;
    held.yes = 0;
    close_fd(&held.others);
    sys(sched_setscheduler, 0, SCHED_OTHER, &none);
    sys(sched_setaffinity, 0, sizeof held.cpus, held.cpus);
}

static void hold(u32 id)
{
    u32 mine = 0;
    int pipes[2][2]; /* they say that they run; we end them */
    u8 byte = 0;
    long r = held.yes ? 0 : sys(sched_getaffinity, 0, sizeof held.cpus, held.cpus);
    if (r > 0) {
        sys(getcpu, &mine, 0, 0);
        r = take_cpu(mine);
        held.yes = 1;
        if (r >= 0 && (r = sys(pipe2, pipes[0], O_CLOEXEC, 0)) >= 0 && (r = sys(pipe2, pipes[1], O_CLOEXEC | O_NONBLOCK, 0)) >= 0) {
            for (u32 cpu = 0; cpu < 64 * 16; cpu++) {
                if (cpu == mine || !(held.cpus[cpu / 64] >> cpu % 64 & 1)) continue;
                long pid = syscall6(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0);
                if (pid == 0) {
                    sys(close, pipes[1][1], 0, 0);
                    byte = take_cpu(cpu) < 0;
                    write_all(pipes[0][1], &byte, 1);
                    while (sys(read, pipes[1][0], &byte, 1) == -EAGAIN) {}
                    sys(exit_group, 0, 0, 0);
                }
                if (pid < 0) r = pid;
                else if (sys(read, pipes[0][0], &byte, 1) != 1 || byte) r = -EACCES;
            }
            sys(close, pipes[0][0], 0, 0), sys(close, pipes[0][1], 0, 0), sys(close, pipes[1][0], 0, 0);
            held.others = pipes[1][1];
        }
    }
    put32(outgoing + 12, r < 0 ? (u32)-r : 0);
    send_frame(HOLD, id, 4);
}

/* Payload: u64 seconds and u64 nanoseconds since 1970, then random bytes. A clone of a snapshot has the clock and the
 * random numbers of its moment: set the one, and stir the other so that no two clones draw the same. */
static void wake(u32 id, u8 *p, u32 n)
{
    static struct { int bits, size; u8 bytes[256]; } pool;
    struct timespec now;
    memcpy(&now, p, 16);
    pool.size = (int)(n - 16), pool.bits = 8 * pool.size;
    memcpy(pool.bytes, p + 16, n - 16);
    long random = sys(openat, AT_FDCWD, "/dev/urandom", O_RDWR | O_CLOEXEC), r = random;
    if (r >= 0) r = sys(ioctl, random, RNDADDENTROPY, &pool);
    if (r >= 0) r = sys(ioctl, random, RNDRESEEDCRNG, 0);
    sys(close, random, 0, 0);
    put32(outgoing + 12, (u32)-r), put32(outgoing + 16, (u32)-sys(clock_settime, 0, &now, 0));
    release();
    send_frame(WAKE, id, 8);
}

static void handle(u32 type, u32 id, u8 *p, u32 n)
{
    struct command *c;
    switch (type) {
    case HELLO: if (n == 16) hello(p, n); break;
    case SPAWN: spawn(id, p, n); break;
    case PING: send_frame(PING, id, 0); break;
    case WAKE: if (n > 16 && n <= 16 + 256) wake(id, p, n); break;
    case HOLD: if (n) release(); else hold(id); break;
    case STDIN: take_input(id, p, n); break;
    case KILL: if ((c = find(id)) && n == 4) signal_command(c, get32(p)); break;
    }
}

/* Where, from `at` on, the next HELLO of 16 bytes begins in `incoming`, or the last place where one may begin. */
static u32 seek_hello(u32 at)
{
    u8 header[12];
    put32(header, HELLO), put32(header + 4, HELLO_ID), put32(header + 8, 16);
    for (; at < have; at++)
        if (starts((char *)incoming + at, (char *)header, have - at < 12 ? have - at : 12)) break;
    return at;
}

static int sent_by_host(u32 type)
{
    return type == HELLO || type == SPAWN || type == STDIN || type == KILL || type == PING || type == WAKE || type == HOLD;
}

/* Whether there was something. */
static int receive(void)
{
    long n = sys(read, port, incoming + have, sizeof incoming - have);
    if (n <= 0) return n == -EINTR;
    have += (u32)n;
    u32 at = 0;
    for (;;) {
        if (!synced) at = seek_hello(at);
        if (have - at < 12) break;
        u32 type = get32(incoming + at), size = get32(incoming + at + 8);
        synced = sent_by_host(type) && size <= PAYLOAD;
        if (!synced) { at++; continue; } /* we have lost our place: look for the next HELLO */
        if (have - at - 12 < size) break;
        handle(type, get32(incoming + at + 4), incoming + at + 12, size);
        at += 12 + size;
    }
    for (u32 i = at; i < have; i++) incoming[i - at] = incoming[i];
    have -= at;
    return 1;
}

static void serve(void)
{
    static struct pollfd fds[2 + 3 * MAX_COMMANDS];
    ulong child_ended = 1ul << (SIGCHLD - 1), blocked = child_ended | 1ul << (SIGPIPE - 1);
    static u8 info[128];
    sys4(rt_sigprocmask, SIG_BLOCK, &blocked, 0, 8); /* a command that does not read its input must not end us */
    int signals = (int)sys4(signalfd4, -1, &child_ended, 8, O_CLOEXEC | O_NONBLOCK);
    int away = 0; /* the host's end is closed: poll would return at once, so look again after a pause */
    for (;;) {
        u32 count = 2, running = 0;
        struct timespec pause = { 0, held.yes ? 0 : 50000000 }; /* each time anew: the kernel writes what was left of it into it */
        fds[0] = (struct pollfd){ away ? -1 : port, POLLIN, 0 };
        fds[1] = (struct pollfd){ signals, POLLIN, 0 };
        for (int i = 0; i < MAX_COMMANDS; i++) {
            struct command *c = &commands[i];
            if (!c->pid) continue;
            fds[count++] = (struct pollfd){ c->out, POLLIN, 0 };
            fds[count++] = (struct pollfd){ c->err, POLLIN, 0 };
            fds[count++] = (struct pollfd){ c->in_len ? c->in : -1, POLLOUT, 0 };
            running++;
        }
        if (!running && !spare.pid) fork_spare();
        sys4(ppoll, fds, count, away || held.yes ? &pause : 0, 0);
        away = (fds[0].revents & (POLLHUP | POLLERR)) != 0;
        u32 at = 2;
        for (int i = 0; i < MAX_COMMANDS; i++) {
            struct command *c = &commands[i];
            if (!c->pid) continue;
            if (fds[at++].revents) relay(c, &c->out, STDOUT, PAYLOAD);
            if (fds[at++].revents) relay(c, &c->err, STDERR, PAYLOAD);
            if (fds[at++].revents) feed(c);
        }
        if (fds[1].revents) {
            while (sys(read, signals, info, sizeof info) > 0) {}
            reap();
        }
        /* last: it may add and free commands; a closed port may claim to have input and has none */
        if ((fds[0].revents & POLLIN) && receive()) away = 0;
    }
}

void begin(long *stack)
{
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    environment = argv + argc + 1;
    port = argc == 2 ? (int)sys4(openat, AT_FDCWD, argv[1], O_RDWR | O_CLOEXEC, 0) : -1;
    if (port < 0) {
        complain("cannot open", argc == 2 ? argv[1] : "PORT", port);
        sys(exit_group, 1, 0, 0);
    }
    serve();
}
