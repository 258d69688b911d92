// Loads, stores and atomics of every width to devices.
#include "probe.h"

void handle_trap(void)
{
    probe_trap();
}

#define LOAD(what, address) print_hex("  read", PROBE(what " at " #address, what " %0, 0(%2)", 0x99, address))
#define STORE(what, value, address) PROBE(what " at " #address, what " %0, 0(%2)", value, address)

int main(void)
{
    REG8(UART + 7) = 0x5a;
    LOAD("lb", 0x10000007);
    LOAD("lbu", 0x10000007);
    LOAD("lhu", 0x10000006);
    LOAD("lw", 0x10000004);
    STORE("sh", 0x7777, 0x10000007 - 1);
    LOAD("lbu", 0x10000007);

    LOAD("lw", 0x02000000);
    STORE("sw", 0xffffffff, 0x02000000);
    LOAD("lw", 0x02000000);
    print_hex("  mip", CSR_READ(mip) & 0x888);
    STORE("sw", 0, 0x02000000);
    STORE("sw", 0xffffffff, 0x02004004);
    STORE("sw", 0x12345678, 0x02004000);
    LOAD("lw", 0x02004000);
    LOAD("lw", 0x02004004);

    print_hex("  msip", PROBE("amoswap of msip", "amoswap.w %0, %0, (%2)", 1, 0x02000000));
    print_hex("  mip", CSR_READ(mip) & 0x888);
    print_hex("  msip", PROBE("amoand of msip", "amoand.w %0, x0, (%2)", 1, 0x02000000));
    print_hex("  mip", CSR_READ(mip) & 0x888);
    print_hex("  lr", PROBE("lr of msip", "lr.w %0, (%2)", 9, 0x02000000));
    print_hex("  sc", PROBE("sc of msip", "li %0, 1\n lr.w t1, (%2)\n sc.w %0, %0, (%2)", 9, 0x02000000));
    print_hex("  mip", CSR_READ(mip) & 0x888);
    STORE("sw", 0, 0x02000000);
    STORE("sw", 7, 0x0c000028);
    LOAD("lw", 0x0c000028);
    return 0;
}
