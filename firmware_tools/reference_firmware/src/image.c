#include "image.h"

#include "bytes.h"
#include "drivers/crypto.h"

#define OK NPU_MAILBOX_RESULT_OK
#define BAD_FORMAT NPU_MAILBOX_RESULT_BAD_FORMAT
#define TOO_LARGE NPU_MAILBOX_RESULT_TOO_LARGE

/* The RAM into which the boot ROM loads images. */
#define LOAD_BYTES NPU_SLOT_BYTES
#define CODE_ALIGNMENT 4u
/* More are a mistake, and would make looking for doubles long. */
#define HARDWARE_IDS_MAX 64u
/* Low bytes from here on are vendors', with one exception (MCUboot's wildcard). */
#define VENDOR_KINDS 0xa0u
#define VENDOR_KIND_MASK 0xffu
#define ANY_KIND 0xffffu
#define PURE_MARK 1u
#define NO_PADDING_YET 0x100u
#define KINDS 0x10000u
#define WORD_BITS 32u

_Static_assert(NPU_SLOT_BYTES <= NPU_MIN_CHUNK_BYTES * NPU_MAX_CHUNKS, "chunks never grow");

/* The entries of a TLV area that are still to be read. */
struct cursor {
    const uint8_t *at;
    uint32_t left;
    /* In the image. */
    uint32_t offset;
};

struct tlv {
    uint32_t kind;
    uint32_t length;
    const uint8_t *value;
    uint32_t offset;
};

static void advance(struct cursor *cursor, uint32_t count)
{
    cursor->at += count;
    cursor->left -= count;
    cursor->offset += count;
}

/* False when what is left is not a whole entry. */
static bool next_entry(struct cursor *cursor, struct tlv *tlv)
{
    struct npu_image_tlv head;

    if (cursor->left < sizeof head) {
        return false;
    }
    memcpy(&head, cursor->at, sizeof head);
    tlv->offset = cursor->offset;
    advance(cursor, sizeof head);
    if (head.length > cursor->left) {
        return false;
    }
    tlv->kind = head.kind;
    tlv->length = head.length;
    tlv->value = cursor->at;
    advance(cursor, head.length);
    return true;
}

static uint32_t refuse(struct image *image, uint32_t offset)
{
    image->defect_offset = offset;
    return BAD_FORMAT;
}

static bool is_loadable(const struct npu_image_header *header)
{
    uint32_t offset = header->load_address - NPU_LOAD_ADDRESS;

    return header->flags == NPU_IMAGE_FLAG_RAM_LOAD && header->load_address >= NPU_LOAD_ADDRESS &&
           offset < LOAD_BYTES && offset % CODE_ALIGNMENT == 0;
}

uint32_t image_read_header(const uint8_t *bytes, uint32_t room, struct image *image)
{
    struct npu_image_header *header = &image->header;

    *image = (struct image){.padding = NO_PADDING_YET};
    if (room < sizeof *header) {
        return BAD_FORMAT;
    }
    memcpy(header, bytes, sizeof *header);
    if (header->magic != NPU_IMAGE_MAGIC || !is_loadable(header) || header->header_size < sizeof *header ||
        header->header_size % CODE_ALIGNMENT != 0 || header->image_size == 0 ||
        !bytes_are(bytes + sizeof *header - 4, 0, 4)) {
        return BAD_FORMAT;
    }
    /* 32 bits are enough for sums only once each part is known to be small. */
    if (header->image_size > NPU_SLOT_BYTES || header->header_size + header->image_size > NPU_SLOT_BYTES) {
        return TOO_LARGE;
    }
    image->payload_end = header->header_size + header->image_size;
    if (header->load_address - NPU_LOAD_ADDRESS + image->payload_end > LOAD_BYTES) {
        return BAD_FORMAT;
    }
    image->signed_end = image->payload_end + header->protected_size;
    if (image->signed_end > NPU_SLOT_BYTES) {
        return TOO_LARGE;
    }
    if (image->signed_end + sizeof(struct npu_image_tlv_info) > room) {
        return refuse(image, image->signed_end);
    }
    return OK;
}

/* An area of `count` bytes begins at `bytes`: its entries, when magic and size are right. */
static bool open_area(const uint8_t *bytes, uint32_t count, uint32_t magic, uint32_t offset, struct cursor *entries)
{
    struct npu_image_tlv_info info;

    if (count < sizeof info) {
        return false;
    }
    memcpy(&info, bytes, sizeof info);
    if (info.magic != magic || info.total_size < sizeof info || info.total_size > count) {
        return false;
    }
    *entries = (struct cursor){.at = bytes, .left = info.total_size, .offset = offset};
    advance(entries, sizeof info);
    return true;
}

static bool hardware_ids_are_unlike(const uint8_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t j = 0; j < i; j++) {
            if (bytes_equal(ids + i * sizeof(uint32_t), ids + j * sizeof(uint32_t), sizeof(uint32_t))) {
                return false;
            }
        }
    }
    return true;
}

static bool take_hardware_ids(struct image *image, const struct tlv *tlv)
{
    uint32_t count = tlv->length / sizeof(uint32_t);

    if (image->hardware_ids || count == 0 || count > HARDWARE_IDS_MAX || tlv->length % sizeof(uint32_t) != 0) {
        return false;
    }
    image->hardware_ids = tlv->value;
    image->hardware_id_count = count;
    return hardware_ids_are_unlike(tlv->value, count);
}

static bool take_chunk_hashes(struct image *image, const struct tlv *tlv)
{
    uint32_t chunks = (image->payload_end + IMAGE_CHUNK_BYTES - 1) / IMAGE_CHUNK_BYTES;

    if (image->chunk_hashes || tlv->length != chunks * NPU_SHA256_BYTES) {
        return false;
    }
    image->chunk_hashes = tlv->value;
    return true;
}

/* The device has one image, so that there is nothing to depend on; only the form is looked at. */
static bool is_dependency(const struct tlv *tlv)
{
    struct npu_image_dependency dependency;

    if (tlv->length != sizeof dependency) {
        return false;
    }
    memcpy(&dependency, tlv->value, sizeof dependency);
    return bytes_are(dependency.reserved_1, 0, sizeof dependency.reserved_1);
}

static bool is_vendors(uint32_t kind)
{
    return (kind & VENDOR_KIND_MASK) >= VENDOR_KINDS && kind != ANY_KIND;
}

static bool take_protected(struct image *image, const struct tlv *tlv)
{
    switch (tlv->kind) {
    case NPU_TLV_KIND_SECURITY_COUNTER:
        if (tlv->length != sizeof image->security_counter) {
            return false;
        }
        image->security_counter = load_u32(tlv->value);
        return true;
    case NPU_TLV_KIND_HARDWARE_IDS:
        return take_hardware_ids(image, tlv);
    case NPU_TLV_KIND_CHUNK_HASHES:
        return take_chunk_hashes(image, tlv);
    case NPU_TLV_KIND_DEPENDENCY:
        return is_dependency(tlv);
    case NPU_TLV_KIND_BOOT_RECORD:
        return true;
    default:
        return is_vendors(tlv->kind);
    }
}

/* Whether an entry of this kind was there already; notes this one. An area holds 16,383 entries: to compare each with all
 * others would take longer than the watchdog waits. */
static bool is_double(uint32_t *seen, uint32_t kind)
{
    uint32_t *word = &seen[kind / WORD_BITS];
    uint32_t bit = 1u << kind % WORD_BITS;
    bool found = *word & bit;

    *word |= bit;
    return found;
}

static uint32_t read_protected(const uint8_t *bytes, uint32_t count, struct image *image)
{
    static uint32_t seen[KINDS / WORD_BITS];
    struct cursor entries;

    if (image->header.protected_size == 0) {
        return OK;
    }
    if (!open_area(bytes, count, NPU_PROTECTED_INFO_MAGIC, image->payload_end, &entries) ||
        entries.offset + entries.left != image->signed_end) {
        return refuse(image, image->payload_end);
    }
    memset(seen, 0, sizeof seen);
    while (entries.left) {
        uint32_t offset = entries.offset;
        struct tlv tlv;
        if (!next_entry(&entries, &tlv) || !take_protected(image, &tlv) ||
            (tlv.kind != NPU_TLV_KIND_DEPENDENCY && is_double(seen, tlv.kind))) {
            return refuse(image, offset);
        }
    }
    return OK;
}

/* imgtool puts the hash first, and so must everybody. */
static bool take_hash(struct image *image, const struct tlv *tlv)
{
    switch (tlv->kind) {
    case NPU_TLV_KIND_SHA256:
        image->digest_bytes = NPU_SHA256_BYTES;
        break;
    case NPU_TLV_KIND_SHA512:
        image->digest_bytes = NPU_SHA512_BYTES;
        break;
    default:
        return false;
    }
    image->digest_kind = tlv->kind;
    image->digest = tlv->value;
    return tlv->length == image->digest_bytes;
}

static bool is_key(const struct image *image, const struct tlv *tlv)
{
    static const uint8_t PREFIX[] = NPU_SPKI_PREFIX;

    if (tlv->kind == NPU_TLV_KIND_KEY_HASH) {
        return tlv->length == image->digest_bytes;
    }
    return tlv->kind == NPU_TLV_KIND_PUBLIC_KEY && tlv->length == IMAGE_KEY_INFO_BYTES &&
           bytes_equal(tlv->value, PREFIX, sizeof PREFIX);
}

/* Whether this key stands in front of the entry already. */
static bool signed_before(struct cursor pairs, const struct tlv *key)
{
    struct tlv earlier;

    while (next_entry(&pairs, &earlier) && earlier.offset < key->offset) {
        if (earlier.kind == key->kind && bytes_equal(earlier.value, key->value, key->length)) {
            return true;
        }
    }
    return false;
}

/* Pairs of what names a key, and the signature it made. */
static uint32_t read_signatures(struct cursor entries, struct image *image)
{
    struct cursor pairs = entries;
    uint32_t count = 0;

    image->signatures = entries.at;
    image->signatures_bytes = entries.left;
    while (entries.left) {
        uint32_t offset = entries.offset;
        struct tlv key;
        struct tlv signature;
        if (count++ == NPU_MAX_SIGNATURES || !next_entry(&entries, &key) || !is_key(image, &key) || signed_before(pairs, &key) ||
            !next_entry(&entries, &signature) || signature.kind != NPU_TLV_KIND_ED25519 ||
            signature.length != NPU_SIGNATURE_BYTES) {
            return refuse(image, offset);
        }
    }
    return OK;
}

static uint32_t read_unprotected(const uint8_t *bytes, uint32_t count, struct image *image)
{
    struct cursor entries;
    struct cursor behind_mark;
    struct tlv tlv;

    if (!open_area(bytes, count, NPU_UNPROTECTED_INFO_MAGIC, image->signed_end, &entries)) {
        return refuse(image, image->signed_end);
    }
    image->total_bytes = entries.offset + entries.left;
    if (image->total_bytes > NPU_SLOT_BYTES) {
        return TOO_LARGE;
    }
    if (!next_entry(&entries, &tlv) || !take_hash(image, &tlv)) {
        return refuse(image, image->signed_end);
    }
    behind_mark = entries;
    if (next_entry(&behind_mark, &tlv) && tlv.kind == NPU_TLV_KIND_PURE) {
        if (tlv.length != 1 || *tlv.value != PURE_MARK) {
            return refuse(image, tlv.offset);
        }
        image->pure = true;
        entries = behind_mark;
    }
    return read_signatures(entries, image);
}

uint32_t image_read_tlvs(const uint8_t *bytes, uint32_t count, struct image *image)
{
    uint32_t result;

    if (count < image->header.protected_size) {
        return refuse(image, image->payload_end);
    }
    result = read_protected(bytes, image->header.protected_size, image);
    if (result != OK) {
        return result;
    }
    return read_unprotected(bytes + image->header.protected_size, count - image->header.protected_size, image);
}

bool image_padding_is_plain(struct image *image, uint32_t offset, const uint8_t *piece, uint32_t count)
{
    uint32_t start = offset < sizeof image->header ? sizeof image->header : offset;
    uint32_t end = smaller(offset + count, image->header.header_size);

    for (uint32_t at = start; at < end; at++) {
        uint8_t byte = piece[at - offset];
        if (image->padding == NO_PADDING_YET && (byte == 0 || byte == NPU_ERASED)) {
            image->padding = byte;
        }
        if (byte != image->padding) {
            return false;
        }
    }
    return true;
}

bool image_next_signature(const uint8_t **entries, uint32_t *count, struct image_signature *signature)
{
    struct cursor cursor = {.at = *entries, .left = *count};
    struct tlv key;
    struct tlv made;

    if (!next_entry(&cursor, &key) || !next_entry(&cursor, &made)) {
        return false;
    }
    *signature = (struct image_signature){.signature = made.value};
    if (key.kind == NPU_TLV_KIND_PUBLIC_KEY) {
        signature->key_info = key.value;
        signature->public_key = key.value + NPU_SPKI_PREFIX_BYTES;
    }
    *entries = cursor.at;
    *count = cursor.left;
    return true;
}

uint32_t image_chunk_bytes(const struct image *image, uint32_t offset)
{
    return smaller(IMAGE_CHUNK_BYTES, image->payload_end - offset);
}

bool image_chunk_is_right(const struct image *image, uint32_t offset, const uint8_t *chunk)
{
    uint8_t found[NPU_SHA256_BYTES];
    const uint8_t *stated = image->chunk_hashes + offset / IMAGE_CHUNK_BYTES * NPU_SHA256_BYTES;

    crypto_sha256_start();
    crypto_hash(chunk, image_chunk_bytes(image, offset));
    return crypto_hash_finish(found, sizeof found) && bytes_equal(found, stated, sizeof found);
}

bool image_chunks_are_right(const struct image *image, const uint8_t *bytes)
{
    if (!image->chunk_hashes) {
        return true;
    }
    for (uint32_t offset = 0; offset < image->payload_end; offset += IMAGE_CHUNK_BYTES) {
        if (!image_chunk_is_right(image, offset, bytes + offset)) {
            return false;
        }
    }
    return true;
}

uint64_t image_version(const struct image *image)
{
    const struct npu_image_header *header = &image->header;

    return header->major | (uint64_t)header->minor << 8 | (uint64_t)header->revision << 16 |
           (uint64_t)header->build_number << 32;
}
