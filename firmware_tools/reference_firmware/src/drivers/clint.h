/* The timer of the core-local interruptor. */
#ifndef DRIVERS_CLINT_H
#define DRIVERS_CLINT_H

#include <stdint.h>

#define TICKS_PER_MILLISECOND (NPU_MTIME_HERTZ / 1000u)

/* NPU_MTIME_HERTZ ticks a second. */
uint64_t clint_now(void);
/* Raises the timer interrupt at that time, and takes it back until then. */
void clint_alarm_at(uint64_t tick);

#endif
