// wfi ends when an interrupt is pending and enabled in mie, even with mstatus.MIE clear; no trap is taken then.
#include "board.h"

int main(void)
{
    uint64_t start = mtime();
    set_mtimecmp(start + 20000);
    CSR_WRITE(mie, 1 << 7);
    asm volatile("wfi");
    while (!(CSR_READ(mip) & 1 << 7))
        asm volatile("wfi");
    print(mtime() - start >= 20000 ? "late enough\n" : "too early\n");
    print_hex("mip", CSR_READ(mip));
    set_mtimecmp(~0ull);
    print_hex("mip", CSR_READ(mip));
    return 0;
}
