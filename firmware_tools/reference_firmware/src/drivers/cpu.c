#include "drivers/cpu.h"

/* The compiler's -march has no zicsr, because the tool chain has no libgcc for it: it is switched on where it is used. */
#define WITH_CSR(instruction) ".option push\n.option arch, +zicsr\n" instruction "\n.option pop\n"

#define MSTATUS_MIE (1u << 3)
#define MIE_TIMER (1u << CPU_CAUSE_TIMER)
#define MIE_EXTERNAL (1u << CPU_CAUSE_EXTERNAL)

struct cpu_trap cpu_read_trap(void)
{
    struct cpu_trap trap;

    __asm__ volatile(WITH_CSR("csrr %0, mcause") : "=r"(trap.cause));
    __asm__ volatile(WITH_CSR("csrr %0, mepc") : "=r"(trap.pc));
    __asm__ volatile(WITH_CSR("csrr %0, mtval") : "=r"(trap.value));
    return trap;
}

void cpu_enable_sources(void)
{
    __asm__ volatile(WITH_CSR("csrs mie, %0") : : "r"(MIE_TIMER | MIE_EXTERNAL));
}

void cpu_interrupts_on(void)
{
    __asm__ volatile(WITH_CSR("csrs mstatus, %0") : : "r"(MSTATUS_MIE) : "memory");
}

void cpu_interrupts_off(void)
{
    __asm__ volatile(WITH_CSR("csrc mstatus, %0") : : "r"(MSTATUS_MIE) : "memory");
}

void cpu_wait_for_interrupt(void)
{
    __asm__ volatile("wfi" ::: "memory");
}

void cpu_stop(void)
{
    cpu_interrupts_off();
    __asm__ volatile(WITH_CSR("csrw mie, zero"));
    for (;;) {
        cpu_wait_for_interrupt();
    }
}
