/* The platform-level interrupt controller, for hart 0 in machine mode. */
#ifndef DRIVERS_PLIC_H
#define DRIVERS_PLIC_H

#include <stdint.h>

void plic_enable(uint32_t source);
/* The source to serve, 0 for none. It stays silent until plic_complete. */
uint32_t plic_claim(void);
void plic_complete(uint32_t source);

#endif
