// Jumps, loads, stores and atomics to where a program has lost its way.
#include "probe.h"

void handle_trap(void)
{
    probe_trap();
}

#define JUMP(name, address) PROBE("jump to " name, "jr %2", 0, address)

int main(void)
{
    JUMP("nothing", 0x0a000000);
    JUMP("zero", 0x0);
    JUMP("behind RAM", 0x88000000);
    JUMP("the end of addresses", 0xfffffffe);
    JUMP("the CLINT", 0x0200bff8);
    JUMP("the PLIC", 0x0c000000);
    JUMP("zeroes", 0x84000000);
    REG32(0x87fffffc) = 0x00010001; // two c.nop: the next instruction is behind RAM
    JUMP("the last word of RAM", 0x87fffffc);

    PROBE("load across the end of RAM", "lw %0, 0(%2)", 1, 0x87fffffe);
    PROBE("load of the last address", "lbu %0, 0(%2)", 1, 0xffffffff);
    PROBE("store to zero", "sb %0, 0(%2)", 1, 0);
    print_hex("misaligned", PROBE("misaligned load", "lw %0, 0(%2)", 1, 0x84000ffd));
    PROBE("misaligned store", "sw %0, 0(%2)", 0x11223344, 0x84000ffe);
    print_hex("read back", REG32(0x84001000));
    return 0;
}
