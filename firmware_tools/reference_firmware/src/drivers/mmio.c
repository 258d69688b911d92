#include "drivers/mmio.h"

#include "bytes.h"

void mmio_write_bytes(uint32_t address, const void *bytes, uint32_t count)
{
    const uint8_t *from = bytes;

    for (uint32_t at = 0; at < count; at += sizeof(uint32_t)) {
        mmio_write(address + at, load_u32(from + at));
    }
}

void mmio_read_bytes(uint32_t address, void *bytes, uint32_t count)
{
    uint8_t *to = bytes;

    for (uint32_t at = 0; at < count; at += sizeof(uint32_t)) {
        uint32_t word = mmio_read(address + at);
        memcpy(to + at, &word, sizeof word);
    }
}
