// mtime and mtimecmp by halves: carries, writes of mtime, a timer that is moved away before it comes.
#include "board.h"

static volatile int timers;

void handle_trap(void)
{
    timers++;
    set_mtimecmp(~0ull);
}

int main(void)
{
    REG32(CLINT_MTIMECMP + 4) = 0xffffffff;
    REG32(CLINT_MTIME) = 0xffff0000;
    REG32(CLINT_MTIME + 4) = 0x12;
    while (REG32(CLINT_MTIME + 4) == 0x12) {
    }
    print_hex("carried", (uint32_t)(mtime() >> 32));
    print_hex("time csr", CSR_READ(timeh));
    REG32(CLINT_MTIME) = 5;
    print_hex("high kept", REG32(CLINT_MTIME + 4));
    REG32(CLINT_MTIME + 4) = 0;
    print_hex("set back", mtime() < 10000000);
    set_mtimecmp(0x100000000ull + mtime());
    CSR_WRITE(mie, 1 << 7);
    CSR_SET(mstatus, 1 << 3);
    print_hex("mip", CSR_READ(mip) & 0x80);
    REG32(CLINT_MTIMECMP) = 0;
    REG32(CLINT_MTIMECMP + 4) = 0;
    for (volatile int i = 0; i < 1000; i++) {
    }
    print_hex("timers", timers);
    set_mtimecmp(mtime() + 1000);
    REG32(CLINT_MTIMECMP + 4) = 0xffffffff;
    uint64_t end = mtime() + 5000;
    while (mtime() < end) {
    }
    print_hex("timers", timers);
    REG32(CLINT_MTIME + 4) = 0xffffffff; // close to the end of time, and over it
    REG32(CLINT_MTIME) = 0xffffff00;
    while (REG32(CLINT_MTIME + 4) == 0xffffffff) {
    }
    print_hex("began anew", (uint32_t)(mtime() >> 32));
    return 0;
}
