/* What lies in the two slots of the flash. */
#ifndef SLOTS_H
#define SLOTS_H

#include <stdbool.h>
#include <stdint.h>

#include "npu_protocol.h"
#include "npu_registers.h"

struct slot_report {
    /* Why it cannot be booted: NPU_MAILBOX_RESULT_OK when it can. */
    uint32_t result;
    /* All that follows is zero when there is no image, or none that can be taken apart. */
    uint32_t image_bytes;
    uint32_t security_counter;
    uint64_t version;
    /* The image's own hash; of SHA-512 the first half. */
    uint8_t hash[NPU_SHA256_BYTES];
};

/* What people call a slot; '-' for none. */
static inline uint32_t slot_letter(uint32_t slot)
{
    return slot == NPU_SLOT_NONE ? '-' : 'A' + slot - NPU_SLOT_A;
}

bool slots_is_slot(uint32_t slot);
uint32_t slots_offset(uint32_t slot);
uint32_t slots_other(uint32_t slot);

/* Verifies the image in a slot, fully; remembers what came out until slots_forget. Takes the hash engine. */
const struct slot_report *slots_examine(uint32_t slot);
/* Whether slots_examine would only have to remember. */
bool slots_is_known(uint32_t slot);
/* To be called before a slot is written to, and after. */
void slots_forget(uint32_t slot);

#endif
