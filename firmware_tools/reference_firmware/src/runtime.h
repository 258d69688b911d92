/* What runs: its slot, whether it is on trial, since when. And what changes that. Results are NPU_MAILBOX_RESULT_*. */
#ifndef RUNTIME_H
#define RUNTIME_H

#include <stdbool.h>
#include <stdint.h>

/* To be called once, before the others. Mends a confirmation that a lost supply cut off half-way. */
void runtime_start(void);
uint64_t runtime_uptime_milliseconds(void);
/* Until it is confirmed. */
bool runtime_is_on_trial(void);
/* Makes the running image the one that is always booted. */
uint32_t runtime_confirm(void);
/* Makes the image in the other slot the one that is always booted, from the next reset on. Until then a confirmation or
 * an update of that slot takes it back. Where that image's trial is due and has not begun, withdraws the trial: what runs
 * stays. */
uint32_t runtime_roll_back(void);

#endif
