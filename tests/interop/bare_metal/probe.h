// Runs an instruction that may trap, and prints what came of it. The program's handle_trap calls probe_trap.
#pragma once
#include "board.h"

static volatile uint32_t probe_resume;

static inline void probe_trap(void)
{
    print_hex("  mcause", CSR_READ(mcause));
    print_hex("  mtval", CSR_READ(mtval));
    if (!probe_resume)
        power_off(98);
    CSR_WRITE(mepc, probe_resume);
}

#define PROBE(name, instruction, input, address)                                              \
    ({                                                                                        \
        uint32_t result = (input);                                                            \
        print(name "\n");                                                                     \
        asm volatile("la t0, 1f\n sw t0, %1\n" instruction "\n .align 2\n 1:"                 \
                     : "+r"(result), "=m"(probe_resume)                                       \
                     : "r"(address)                                                           \
                     : "t0", "t1", "ra", "memory");                                           \
        result;                                                                               \
    })
