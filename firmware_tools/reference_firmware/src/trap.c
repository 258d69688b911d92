#include "trap.h"

#include "drivers/boot.h"
#include "drivers/cpu.h"
#include "events.h"
#include "log.h"
#include "print.h"

#define REGISTERS_IN_A_LINE 4u

static void print_registers(const struct trap_frame *frame)
{
    for (unsigned i = 0; i < TRAP_REGISTERS; i++) {
        print("x%02u %08x%s", i, as_unsigned(frame->x[i]), i % REGISTERS_IN_A_LINE == REGISTERS_IN_A_LINE - 1 ? "\n" : "  ");
    }
}

/* Tells what happened and waits for the watchdog; where none runs, a debugger finds everything as it was. */
static _Noreturn void die(const struct trap_frame *frame, const struct cpu_trap *trap)
{
    boot_post(NPU_POST_FIRMWARE_FAULT);
    LOG_ERROR("fault: cause %u at %08x, value %08x, called from %08x", trap->cause, trap->pc, trap->value, frame->x[1]);
    print("\nfault: mcause %08x  mepc %08x  mtval %08x\n", as_unsigned(trap->cause), as_unsigned(trap->pc),
          as_unsigned(trap->value));
    print_registers(frame);
    cpu_stop();
}

void trap_handle(const struct trap_frame *frame)
{
    struct cpu_trap trap = cpu_read_trap();

    if (!(trap.cause & CPU_CAUSE_INTERRUPT)) {
        die(frame, &trap);
    }
    events_handle_interrupt(trap.cause & ~CPU_CAUSE_INTERRUPT);
}
