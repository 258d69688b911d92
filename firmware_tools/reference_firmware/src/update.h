/* Writing a new image into the slot that does not run, so that neither a lost supply nor a lying host can do harm.
 *
 * Nothing is erased before the whole image has been verified. No mark in the boot state leads to a slot that is being
 * written; the new image is marked for a trial boot only once it has been read back. update.c tells how.
 */
#ifndef UPDATE_H
#define UPDATE_H

#include <stdbool.h>
#include <stdint.h>

#include "npu_protocol.h"

/* Results are NPU_MAILBOX_RESULT_*; states NPU_UPDATE_STATE_*. */

/* `running_slot` is what runs, NPU_SLOT_NONE for an image from outside; `on_trial` whether it is unconfirmed. */
uint32_t update_begin(const struct npu_update_begin *request, uint32_t running_slot, bool on_trial);
/* Whether an update is going on: it has the hash engine, the staging memory and the other slot. */
bool update_is_active(void);
/* What a host can take back: everything written stays where it is, marked by nothing. */
void update_abort(void);
void update_status(struct npu_update_status *status);
/* One bounded piece of work. False when there is nothing to do until the next interrupt. */
bool update_step(void);

#endif
