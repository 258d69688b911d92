/* Where the hart goes on interrupts and faults. */
#ifndef TRAP_H
#define TRAP_H

#include <stdint.h>

#define TRAP_REGISTERS 32u

/* x0 to x31 as they were, in the order that start.S saves them. */
struct trap_frame {
    uint32_t x[TRAP_REGISTERS];
};

/* Called by start.S. Returns from interrupts only: nothing here mends a fault. */
void trap_handle(const struct trap_frame *frame);

#endif
