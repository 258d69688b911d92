// Echoes what arrives, by interrupt, until a full stop.
#include "board.h"

static volatile int done;

void handle_trap(void)
{
    uint32_t source = REG32(PLIC + 0x200004);
    if (source != 10)
        power_off(3);
    while (REG8(UART + 5) & 1) {
        char c = REG8(UART);
        put(c);
        if (c == '.')
            done = 1;
    }
    REG32(PLIC + 0x200004) = source;
}

int main(void)
{
    REG8(UART + 2) = 1;
    REG8(UART + 1) = 1;
    REG32(PLIC + 4 * 10) = 1;
    REG32(PLIC + 0x2000) = 1 << 10;
    REG32(PLIC + 0x200000) = 0;
    CSR_WRITE(mie, 1 << 11);
    CSR_SET(mstatus, 1 << 3);
    print("ready\n");
    while (!done)
        asm volatile("wfi");
    print("\nbye\n");
    return 0;
}
