/* Offsets as in SiFive's CLINT, which the RISC-V ACLINT specification kept. The firmware runs on hart 0 alone. */
#include "drivers/clint.h"

#include "drivers/mmio.h"

#define CLINT_COMPARE_LOW (NPU_CLINT_BASE + 0x4000u)
#define CLINT_COMPARE_HIGH (CLINT_COMPARE_LOW + 4u)
#define CLINT_TIME_LOW (NPU_CLINT_BASE + 0xbff8u)
#define CLINT_TIME_HIGH (CLINT_TIME_LOW + 4u)
#define NEVER 0xffffffffu
#define WORD_BITS 32u

uint64_t clint_now(void)
{
    uint32_t high = mmio_read(CLINT_TIME_HIGH);

    for (;;) {
        uint32_t low = mmio_read(CLINT_TIME_LOW);
        uint32_t again = mmio_read(CLINT_TIME_HIGH);
        if (again == high) {
            return (uint64_t)high << WORD_BITS | low;
        }
        high = again;
    }
}

void clint_alarm_at(uint64_t tick)
{
    /* In this order no half-written value lies in the past. */
    mmio_write(CLINT_COMPARE_HIGH, NEVER);
    mmio_write(CLINT_COMPARE_LOW, (uint32_t)tick);
    mmio_write(CLINT_COMPARE_HIGH, (uint32_t)(tick >> WORD_BITS));
}
