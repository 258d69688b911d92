#include "drivers/watchdog.h"

#include "drivers/mmio.h"

void watchdog_set_period(uint32_t milliseconds)
{
    mmio_write(REGISTER(WATCHDOG, PERIOD), milliseconds);
}

void watchdog_feed(void)
{
    if (FIELD_OF(mmio_read(REGISTER(WATCHDOG, STATUS)), WATCHDOG_STATUS_RUNNING)) {
        mmio_write(REGISTER(WATCHDOG, FEED), NPU_WATCHDOG_FEED);
    }
}
