/* Whether an image is one that this device may boot: whole, signed with the device's key, made for this hardware, and
 * not older than what was confirmed before. All results are NPU_MAILBOX_RESULT_*. */
#ifndef AUTHENTICITY_H
#define AUTHENTICITY_H

#include <stdbool.h>
#include <stdint.h>

#include "image.h"

/* Begins the hash that the image's kind asks for; then crypto_hash over its first signed_end bytes. */
void authenticity_start_hash(const struct image *image);
/* Ends that hash, and compares it with what the image states. */
uint32_t authenticity_check_hash(const struct image *image);
/* Checks all signatures. `message` is the image's first signed_end bytes; only images with pure signatures need it. */
uint32_t authenticity_check_signatures(const struct image *image, const uint8_t *message);
/* All of the above for an image that lies in memory whole. */
uint32_t authenticity_check_whole(struct image *image, const uint8_t *bytes);
/* Hardware and security counter. To be believed only of an image whose signatures are good. */
uint32_t authenticity_check_admission(const struct image *image, bool without_hardware_id);

#endif
