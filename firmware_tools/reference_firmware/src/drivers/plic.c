/* Offsets as in the RISC-V PLIC specification; context 0 is hart 0 in machine mode. */
#include "drivers/plic.h"

#include "drivers/mmio.h"

#define PLIC_PRIORITY(source) (NPU_PLIC_BASE + 4u * (source))
#define PLIC_ENABLE(source) (NPU_PLIC_BASE + 0x2000u + 4u * ((source) / 32u))
#define PLIC_THRESHOLD (NPU_PLIC_BASE + 0x200000u)
#define PLIC_CLAIM (NPU_PLIC_BASE + 0x200004u)
#define LOWEST_PRIORITY 1u

void plic_enable(uint32_t source)
{
    uint32_t enabled = mmio_read(PLIC_ENABLE(source));

    mmio_write(PLIC_PRIORITY(source), LOWEST_PRIORITY);
    mmio_write(PLIC_ENABLE(source), enabled | 1u << source % 32u);
    mmio_write(PLIC_THRESHOLD, 0);
}

uint32_t plic_claim(void)
{
    return mmio_read(PLIC_CLAIM);
}

void plic_complete(uint32_t source)
{
    mmio_write(PLIC_CLAIM, source);
}
