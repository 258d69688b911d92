#include "board.h"

static volatile int ticks;

void handle_trap(void)
{
    print_hex("cause", CSR_READ(mcause));
    print_hex("pending", CSR_READ(mip));
    ticks++;
    set_mtimecmp(mtime() + 1000);
    if (ticks == 5)
        CSR_CLEAR(mie, 1 << 7);
}

int main(void)
{
    set_mtimecmp(mtime() + 1000);
    CSR_WRITE(mie, 1 << 7);
    CSR_SET(mstatus, 1 << 3);
    while (ticks < 5)
        asm volatile("wfi");
    print_hex("ticks", ticks);
    return 0;
}
