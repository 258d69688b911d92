// wfi with nothing enabled that is pending, with interrupts masked, with one pending already, in a handler.
#include "board.h"

static volatile int traps, in_handler;

void handle_trap(void)
{
    traps++;
    if (CSR_READ(mcause) == 0x80000007)
        set_mtimecmp(mtime() + 3000);
    if (!in_handler) {
        in_handler = 1;
        asm volatile("wfi"); // masked here, wakes at the next deadline
        print_hex("woke in the handler, mip", CSR_READ(mip) & 0x888);
        set_mtimecmp(~0ull);
    } else {
        set_mtimecmp(~0ull);
    }
}

int main(void)
{
    set_mtimecmp(mtime() + 2000);
    CSR_WRITE(mie, 1 << 7);
    asm volatile("wfi");
    print_hex("masked", traps);
    print_hex("mip", CSR_READ(mip) & 0x888);
    asm volatile("wfi");
    print_hex("already pending", traps);
    set_mtimecmp(mtime() + 100000);
    uint64_t before = mtime();
    asm volatile("wfi");
    print_hex("slept", mtime() - before >= 90000);
    set_mtimecmp(mtime() + 500);
    while (!traps) {
        asm volatile("wfi");
        CSR_SET(mstatus, 1 << 3);
        CSR_CLEAR(mstatus, 1 << 3);
    }
    print_hex("traps", traps);
    return 0;
}
