/* Resets the core unless it is fed in time. The boot ROM starts it; nobody can stop it. */
#ifndef DRIVERS_WATCHDOG_H
#define DRIVERS_WATCHDOG_H

#include <stdint.h>

void watchdog_set_period(uint32_t milliseconds);
/* Does nothing while it does not run: feeding would start it under a debugger's feet. */
void watchdog_feed(void);

#endif
