// A timer handler that lets software interrupts in, and the order of simultaneous ones.
#include "board.h"

static volatile int depth, deepest, timers, softwares;
static char order[64];
static volatile int noted;

void handle_trap(void)
{
    uint32_t cause = CSR_READ(mcause), epc = CSR_READ(mepc), status = CSR_READ(mstatus);
    if (++depth > deepest)
        deepest = depth;
    order[noted++] = cause == 0x80000007 ? 't' : cause == 0x80000003 ? 's' : '?';
    if (cause == 0x80000007) {
        timers++;
        set_mtimecmp(timers < 5 ? mtime() + 2000 : ~0ull);
        CSR_SET(mstatus, 1 << 3);
        REG32(CLINT_MSIP) = 1;
        for (volatile int i = 0; i < 100; i++) {
        }
        CSR_CLEAR(mstatus, 1 << 3);
    } else {
        softwares++;
        REG32(CLINT_MSIP) = 0;
        (void)REG32(CLINT_MSIP);
    }
    order[noted++] = ')';
    depth--;
    CSR_WRITE(mepc, epc);
    CSR_WRITE(mstatus, status);
}

int main(void)
{
    set_mtimecmp(0);
    REG32(CLINT_MSIP) = 1;
    CSR_WRITE(mie, 0x88);
    print_hex("mip", CSR_READ(mip) & 0x888);
    while (timers < 5) {
        asm volatile("wfi");
        CSR_SET(mstatus, 1 << 3);
        CSR_CLEAR(mstatus, 1 << 3);
    }
    print(order);
    print_hex("\ndeepest", deepest);
    print_hex("timers", timers);
    print_hex("softwares", softwares);
    return 0;
}
