/* Runs the firmware's image reader on the host, under the compiler's sanitizers, for tests/fuzz.
 *
 * Standard input is images, each behind its length (32 bits, little-endian). For each, a line tells the result and how
 * many signatures were found. Each image lies in memory of its own size, and so do its TLV areas: a read beyond their
 * ends is noticed.
 */
#include <stdio.h>
#include <stdlib.h>

#include "drivers/crypto.h"
#include "image.h"

void crypto_sha256_start(void)
{
}

void crypto_hash(const void *bytes, uint32_t count)
{
    (void)bytes;
    (void)count;
}

bool crypto_hash_finish(void *digest, uint32_t count)
{
    (void)digest;
    (void)count;
    return false;
}

static uint8_t *copy_of(const uint8_t *bytes, uint32_t count)
{
    uint8_t *copy = malloc(count);

    for (uint32_t i = 0; i < count; i++) {
        copy[i] = bytes[i];
    }
    return copy;
}

static uint32_t count_signatures(const struct image *image)
{
    const uint8_t *entries = image->signatures;
    uint32_t left = image->signatures_bytes;
    struct image_signature signature;
    uint32_t count = 0;

    while (image_next_signature(&entries, &left, &signature)) {
        count++;
    }
    return count;
}

static uint32_t read_image(const uint8_t *bytes, uint32_t count, uint32_t *signatures)
{
    struct image image;
    uint8_t *tlvs;
    uint32_t result;

    if (count < sizeof image.header) {
        return NPU_MAILBOX_RESULT_BAD_FORMAT;
    }
    result = image_read_header(bytes, count, &image);
    if (result != NPU_MAILBOX_RESULT_OK) {
        return result;
    }
    tlvs = copy_of(bytes + image.payload_end, count - image.payload_end);
    result = image_read_tlvs(tlvs, count - image.payload_end, &image);
    if (result == NPU_MAILBOX_RESULT_OK &&
        (image.total_bytes != count || !image_padding_is_plain(&image, 0, bytes, image.payload_end))) {
        result = NPU_MAILBOX_RESULT_BAD_FORMAT;
    }
    if (result == NPU_MAILBOX_RESULT_OK) {
        *signatures = count_signatures(&image);
        if (image.chunk_hashes) {
            image_chunks_are_right(&image, bytes);
        }
    }
    free(tlvs);
    return result;
}

int main(void)
{
    uint32_t count;

    while (fread(&count, sizeof count, 1, stdin) == 1) {
        uint8_t *bytes = malloc(count);
        uint32_t signatures = 0;
        uint32_t result;

        if (fread(bytes, 1, count, stdin) != count) {
            return EXIT_FAILURE;
        }
        result = read_image(bytes, count, &signatures);
        printf("%u %u\n", result, signatures);
        free(bytes);
    }
    return EXIT_SUCCESS;
}
