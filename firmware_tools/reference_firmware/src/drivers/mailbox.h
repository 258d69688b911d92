/* The core's side of the mailbox: a window of bytes, and a bell each way. */
#ifndef DRIVERS_MAILBOX_H
#define DRIVERS_MAILBOX_H

#include <stdbool.h>
#include <stdint.h>

bool mailbox_request_waits(void);
/* The first `count` bytes of the window, whole words of them. */
void mailbox_read(void *bytes, uint32_t count);
/* Puts an answer into the window and hands it to the host. */
void mailbox_answer(uint32_t result, const void *bytes, uint32_t count);

#endif
