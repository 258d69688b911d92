/* What the compiler calls on its own: there is no C library underneath.
 *
 * Compiled with -fno-tree-loop-distribute-patterns, or memcpy would be compiled into a call of memcpy.
 */
#include "bytes.h"

static bool are_word_aligned(const void *left, const void *right)
{
    return (((uintptr_t)left | (uintptr_t)right) % sizeof(uint32_t)) == 0;
}

void *memcpy(void *restrict destination, const void *restrict source, size_t count)
{
    uint8_t *to = destination;
    const uint8_t *from = source;

    /* Whole images pass here, so words are worth it. */
    if (are_word_aligned(to, from)) {
        for (; count >= sizeof(uint32_t); count -= sizeof(uint32_t)) {
            *(uint32_t *)(void *)to = *(const uint32_t *)(const void *)from;
            to += sizeof(uint32_t);
            from += sizeof(uint32_t);
        }
    }
    while (count--) {
        *to++ = *from++;
    }
    return destination;
}

void *memmove(void *destination, const void *source, size_t count)
{
    uint8_t *to = destination;
    const uint8_t *from = source;

    if (to <= from) {
        while (count--) {
            *to++ = *from++;
        }
    } else {
        while (count--) {
            to[count] = from[count];
        }
    }
    return destination;
}

void *memset(void *destination, int value, size_t count)
{
    uint8_t *to = destination;

    while (count--) {
        *to++ = (uint8_t)value;
    }
    return destination;
}

int memcmp(const void *left, const void *right, size_t count)
{
    const uint8_t *one = left;
    const uint8_t *other = right;

    for (size_t i = 0; i < count; i++) {
        if (one[i] != other[i]) {
            return one[i] < other[i] ? -1 : 1;
        }
    }
    return 0;
}
