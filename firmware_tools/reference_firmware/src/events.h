/* What the interrupts have to say to the main loop. */
#ifndef EVENTS_H
#define EVENTS_H

#include <stdint.h>

#define EVENT_TIMER (1u << 0)
#define EVENT_CONSOLE (1u << 1)
#define EVENT_MAILBOX (1u << 2)
#define EVENT_DMA (1u << 3)

/* A timer event comes each period. */
void events_start(uint64_t period_ticks);
/* What has happened since the last call. A device that is named here stays silent until events_served. */
uint32_t events_take(void);
void events_served(uint32_t events);
/* Sleeps unless something has happened. */
void events_wait(void);
/* Called by the trap handler. */
void events_handle_interrupt(uint32_t cause);

#endif
