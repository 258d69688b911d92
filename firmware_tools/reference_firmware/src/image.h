/* Taking a firmware image apart. Nothing in it is believed: every size is compared with what is left before it is used,
 * and no byte of an accepted image goes without a meaning.
 *
 * The layout is MCUboot's (driver_shim/protocol/image_layout.py); what is accepted here, the boot ROM accepts too.
 * All results are NPU_MAILBOX_RESULT_*.
 */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "npu_protocol.h"
#include "npu_registers.h"

/* Header and payload are hashed in chunks of this size: a slot is never large enough for the next one. */
#define IMAGE_CHUNK_BYTES NPU_MIN_CHUNK_BYTES
#define IMAGE_TLV_BYTES_MAX (2u * NPU_MAX_AREA_BYTES)

/* The pointers point into the TLV areas that image_read_tlvs was given. */
struct image {
    struct npu_image_header header;
    /* Offsets in the image, each at most the room that image_read_header was given. */
    uint32_t payload_end;
    uint32_t signed_end;
    uint32_t total_bytes;
    uint32_t padding;

    uint32_t digest_kind;
    uint32_t digest_bytes;
    const uint8_t *digest;
    bool pure;
    const uint8_t *signatures;
    uint32_t signatures_bytes;

    uint32_t security_counter;
    const uint8_t *hardware_ids;
    uint32_t hardware_id_count;
    const uint8_t *chunk_hashes;

    /* Where in the image the reader gave up. */
    uint32_t defect_offset;
};

/* A key and what it signed. */
struct image_signature {
    /* DER SubjectPublicKeyInfo; null when the image holds only the key's hash. */
    const uint8_t *key_info;
    const uint8_t *public_key;
    const uint8_t *signature;
};

#define IMAGE_KEY_INFO_BYTES (NPU_SPKI_PREFIX_BYTES + NPU_PUBLIC_KEY_BYTES)

/* Reads the header. `room` is how long the image may be, TLVs included. */
uint32_t image_read_header(const uint8_t *bytes, uint32_t room, struct image *image);

/* Reads the TLV areas, which begin at image->payload_end. They end within `count` bytes; what follows them is not
 * looked at. */
uint32_t image_read_tlvs(const uint8_t *bytes, uint32_t count, struct image *image);

/* Whether the padding between header and payload is all zeros or all ones, as far as it lies in this piece.
 * To be called for all of the image, from its beginning to its end. */
bool image_padding_is_plain(struct image *image, uint32_t offset, const uint8_t *piece, uint32_t count);

/* Takes the next signature out of *entries, `*count` bytes of them, which image_read_tlvs has checked.
 * False at the end. */
bool image_next_signature(const uint8_t **entries, uint32_t *count, struct image_signature *signature);

/* Whether `chunk`, which begins at `offset`, has the hash that the image states. Only for images with chunk hashes. */
bool image_chunk_is_right(const struct image *image, uint32_t offset, const uint8_t *chunk);

/* Whether all chunks of an image that lies in memory whole have; true for images without chunk hashes. */
bool image_chunks_are_right(const struct image *image, const uint8_t *bytes);

/* Bytes of the chunk that begins at `offset`. */
uint32_t image_chunk_bytes(const struct image *image, uint32_t offset);

/* As npu_mailbox answers give it: the bytes of the header's version in their order. */
uint64_t image_version(const struct image *image);

#endif
