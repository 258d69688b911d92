#include "drivers/dma.h"

#include "drivers/mmio.h"

#define WORD_BITS 32u

void dma_start(void *destination, uint64_t bus_address, uint32_t count)
{
    mmio_write(REGISTER(DMA, ADDRESS_LOW), (uint32_t)bus_address);
    mmio_write(REGISTER(DMA, ADDRESS_HIGH), (uint32_t)(bus_address >> WORD_BITS));
    mmio_write(REGISTER(DMA, DESTINATION), (uint32_t)(uintptr_t)destination);
    mmio_write(REGISTER(DMA, LENGTH), count);
    mmio_write(REGISTER(DMA, COMMAND), FIELD(DMA_COMMAND_START, 1));
}

uint32_t dma_state(void)
{
    return FIELD_OF(mmio_read(REGISTER(DMA, STATUS)), DMA_STATUS_STATE);
}

void dma_clear(void)
{
    mmio_write(REGISTER(DMA, STATUS), FIELD(DMA_STATUS_CLEAR, 1));
}
