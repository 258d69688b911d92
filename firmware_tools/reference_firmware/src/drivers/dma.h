/* Copies from host memory, one at a time. */
#ifndef DRIVERS_DMA_H
#define DRIVERS_DMA_H

#include <stdint.h>

/* `count` is at most 65536. Its end is an interrupt and a state other than busy. */
void dma_start(void *destination, uint64_t bus_address, uint32_t count);
/* One of NPU_DMA_STATUS_*. */
uint32_t dma_state(void);
/* Takes note of done or fault: the state is idle again. */
void dma_clear(void);

#endif
