#include "board.h"

static volatile int taken;

// QEMU takes an interrupt a few instructions after the store that raises it.
static void wait_for(int count)
{
    for (volatile int i = 0; i < 100000 && taken < count; i++) {
    }
}

void handle_trap(void)
{
    print_hex("cause", CSR_READ(mcause));
    REG32(CLINT_MSIP) = 0;
    taken++;
}

int main(void)
{
    CSR_WRITE(mie, 1 << 3);
    REG32(CLINT_MSIP) = 1;
    while (!(CSR_READ(mip) & 1 << 3)) {
    }
    print_hex("mip", CSR_READ(mip) & 1 << 3);
    print_hex("before", taken);
    CSR_SET(mstatus, 1 << 3);
    wait_for(1);
    print_hex("after", taken);
    REG32(CLINT_MSIP) = 1;
    wait_for(2);
    print_hex("again", taken);
    print_hex("msip", REG32(CLINT_MSIP));
    return taken == 2 ? 0 : 1;
}
