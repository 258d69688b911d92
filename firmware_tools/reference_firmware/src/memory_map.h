/* Memory with a fixed place. The linker gives the addresses, from the protocol's declarations (build.py). */
#ifndef MEMORY_MAP_H
#define MEMORY_MAP_H

#include <stdint.h>

#include "npu_registers.h"

/* RAM in which the host, or a copy by DMA, puts an image together. */
extern uint8_t staging_memory[NPU_STAGING_BYTES];
/* RAM that outlives resets of the core. */
extern uint8_t retained_memory[NPU_RETAINED_BYTES];
/* The whole flash, to read. Not const: flash commands change it behind the compiler's back. */
extern uint8_t flash_memory[NPU_FLASH_BYTES];

#endif
