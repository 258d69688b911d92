#include "events.h"

#include "bytes.h"
#include "drivers/clint.h"
#include "drivers/cpu.h"
#include "drivers/plic.h"
#include "npu_registers.h"

static const struct {
    uint32_t source;
    uint32_t event;
} SOURCES[] = {
    {NPU_UART_INTERRUPT, EVENT_CONSOLE},
    {NPU_MAILBOX_INTERRUPT, EVENT_MAILBOX},
    {NPU_DMA_INTERRUPT, EVENT_DMA},
};

static volatile uint32_t happened;
static uint64_t timer_period;

void events_start(uint64_t period_ticks)
{
    timer_period = period_ticks;
    clint_alarm_at(clint_now() + period_ticks);
    for (uint32_t i = 0; i < ELEMENTS(SOURCES); i++) {
        plic_enable(SOURCES[i].source);
    }
    cpu_enable_sources();
    cpu_interrupts_on();
}

uint32_t events_take(void)
{
    uint32_t taken;

    cpu_interrupts_off();
    taken = happened;
    happened = 0;
    cpu_interrupts_on();
    return taken;
}

void events_served(uint32_t events)
{
    for (uint32_t i = 0; i < ELEMENTS(SOURCES); i++) {
        if (events & SOURCES[i].event) {
            plic_complete(SOURCES[i].source);
        }
    }
}

void events_wait(void)
{
    /* With interrupts off none can slip in between the look and the sleep; the hart wakes nevertheless. */
    cpu_interrupts_off();
    if (!happened) {
        cpu_wait_for_interrupt();
    }
    cpu_interrupts_on();
}

static void note_source(uint32_t source)
{
    for (uint32_t i = 0; i < ELEMENTS(SOURCES); i++) {
        if (SOURCES[i].source == source) {
            happened |= SOURCES[i].event;
            return;
        }
    }
    plic_complete(source);
}

void events_handle_interrupt(uint32_t cause)
{
    uint32_t source;

    if (cause == CPU_CAUSE_TIMER) {
        clint_alarm_at(clint_now() + timer_period);
        happened |= EVENT_TIMER;
        return;
    }
    /* Claimed sources are completed by events_served: till then their level would only interrupt again. */
    while ((source = plic_claim())) {
        note_source(source);
    }
}
