/* What the boot ROM found, what the core tells of its boot, and the one-time-programmed values. */
#ifndef DRIVERS_BOOT_H
#define DRIVERS_BOOT_H

#include <stdbool.h>
#include <stdint.h>

/* Shows how far the firmware is: one of NPU_POST_*. */
void boot_post(uint32_t code);
/* One of NPU_CORE_RESET_*. */
uint32_t boot_reason(void);
/* NPU_SLOT_NONE for an image loaded from outside. */
uint32_t boot_slot(void);
bool boot_is_trial(void);
/* As the image's header has it; 0 for an image loaded from outside. */
uint64_t boot_version(void);
uint32_t boot_count(void);
void boot_publish_build_id(uint32_t build_id);
void boot_request_reset(void);

uint32_t boot_security_counter(void);
/* Raising is for ever; a lower value changes nothing. */
void boot_raise_security_counter(uint32_t value);
uint32_t boot_hardware_id(void);
/* SHA-256 of the DER SubjectPublicKeyInfo of the key that images are signed with: NPU_SHA256_BYTES bytes. */
void boot_read_key_hash(uint8_t *hash);

#endif
