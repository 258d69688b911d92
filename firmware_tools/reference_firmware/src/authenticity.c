#include "authenticity.h"

#include "bytes.h"
#include "drivers/boot.h"
#include "drivers/crypto.h"

#define OK NPU_MAILBOX_RESULT_OK

void authenticity_start_hash(const struct image *image)
{
    if (image->digest_kind == NPU_TLV_KIND_SHA512) {
        crypto_sha512_start();
    } else {
        crypto_sha256_start();
    }
}

uint32_t authenticity_check_hash(const struct image *image)
{
    uint8_t found[NPU_SHA512_BYTES];

    if (!crypto_hash_finish(found, image->digest_bytes) || !bytes_equal(found, image->digest, image->digest_bytes)) {
        return NPU_MAILBOX_RESULT_BAD_HASH;
    }
    return OK;
}

static bool is_device_key(const struct image_signature *signature)
{
    uint8_t found[NPU_SHA256_BYTES];
    uint8_t fused[NPU_SHA256_BYTES];

    if (!signature->key_info) {
        return false;
    }
    boot_read_key_hash(fused);
    crypto_sha256_start();
    crypto_hash(signature->key_info, IMAGE_KEY_INFO_BYTES);
    return crypto_hash_finish(found, sizeof found) && bytes_equal(found, fused, sizeof found);
}

/* A key that is there only as a hash cannot be used: the fuses hold no key either. */
static bool device_key_signed(const struct image *image)
{
    const uint8_t *entries = image->signatures;
    uint32_t left = image->signatures_bytes;
    struct image_signature signature;
    bool found = false;

    while (image_next_signature(&entries, &left, &signature)) {
        if (!signature.key_info) {
            return false;
        }
        found |= is_device_key(&signature);
    }
    return found;
}

uint32_t authenticity_check_signatures(const struct image *image, const uint8_t *message)
{
    const uint8_t *entries = image->signatures;
    uint32_t left = image->signatures_bytes;
    struct image_signature made;

    if (left == 0) {
        return NPU_MAILBOX_RESULT_BAD_SIGNATURE;
    }
    if (!device_key_signed(image)) {
        return NPU_MAILBOX_RESULT_UNKNOWN_KEY;
    }
    /* Those of other keys count, too: where one is wrong, the image was tampered with. */
    while (image_next_signature(&entries, &left, &made)) {
        bool good = image->pure ? crypto_verify(made.public_key, made.signature, message, image->signed_end)
                                : crypto_verify(made.public_key, made.signature, image->digest, image->digest_bytes);
        if (!good) {
            return NPU_MAILBOX_RESULT_BAD_SIGNATURE;
        }
    }
    return OK;
}

uint32_t authenticity_check_whole(struct image *image, const uint8_t *bytes)
{
    uint32_t result;

    if (!image_padding_is_plain(image, 0, bytes, image->payload_end)) {
        return NPU_MAILBOX_RESULT_BAD_FORMAT;
    }
    authenticity_start_hash(image);
    crypto_hash(bytes, image->signed_end);
    result = authenticity_check_hash(image);
    if (result == OK && !image_chunks_are_right(image, bytes)) {
        result = NPU_MAILBOX_RESULT_BAD_HASH;
    }
    return result == OK ? authenticity_check_signatures(image, bytes) : result;
}

uint32_t authenticity_check_admission(const struct image *image, bool without_hardware_id)
{
    bool ours = false;

    for (uint32_t i = 0; i < image->hardware_id_count; i++) {
        ours |= load_u32(image->hardware_ids + i * sizeof(uint32_t)) == boot_hardware_id();
    }
    if (image->hardware_id_count && !ours) {
        return NPU_MAILBOX_RESULT_WRONG_HARDWARE;
    }
    if (!image->hardware_id_count && !without_hardware_id) {
        return NPU_MAILBOX_RESULT_NO_HARDWARE_ID;
    }
    if (image->security_counter < boot_security_counter()) {
        return NPU_MAILBOX_RESULT_ROLLED_BACK;
    }
    return OK;
}
