/* The loop over /dev/kvm: what vmtest/executors/kvm.py does for each case, by hand. Its set-up is the same. */
#include "cases.h"
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

enum { PML4 = PAGE, LOW = 2 * PAGE, LOW_PD = 3 * PAGE, CODE_PT = 4 * PAGE, DATA_PT = 5 * PAGE, HIGH = 6 * PAGE,
       HIGH_PD = 7 * PAGE, HIGH_PT = 8 * PAGE, GDT = 9 * PAGE, IDT = 10 * PAGE, STUBS = 11 * PAGE, STACK = 12 * PAGE,
       CODE_AT = 16 * PAGE, DATA_AT = 17 * PAGE, SIZE = 32 * PAGE, STUB = 8, TSS = 0x100 };
#define SYSTEM 0xFFFFFFFF80000000ul

static int vcpu;
static uint8_t *memory;
static struct kvm_run *run;
static struct kvm_sregs sregs;
static struct kvm_xsave vectors;
static int changed;

static void entry(int table, unsigned long index, unsigned long value)
{
    *(uint64_t *)(memory + table + 8 * index) = value | 3;
}

/* As base.uses_vectors: whether it may touch vector or x87 registers. */
static int uses_vectors(const uint8_t *p, size_t n)
{
    while (n--) {
        uint8_t b = *p++;
        if (b == 0x0F || b == 0x62 || b == 0x9B || b == 0xC4 || b == 0xC5 || (b >= 0xD8 && b <= 0xDF)) return 1;
    }
    return 0;
}

static int touches_vectors(const struct loop_case *c)
{
    const uint8_t *p = c->patches;
    int found = uses_vectors(c->code, c->length);
    for (int i = 0; i < c->number; i++) {
        uint16_t length;
        memcpy(&length, p + 2, 2);
        found |= uses_vectors(p + 4, length);
        p += 4 + length;
    }
    return found;
}

static int run_case(const struct loop_case *c)
{
    const uint64_t *r = (const uint64_t *)c->state;
    int with = touches_vectors(c);
    uint8_t state[STATE];
    fill(c, memory + CODE_AT, memory + DATA_AT);
    if (with) {
        memset(&vectors, 0, sizeof vectors);
        uint8_t *area = (uint8_t *)&vectors;
        *(uint16_t *)area = 0x37F, *(uint64_t *)(area + 512) = 3;
        memcpy(area + 24, c->state + MXCSR, 4), memcpy(area + 160, c->state + XMM, 256);
        if (ioctl(vcpu, KVM_SET_XSAVE, &vectors)) die("KVM_SET_XSAVE");
    }
    run->s.regs.regs = (struct kvm_regs){ .rax = r[0], .rcx = r[1], .rdx = r[2], .rbx = r[3], .rsp = r[4], .rbp = r[5],
        .rsi = r[6], .rdi = r[7], .r8 = r[8], .r9 = r[9], .r10 = r[10], .r11 = r[11], .r12 = r[12], .r13 = r[13],
        .r14 = r[14], .r15 = r[15], .rip = CODE + PAGE - c->length, .rflags = r[16] };
    run->s.regs.sregs = sregs;
    run->kvm_valid_regs = run->kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
    if (ioctl(vcpu, KVM_RUN, 0) || run->exit_reason != KVM_EXIT_HLT) return 0;
    memcpy(state, &run->s.regs.regs, sizeof run->s.regs.regs);
    if (with) {
        if (ioctl(vcpu, KVM_GET_XSAVE, &vectors)) die("KVM_GET_XSAVE");
        memcpy(state + XMM, (uint8_t *)&vectors + 160, 256);
    }
    changed += written(memory + DATA_AT);
    const uint64_t *frame = (const uint64_t *)(memory + STACK + PAGE - 40);
    return run->s.regs.regs.rip == SYSTEM + STUBS + STUB * 14 + 1 && frame[0] == CODE + PAGE
        && run->s.regs.sregs.cr2 == CODE + PAGE;
}

static void set_up_memory(void)
{
    entry(PML4, 0, LOW), entry(LOW, 0, LOW_PD);
    entry(LOW_PD, CODE >> 21, CODE_PT), entry(CODE_PT, 0, CODE_AT);
    entry(LOW_PD, DATA >> 21, DATA_PT), entry(DATA_PT, 0, DATA_AT), entry(DATA_PT, 1, DATA_AT + PAGE);
    entry(PML4, 511, HIGH), entry(HIGH, 510, HIGH_PD), entry(HIGH_PD, 0, HIGH_PT);
    for (int page = GDT; page <= STACK; page += PAGE) entry(HIGH_PT, (unsigned long)page / PAGE, (unsigned long)page);
    uint64_t tss = SYSTEM + GDT + TSS, *gdt = (uint64_t *)(memory + GDT);
    gdt[1] = 0x00AF9B000000FFFF, gdt[2] = 0x00CF93000000FFFF;
    gdt[3] = 0x67 | (tss & 0xFFFFFF) << 16 | 0x8Bul << 40 | (tss >> 24 & 0xFF) << 56, gdt[4] = tss >> 32;
    uint64_t stack = SYSTEM + STACK + PAGE;
    memcpy(memory + GDT + TSS + 36, &stack, 8);
    for (unsigned long vector = 0; vector < 256; vector++) {
        uint64_t stub = SYSTEM + STUBS + STUB * vector, *gate = (uint64_t *)(memory + IDT + 16 * vector);
        gate[0] = (stub & 0xFFFF) | 8 << 16 | 1ul << 32 | 0x8Eul << 40 | (stub >> 16 & 0xFFFF) << 48;
        gate[1] = stub >> 32;
        memory[(unsigned long)STUBS + STUB * vector] = 0xF4;
    }
}

static void set_up_registers(void)
{
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs)) die("KVM_GET_SREGS");
    struct kvm_segment flat = { .limit = 0xFFFFFFFF, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
    flat.selector = 8, flat.type = 11, flat.db = 0, flat.l = 1;
    sregs.cs = flat;
    sregs.tr = (struct kvm_segment){ .base = SYSTEM + GDT + TSS, .limit = 0x67, .selector = 24, .type = 11, .present = 1 };
    sregs.gdt = (struct kvm_dtable){ .base = SYSTEM + GDT, .limit = 39 };
    sregs.idt = (struct kvm_dtable){ .base = SYSTEM + IDT, .limit = 4095 };
    sregs.cr0 = 0x80050033, sregs.cr3 = PML4, sregs.cr4 = 0x620, sregs.efer = 0x500;
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    read_cases(argv[1]);
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = ioctl(kvm, KVM_CREATE_VM, 0);
    memory = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = { .memory_size = SIZE, .userspace_addr = (uint64_t)memory };
    if (kvm < 0 || vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) die("/dev/kvm");
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    run = mmap(0, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + 256 * sizeof *cpuid->entries);
    cpuid->nent = 256;
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) || ioctl(vcpu, KVM_SET_CPUID2, cpuid)) die("cpuid");
    set_up_memory();
    set_up_registers();
    return measure();
}
