/* The boot state: which slot the boot ROM starts. Two copies in flash, of which one is always whole. */
#ifndef BOOT_STATE_H
#define BOOT_STATE_H

#include <stdbool.h>
#include <stdint.h>

/* Slots are NPU_SLOT_*. */
struct boot_state {
    uint32_t sequence;
    uint8_t confirmed;
    uint8_t trial;
    uint8_t trial_boots;
    uint8_t failed;
    /* NPU_PROVEN_SLOT_*: the slots whose image was confirmed since it was written. */
    uint8_t proven;
};

/* The newest whole copy; all zeros when there is none. */
struct boot_state boot_state_read(void);
/* Writes the other copy, with the sequence number that comes next, and reads it back. */
bool boot_state_write(const struct boot_state *state);
/* Whether the image in a slot was confirmed since it was written. */
bool boot_state_is_proven(const struct boot_state *state, uint32_t slot);

/* These change the state that is in flash, and do nothing where it is as it should be. */

/* No mark leads to a slot that is about to be erased, and what runs, unless it is from outside, is the confirmed one. */
bool boot_state_forget_slot(uint32_t slot, uint32_t running_slot);
bool boot_state_begin_trial(uint32_t slot);
/* Ends a trial that is due; what is confirmed stays so. */
bool boot_state_withdraw_trial(void);
/* Ends a trial, if one is due or going on. The slot is proven from now on. */
bool boot_state_confirm(uint32_t slot);

#endif
