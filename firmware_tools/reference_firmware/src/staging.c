#include "staging.h"

#include "bytes.h"
#include "memory_map.h"

#define WORD_BITS 32u

/* One bit a byte, so that pieces may have any length and come in any order. */
static uint32_t present[NPU_STAGING_BYTES / WORD_BITS];

static bool is_present(uint32_t offset)
{
    return present[offset / WORD_BITS] >> offset % WORD_BITS & 1u;
}

bool staging_write(uint32_t offset, const uint8_t *bytes, uint32_t count)
{
    if (count > NPU_STAGING_BYTES || offset > NPU_STAGING_BYTES - count) {
        return false;
    }
    memcpy(staging_memory + offset, bytes, count);
    for (uint32_t at = offset; at < offset + count; at++) {
        present[at / WORD_BITS] |= 1u << at % WORD_BITS;
    }
    return true;
}

uint32_t staging_first_hole(uint32_t count)
{
    uint32_t at = 0;

    while (at < count) {
        if (at % WORD_BITS == 0 && present[at / WORD_BITS] == UINT32_MAX) {
            at += WORD_BITS;
        } else if (is_present(at)) {
            at++;
        } else {
            return at;
        }
    }
    return count;
}

void staging_forget(void)
{
    memset(present, 0, sizeof present);
}
