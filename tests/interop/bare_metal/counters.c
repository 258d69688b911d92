#include "board.h"

int main(void)
{
    uint32_t cycle = CSR_READ(mcycle), retired = CSR_READ(minstret), user = CSR_READ(cycle);
    for (volatile int i = 0; i < 100; i++) {
    }
    print(CSR_READ(mcycle) > cycle ? "mcycle runs\n" : "mcycle stands\n");
    print(CSR_READ(cycle) > user ? "cycle runs\n" : "cycle stands\n");
    print(CSR_READ(minstret) - retired >= 300 ? "minstret counts\n" : "minstret stands\n");
    CSR_WRITE(mscratch, 0x12345678);
    print_hex("mscratch", CSR_READ(mscratch));
    CSR_WRITE(mepc, 0x80000124);
    print_hex("mepc", CSR_READ(mepc));
    CSR_WRITE(mie, 0xffffffff);
    print_hex("mie", CSR_READ(mie) & 0x888);
    return 0;
}
