/* Start-up, and the loop that everything else is called from. */
#include "build_id.h"
#include "console.h"
#include "drivers/boot.h"
#include "drivers/clint.h"
#include "drivers/cpu.h"
#include "drivers/uart.h"
#include "drivers/watchdog.h"
#include "events.h"
#include "log.h"
#include "mailbox_service.h"
#include "runtime.h"
#include "slots.h"
#include "thermal.h"
#include "update.h"
#include "variants.h"

/* How often sensors are read and the watchdog is fed: by the main loop, so that it also tells that one from a dead one. */
#define TICK_MILLISECONDS 500u
/* Long enough for any single step of this firmware, with much to spare. */
#define WATCHDOG_MILLISECONDS 4000u

_Noreturn void main(void);

static void tick(void)
{
    watchdog_feed();
    thermal_tick();
}

static void serve(uint32_t events)
{
    if (events & EVENT_TIMER) {
        tick();
    }
    if (events & EVENT_CONSOLE) {
        console_service();
    }
    if (events & EVENT_MAILBOX && !VARIANT_NO_SERVICE) {
        mailbox_service();
        events_served(EVENT_MAILBOX);
    }
}

static _Noreturn void run(void)
{
    for (;;) {
        uint32_t events = events_take();
        bool has_more;

        serve(events);
        has_more = update_step();
        events_served(events & (EVENT_CONSOLE | EVENT_DMA));
        if (!has_more) {
            events_wait();
        }
    }
}

static void start_drivers(void)
{
    boot_post(NPU_POST_FIRMWARE_DRIVERS);
    watchdog_set_period(WATCHDOG_MILLISECONDS);
    watchdog_feed();
    uart_start();
    log_start();
    LOG_INFO("boot %u, reason %u, slot %c, trial %u", boot_count(), boot_reason(), slot_letter(boot_slot()), boot_is_trial());
    runtime_start();
}

void main(void)
{
    boot_post(NPU_POST_FIRMWARE_START);
    boot_publish_build_id(build_id());
    start_drivers();
    if (VARIANT_HANGS) {
        cpu_stop();
    }
    thermal_tick();
    console_banner();
    events_start((uint64_t)TICK_MILLISECONDS * TICKS_PER_MILLISECOND);
    boot_post(NPU_POST_FIRMWARE_READY);
    if (VARIANT_FAULTS) {
        __asm__ volatile("unimp");
    }
    run();
}
