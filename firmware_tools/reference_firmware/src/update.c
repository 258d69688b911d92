/* An update goes through these steps; each call of update_step does a piece of at most one sector.
 *
 *   DRAIN      waits until a copy that an aborted update had started is over
 *   HEADER     reads the header, and takes it apart
 *   TLVS       reads the TLV areas into RAM, where they stay, and takes them apart
 *   HASH       reads and hashes the image, and checks its signatures and whether this device may have it. An image
 *              without chunk hashes that is read by DMA is kept in the staging memory, and written from there
 *   MARKS      removes every mark in the boot state that leads to the slot: from here on flash is changed
 *   WRITE      writes sector by sector. An image with chunk hashes is read by DMA a second time: host memory may have
 *              changed, so each chunk is compared with its hash, which by now is known to be the signer's
 *   READ_BACK  hashes the slot, and compares it with what was verified
 *   TRIAL      marks the slot for a trial boot
 *
 * With chunk hashes a sector that is already as it should be is kept: an update that was cut off is resumed by being
 * repeated.
 */
#include "update.h"

#include "authenticity.h"
#include "boot_state.h"
#include "bytes.h"
#include "drivers/crypto.h"
#include "drivers/dma.h"
#include "drivers/flash.h"
#include "image.h"
#include "log.h"
#include "memory_map.h"
#include "slots.h"
#include "staging.h"
#include "variants.h"

#define OK NPU_MAILBOX_RESULT_OK
#define SECTOR_BYTES NPU_FLASH_SECTOR_BYTES
#define PAGE_BYTES NPU_FLASH_PAGE_BYTES
#define KNOWN_FLAGS (NPU_UPDATE_FLAG_STAGED | NPU_UPDATE_FLAG_ALLOW_NO_HARDWARE_ID)
/* `page` while the sector has not been erased yet. */
#define NOT_ERASED UINT32_MAX

_Static_assert(IMAGE_CHUNK_BYTES == SECTOR_BYTES, "a chunk is compared with its hash, and then written as a sector");

enum step { STEP_IDLE, STEP_DRAIN, STEP_HEADER, STEP_TLVS, STEP_HASH, STEP_MARKS, STEP_WRITE, STEP_READ_BACK, STEP_TRIAL };

/* What came of asking for a piece of the image. */
enum fetched { FETCH_WAITS, FETCH_READY, FETCH_FAULT };

static struct {
    enum step step;
    uint32_t state;
    uint32_t result;
    uint32_t detail;

    uint64_t address;
    uint32_t total_bytes;
    uint32_t flags;
    uint32_t running_slot;
    uint32_t slot;
    /* The image lies in the staging memory; else it is read by DMA. */
    bool in_memory;
    /* It shall, once it has been read. */
    bool needs_copy;
    /* DMA is at work on `piece`. */
    bool copying;

    uint32_t position;
    uint32_t page;
    uint32_t kept_bytes;
    struct image image;
} update;

/* Where DMA copies to, and where a sector is put together. */
static uint8_t piece[SECTOR_BYTES] __attribute__((aligned(4)));
static uint8_t tlvs[IMAGE_TLV_BYTES_MAX] __attribute__((aligned(4)));

static void enter(enum step step, uint32_t state)
{
    update.step = step;
    update.state = state;
    update.position = 0;
    update.page = NOT_ERASED;
}

static void fail(uint32_t result, uint32_t detail)
{
    LOG_WARNING("update of slot %c failed: result %u at %08x", slot_letter(update.slot), result, detail);
    update.result = result;
    update.detail = detail;
    slots_forget(update.slot);
    enter(STEP_IDLE, NPU_UPDATE_STATE_FAILED);
}

/* --- Reading the image ------------------------------------------------------------------------------------------ */

/* The next `count` bytes at `offset` of the image, in `piece`. */
static enum fetched fetch(uint32_t offset, uint32_t count)
{
    if (update.in_memory) {
        memcpy(piece, staging_memory + offset, count);
        return FETCH_READY;
    }
    if (!update.copying) {
        dma_start(piece, update.address + offset, count);
        update.copying = true;
        return FETCH_WAITS;
    }
    uint32_t state = dma_state();
    if (state == NPU_DMA_STATUS_BUSY) {
        return FETCH_WAITS;
    }
    dma_clear();
    update.copying = false;
    return state == NPU_DMA_STATUS_DONE ? FETCH_READY : FETCH_FAULT;
}

/* The same, but ends the update on a fault. True when the bytes are there. */
static bool has_fetched(uint32_t offset, uint32_t count)
{
    enum fetched fetched = fetch(offset, count);

    if (fetched == FETCH_FAULT) {
        fail(NPU_MAILBOX_RESULT_DMA_FAULT, offset);
    }
    return fetched == FETCH_READY;
}

/* --- Verifying -------------------------------------------------------------------------------------------------- */

static void step_header(void)
{
    uint32_t result;

    if (update.total_bytes < sizeof update.image.header) {
        fail(NPU_MAILBOX_RESULT_BAD_FORMAT, update.total_bytes);
        return;
    }
    if (!has_fetched(0, sizeof update.image.header)) {
        return;
    }
    result = image_read_header(piece, update.total_bytes, &update.image);
    if (result != OK) {
        fail(result, update.image.defect_offset);
        return;
    }
    enter(STEP_TLVS, NPU_UPDATE_STATE_VERIFYING);
}

static void begin_hash(void)
{
    /* Without chunk hashes nothing could be read twice, and a pure signature is verified in one piece. */
    update.needs_copy = !update.in_memory && (!update.image.chunk_hashes || update.image.pure);
    if (update.needs_copy) {
        staging_forget();
    }
    authenticity_start_hash(&update.image);
    enter(STEP_HASH, NPU_UPDATE_STATE_VERIFYING);
}

static void take_tlvs_apart(uint32_t count)
{
    struct image *image = &update.image;
    uint32_t result = image_read_tlvs(tlvs, count, image);

    if (result == OK && image->total_bytes != update.total_bytes) {
        result = NPU_MAILBOX_RESULT_BAD_FORMAT;
        image->defect_offset = image->total_bytes;
    }
    if (result != OK) {
        fail(result, image->defect_offset);
    } else {
        begin_hash();
    }
}

static void step_tlvs(void)
{
    uint32_t all = update.total_bytes - update.image.payload_end;
    uint32_t count = smaller(sizeof piece, all - update.position);

    if (all > sizeof tlvs) {
        fail(NPU_MAILBOX_RESULT_BAD_FORMAT, update.image.payload_end);
        return;
    }
    if (!has_fetched(update.image.payload_end + update.position, count)) {
        return;
    }
    memcpy(tlvs + update.position, piece, count);
    update.position += count;
    if (update.position == all) {
        take_tlvs_apart(all);
    }
}

/* The header was read on its own before: what decided then must be what is hashed and written now. */
static bool has_header_changed(uint32_t offset)
{
    return offset == 0 && !bytes_equal(piece, &update.image.header, sizeof update.image.header);
}

/* The payload's next piece, of at most one sector; false when it is not there yet, or not what it was. */
static bool has_payload_piece(uint32_t *count)
{
    *count = image_chunk_bytes(&update.image, update.position);
    if (!has_fetched(update.position, *count)) {
        return false;
    }
    if (has_header_changed(update.position)) {
        fail(NPU_MAILBOX_RESULT_CHANGED, update.position);
        return false;
    }
    return true;
}

static void finish_verifying(void)
{
    uint32_t result;

    if (update.needs_copy) {
        /* The TLVs are those that were taken apart, whatever the host's memory holds by now. */
        memcpy(staging_memory + update.position, tlvs, update.total_bytes - update.position);
        update.in_memory = true;
    }
    crypto_hash(tlvs, update.image.header.protected_size);
    result = authenticity_check_hash(&update.image);
    if (result == OK && update.in_memory && !image_chunks_are_right(&update.image, staging_memory)) {
        result = NPU_MAILBOX_RESULT_BAD_HASH;
    }
    if (result == OK) {
        result = authenticity_check_signatures(&update.image, staging_memory);
    }
    if (result == OK) {
        bool without_hardware_id = update.flags & NPU_UPDATE_FLAG_ALLOW_NO_HARDWARE_ID;
        result = authenticity_check_admission(&update.image, without_hardware_id);
    }
    if (result != OK) {
        fail(result, 0);
        return;
    }
    LOG_INFO("image of %u bytes for slot %c is good, security counter %u", update.total_bytes, slot_letter(update.slot),
             update.image.security_counter);
    enter(STEP_MARKS, NPU_UPDATE_STATE_WRITING);
}

static void step_hash(void)
{
    uint32_t count;

    if (!has_payload_piece(&count)) {
        return;
    }
    if (!image_padding_is_plain(&update.image, update.position, piece, count)) {
        fail(NPU_MAILBOX_RESULT_BAD_FORMAT, update.position);
        return;
    }
    if (update.needs_copy) {
        memcpy(staging_memory + update.position, piece, count);
    }
    crypto_hash(piece, count);
    update.position += count;
    if (update.position == update.image.payload_end) {
        finish_verifying();
    }
}

/* --- Writing ---------------------------------------------------------------------------------------------------- */

static void step_marks(void)
{
    bool done = BROKEN_TRIAL_BEFORE_READ_BACK ? boot_state_begin_trial(update.slot)
                                              : boot_state_forget_slot(update.slot, update.running_slot);

    if (!done) {
        fail(NPU_MAILBOX_RESULT_FLASH_FAULT, 0);
        return;
    }
    slots_forget(update.slot);
    enter(STEP_WRITE, NPU_UPDATE_STATE_WRITING);
}

/* How the sector at `position` divides: first bytes of a chunk, then bytes of TLVs, then nothing of the image. */
struct sector {
    const uint8_t *flash;
    uint32_t payload_bytes;
    const uint8_t *tlvs;
    uint32_t tlv_bytes;
};

static struct sector sector_at(uint32_t position)
{
    uint32_t payload_end = update.image.payload_end;
    uint32_t end = smaller(position + SECTOR_BYTES, update.total_bytes);
    struct sector sector = {.flash = flash_at(slots_offset(update.slot) + position), .tlvs = tlvs};

    if (position < payload_end) {
        sector.payload_bytes = smaller(end, payload_end) - position;
    }
    if (end > payload_end) {
        sector.tlvs = tlvs + (position + sector.payload_bytes - payload_end);
        sector.tlv_bytes = end - position - sector.payload_bytes;
    }
    return sector;
}

static bool is_sector_kept(const struct sector *sector)
{
    return update.image.chunk_hashes && bytes_equal(sector->flash + sector->payload_bytes, sector->tlvs, sector->tlv_bytes) &&
           (!sector->payload_bytes || image_chunk_is_right(&update.image, update.position, sector->flash));
}

static void next_sector(const struct sector *sector)
{
    update.position += sector->payload_bytes + sector->tlv_bytes;
    update.page = NOT_ERASED;
    if (update.position == update.total_bytes) {
        authenticity_start_hash(&update.image);
        enter(STEP_READ_BACK, NPU_UPDATE_STATE_READING_BACK);
    }
}

/* Puts the sector together in `piece`. False when it is not there yet, or cannot be. */
static bool has_sector(const struct sector *sector)
{
    if (sector->payload_bytes && !has_fetched(update.position, sector->payload_bytes)) {
        return false;
    }
    if (sector->payload_bytes && update.image.chunk_hashes &&
        !image_chunk_is_right(&update.image, update.position, piece)) {
        fail(NPU_MAILBOX_RESULT_CHANGED, update.position);
        return false;
    }
    memset(piece + sector->payload_bytes, NPU_ERASED, sizeof piece - sector->payload_bytes);
    memcpy(piece + sector->payload_bytes, sector->tlvs, sector->tlv_bytes);
    return true;
}

static void erase_sector(const struct sector *sector)
{
    if (!update.copying && is_sector_kept(sector)) {
        update.kept_bytes += sector->payload_bytes + sector->tlv_bytes;
        next_sector(sector);
        return;
    }
    if (!has_sector(sector)) {
        return;
    }
    if (!flash_erase_sector(slots_offset(update.slot) + update.position)) {
        fail(NPU_MAILBOX_RESULT_FLASH_FAULT, update.position);
        return;
    }
    update.page = 0;
}

static void program_page(const struct sector *sector)
{
    const uint8_t *page = piece + update.page;

    if (!bytes_are(page, NPU_ERASED, PAGE_BYTES) &&
        !flash_program_page(slots_offset(update.slot) + update.position + update.page, page)) {
        fail(NPU_MAILBOX_RESULT_FLASH_FAULT, update.position + update.page);
        return;
    }
    update.page += PAGE_BYTES;
    if (update.page == SECTOR_BYTES) {
        next_sector(sector);
    }
}

/* One operation of the flash at a time: the core stands still meanwhile, and others want to be served. */
static void step_write(void)
{
    struct sector sector = sector_at(update.position);

    if (update.page == NOT_ERASED) {
        erase_sector(&sector);
    } else {
        program_page(&sector);
    }
}

/* --- Reading back ----------------------------------------------------------------------------------------------- */

static void finish_reading_back(const uint8_t *slot)
{
    uint32_t payload_end = update.image.payload_end;

    crypto_hash(slot + payload_end, update.image.header.protected_size);
    if (authenticity_check_hash(&update.image) != OK) {
        fail(NPU_MAILBOX_RESULT_FLASH_FAULT, 0);
    } else if (!bytes_equal(slot + payload_end, tlvs, update.total_bytes - payload_end)) {
        fail(NPU_MAILBOX_RESULT_FLASH_FAULT, payload_end);
    } else {
        enter(STEP_TRIAL, NPU_UPDATE_STATE_READING_BACK);
        update.position = update.total_bytes;
    }
}

static void step_read_back(void)
{
    const uint8_t *slot = flash_at(slots_offset(update.slot));
    uint32_t count = image_chunk_bytes(&update.image, update.position);

    crypto_hash(slot + update.position, count);
    update.position += count;
    if (update.position == update.image.payload_end) {
        finish_reading_back(slot);
    }
}

static void step_trial(void)
{
    if (!boot_state_begin_trial(update.slot)) {
        fail(NPU_MAILBOX_RESULT_FLASH_FAULT, 0);
        return;
    }
    LOG_INFO("slot %c is written, %u of %u bytes were there already; its trial is due", slot_letter(update.slot), update.kept_bytes,
             update.total_bytes);
    slots_forget(update.slot);
    staging_forget();
    enter(STEP_IDLE, NPU_UPDATE_STATE_DONE);
}

/* --- The outside ------------------------------------------------------------------------------------------------ */

static void step_drain(void)
{
    if (dma_state() == NPU_DMA_STATUS_BUSY) {
        return;
    }
    dma_clear();
    update.copying = false;
    update.step = STEP_IDLE;
}

static void (*const STEPS[])(void) = {
    [STEP_DRAIN] = step_drain,         [STEP_HEADER] = step_header, [STEP_TLVS] = step_tlvs,
    [STEP_HASH] = step_hash,           [STEP_MARKS] = step_marks,   [STEP_WRITE] = step_write,
    [STEP_READ_BACK] = step_read_back, [STEP_TRIAL] = step_trial,
};

bool update_step(void)
{
    if (update.step == STEP_IDLE) {
        return false;
    }
    STEPS[update.step]();
    /* With a copy on its way, its interrupt is what comes next. */
    return update.step != STEP_IDLE && !update.copying;
}

bool update_is_active(void)
{
    return update.step != STEP_IDLE;
}

/* The slot that does not run. Seen from outside, the one that is not needed. */
static uint32_t choose_slot(uint32_t running_slot)
{
    if (slots_is_slot(running_slot)) {
        return slots_other(running_slot);
    }
    return boot_state_read().confirmed == NPU_SLOT_A ? NPU_SLOT_B : NPU_SLOT_A;
}

static uint32_t check_request(const struct npu_update_begin *request, bool on_trial, uint32_t *hole)
{
    bool staged = request->flags & NPU_UPDATE_FLAG_STAGED;

    if (update_is_active()) {
        return NPU_MAILBOX_RESULT_BUSY;
    }
    if (on_trial) {
        return NPU_MAILBOX_RESULT_UNCONFIRMED;
    }
    if (request->flags & ~KNOWN_FLAGS || (staged && request->address) || request->image_bytes == 0) {
        return NPU_MAILBOX_RESULT_BAD_ARGUMENT;
    }
    if (request->image_bytes > NPU_SLOT_BYTES) {
        return NPU_MAILBOX_RESULT_TOO_LARGE;
    }
    if (request->address > UINT64_MAX - request->image_bytes) {
        return NPU_MAILBOX_RESULT_BAD_ARGUMENT;
    }
    *hole = staged ? staging_first_hole(request->image_bytes) : request->image_bytes;
    return *hole < request->image_bytes ? NPU_MAILBOX_RESULT_NOT_STAGED : OK;
}

uint32_t update_begin(const struct npu_update_begin *request, uint32_t running_slot, bool on_trial)
{
    uint32_t hole = 0;
    uint32_t result = check_request(request, on_trial, &hole);

    if (result != OK) {
        LOG_WARNING("update refused: result %u, %u bytes, flags %x, staged up to %u", result, request->image_bytes,
                    request->flags, hole);
        return result;
    }
    update.result = OK;
    update.detail = 0;
    update.address = request->address;
    update.total_bytes = request->image_bytes;
    update.flags = request->flags;
    update.running_slot = running_slot;
    update.slot = choose_slot(running_slot);
    update.in_memory = request->flags & NPU_UPDATE_FLAG_STAGED;
    update.kept_bytes = 0;
    update.needs_copy = false;
    enter(STEP_HEADER, NPU_UPDATE_STATE_VERIFYING);
    LOG_INFO("update of slot %c begins: %u bytes, flags %x", slot_letter(update.slot), update.total_bytes, update.flags);
    return OK;
}

void update_abort(void)
{
    if (!update_is_active() || update.step == STEP_DRAIN) {
        return;
    }
    fail(NPU_MAILBOX_RESULT_ABORTED, update.position);
    if (update.copying) {
        update.step = STEP_DRAIN;
    }
}

static uint32_t done_bytes(void)
{
    switch (update.step) {
    case STEP_HEADER:
    case STEP_TLVS:
        return 0;
    default:
        return update.state == NPU_UPDATE_STATE_DONE ? update.total_bytes : update.position;
    }
}

void update_status(struct npu_update_status *status)
{
    *status = (struct npu_update_status){
        .state = (uint8_t)update.state,
        .result = (uint8_t)update.result,
        .slot = (uint8_t)update.slot,
        .done_bytes = done_bytes(),
        .total_bytes = update.total_bytes,
        .kept_bytes = update.kept_bytes,
        .detail = update.detail,
    };
}
