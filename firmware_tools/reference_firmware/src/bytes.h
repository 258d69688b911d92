/* Bytes in memory: little-endian numbers at any address, and comparison. */
#ifndef BYTES_H
#define BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Part of every freestanding program by the compiler's own rules; memory.c has them. */
void *memcpy(void *restrict destination, const void *restrict source, size_t count);
void *memmove(void *destination, const void *source, size_t count);
void *memset(void *destination, int value, size_t count);
int memcmp(const void *left, const void *right, size_t count);

#define ELEMENTS(array) (sizeof(array) / sizeof *(array))

static inline uint32_t load_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline bool bytes_equal(const void *left, const void *right, size_t count)
{
    return memcmp(left, right, count) == 0;
}

static inline bool bytes_are(const uint8_t *bytes, uint8_t value, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != value) {
            return false;
        }
    }
    return true;
}

static inline uint32_t smaller(uint32_t left, uint32_t right)
{
    return left < right ? left : right;
}

#endif
