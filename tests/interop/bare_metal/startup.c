// What start-up code of tutorials and of riscv-tests does before main: it clears registers that only larger harts need.
#include "board.h"

int main(void)
{
    CSR_WRITE(satp, 0);
    asm volatile("sfence.vma");
    asm volatile("sfence.vma zero, zero");
    CSR_WRITE(medeleg, 0);
    CSR_WRITE(mideleg, 0);
    CSR_WRITE(mcounteren, 0);
    CSR_WRITE(pmpaddr0, 0xffffffff);
    CSR_WRITE(pmpcfg0, 0x1f);
    CSR_WRITE(mcause, 0);
    CSR_WRITE(mscratch, 0x12345678);
    CSR_WRITE(menvcfg, 0);
    print_hex("satp", CSR_READ(satp));
    print_hex("medeleg", CSR_READ(medeleg));
    print_hex("mscratch", CSR_READ(mscratch));
    print_hex("mhartid", CSR_READ(mhartid));
    asm volatile("fence");
    asm volatile(".option arch, +zifencei\n fence.i");
    asm volatile(".word 0x0100000f"); // pause
    print("started\n");
    return 0;
}
