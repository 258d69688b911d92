/* The hart itself: its control and status registers, interrupts, sleep. */
#ifndef DRIVERS_CPU_H
#define DRIVERS_CPU_H

#include <stdint.h>

/* Bit 31 of mcause (RISC-V privileged specification, 3.1.15). */
#define CPU_CAUSE_INTERRUPT 0x80000000u
#define CPU_CAUSE_TIMER 7u
#define CPU_CAUSE_EXTERNAL 11u

struct cpu_trap {
    uint32_t cause;
    uint32_t pc;
    uint32_t value;
};

struct cpu_trap cpu_read_trap(void);

/* Lets timer and external interrupts through to the hart. */
void cpu_enable_sources(void);
void cpu_interrupts_on(void);
void cpu_interrupts_off(void);

/* Sleeps until an enabled interrupt is pending, taken or not: interrupts may be off. */
void cpu_wait_for_interrupt(void);

/* Never returns; only a reset ends it. */
_Noreturn void cpu_stop(void);

#endif
