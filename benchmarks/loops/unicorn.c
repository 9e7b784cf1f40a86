/* The loop over the Unicorn library: what vmtest/executors/unicorn.py does for each case, by hand. */
#include "cases.h"
#include <unicorn/unicorn.h>

static const int ids[] = {
    UC_X86_REG_RAX, UC_X86_REG_RCX, UC_X86_REG_RDX, UC_X86_REG_RBX, UC_X86_REG_RSP, UC_X86_REG_RBP, UC_X86_REG_RSI,
    UC_X86_REG_RDI, UC_X86_REG_R8, UC_X86_REG_R9, UC_X86_REG_R10, UC_X86_REG_R11, UC_X86_REG_R12, UC_X86_REG_R13,
    UC_X86_REG_R14, UC_X86_REG_R15, UC_X86_REG_EFLAGS, UC_X86_REG_XMM0, UC_X86_REG_XMM1, UC_X86_REG_XMM2,
    UC_X86_REG_XMM3, UC_X86_REG_XMM4, UC_X86_REG_XMM5, UC_X86_REG_XMM6, UC_X86_REG_XMM7, UC_X86_REG_XMM8,
    UC_X86_REG_XMM9, UC_X86_REG_XMM10, UC_X86_REG_XMM11, UC_X86_REG_XMM12, UC_X86_REG_XMM13, UC_X86_REG_XMM14,
    UC_X86_REG_XMM15, UC_X86_REG_MXCSR,
};
enum { NUMBER = sizeof ids / sizeof *ids };

static uc_engine *uc;
static uc_context *fresh;
static uint8_t *code, *data, state[STATE + 8];
static void *places[NUMBER];
static int failed, changed;

static bool on_fault(uc_engine *u, uc_mem_type type, uint64_t address, int size, int64_t value, void *user)
{
    (void)u, (void)type, (void)address, (void)size, (void)value, (void)user;
    failed = 1;
    return false;
}

static void on_interrupt(uc_engine *u, uint32_t number, void *user)
{
    (void)number, (void)user;
    failed = 1;
    uc_emu_stop(u);
}

static int run_case(const struct loop_case *c)
{
    uint64_t end;
    fill(c, code, data);
    uc_context_restore(uc, fresh);
    uc_ctl_remove_cache(uc, CODE, CODE + PAGE);
    uc_ctl_remove_cache(uc, DATA, DATA + WINDOW);
    memcpy(state, c->state, STATE);
    uc_reg_write_batch(uc, (int *)ids, places, NUMBER);
    failed = 0;
    failed |= uc_emu_start(uc, CODE + PAGE - c->length, CODE + PAGE, 0, 0) != UC_ERR_OK;
    uc_reg_read_batch(uc, (int *)ids, places, NUMBER);
    uc_reg_read(uc, UC_X86_REG_RIP, &end);
    changed += written(data);
    return !failed;
}

int main(int argc, char **argv)
{
    uc_hook hook;
    if (argc != 2) return 2;
    read_cases(argv[1]);
    int kind = MAP_SHARED | MAP_ANONYMOUS;
    code = mmap(0, PAGE, PROT_READ | PROT_WRITE, kind, -1, 0);
    data = mmap(0, WINDOW, PROT_READ | PROT_WRITE, kind, -1, 0);
    if (uc_open(UC_ARCH_X86, UC_MODE_64, &uc) || uc_mem_map_ptr(uc, CODE, PAGE, UC_PROT_ALL, code) ||
        uc_mem_map_ptr(uc, DATA, WINDOW, UC_PROT_ALL, data) || uc_context_alloc(uc, &fresh) ||
        uc_context_save(uc, fresh) || uc_hook_add(uc, &hook, UC_HOOK_MEM_INVALID, on_fault, 0, 1, 0) ||
        uc_hook_add(uc, &hook, UC_HOOK_INTR, on_interrupt, 0, 1, 0))
        die("unicorn");
    for (int i = 0; i < NUMBER; i++)
        places[i] = state + (i < GENERAL ? 8 * i : i < NUMBER - 1 ? XMM + 16 * (i - GENERAL) : MXCSR);
    return measure();
}
