#include "drivers/boot.h"

#include "drivers/mmio.h"

#define WORD_BITS 32u

void boot_post(uint32_t code)
{
    mmio_write(REGISTER(BOOT, POST_CODE), FIELD(BOOT_POST_CODE_CODE, code));
}

uint32_t boot_reason(void)
{
    return FIELD_OF(mmio_read(REGISTER(BOOT, BOOT_STATUS)), BOOT_BOOT_STATUS_REASON);
}

uint32_t boot_slot(void)
{
    return FIELD_OF(mmio_read(REGISTER(BOOT, BOOT_STATUS)), BOOT_BOOT_STATUS_SLOT);
}

bool boot_is_trial(void)
{
    return FIELD_OF(mmio_read(REGISTER(BOOT, BOOT_STATUS)), BOOT_BOOT_STATUS_TRIAL);
}

uint64_t boot_version(void)
{
    return (uint64_t)mmio_read(REGISTER(BOOT, VERSION_HIGH)) << WORD_BITS | mmio_read(REGISTER(BOOT, VERSION_LOW));
}

uint32_t boot_count(void)
{
    return FIELD_OF(mmio_read(REGISTER(BOOT, BOOTS)), BOOT_BOOTS_COUNT);
}

void boot_publish_build_id(uint32_t build_id)
{
    mmio_write(REGISTER(BOOT, BUILD_ID), build_id);
}

void boot_request_reset(void)
{
    mmio_write(REGISTER(BOOT, RESET_REQUEST), FIELD(BOOT_RESET_REQUEST_REQUEST, 1));
}

uint32_t boot_security_counter(void)
{
    return mmio_read(REGISTER(BOOT, SECURITY_COUNTER));
}

void boot_raise_security_counter(uint32_t value)
{
    mmio_write(REGISTER(BOOT, SECURITY_COUNTER), value);
}

uint32_t boot_hardware_id(void)
{
    return mmio_read(REGISTER(BOOT, HARDWARE_ID));
}

void boot_read_key_hash(uint8_t *hash)
{
    mmio_read_bytes(REGISTER(BOOT, KEY_HASH), hash, NPU_BOOT_KEY_HASH_COUNT * NPU_BOOT_KEY_HASH_STRIDE);
}
