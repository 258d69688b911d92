#include "boot_state.h"

#include "bytes.h"
#include "drivers/flash.h"
#include "npu_protocol.h"
#include "npu_registers.h"

#define COPIES 2u
#define CRC32_POLYNOMIAL 0xedb88320u
#define CHECKED_BYTES offsetof(struct npu_boot_state, checksum)
#define ALL_PROVEN (NPU_PROVEN_SLOT_A | NPU_PROVEN_SLOT_B)

static const uint32_t COPY_OFFSETS[COPIES] = {NPU_BOOT_STATE_OFFSET, NPU_BOOT_STATE_COPY_OFFSET};

/* Bit by bit: it is over 28 bytes. */
static uint32_t crc32(const uint8_t *bytes, uint32_t count)
{
    uint32_t crc = UINT32_MAX;

    for (uint32_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        for (unsigned bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? CRC32_POLYNOMIAL : 0);
        }
    }
    return ~crc;
}

static bool is_slot(uint32_t slot)
{
    return slot <= NPU_SLOT_B;
}

static bool read_copy(uint32_t copy, struct boot_state *state)
{
    struct npu_boot_state found;
    const uint8_t *bytes = flash_at(COPY_OFFSETS[copy]);

    memcpy(&found, bytes, sizeof found);
    if (found.magic != NPU_BOOT_STATE_MAGIC || found.version != NPU_BOOT_STATE_VERSION ||
        found.checksum != crc32(bytes, CHECKED_BYTES) || found.sequence >= NPU_BOOT_STATE_MAX_SEQUENCE ||
        found.proven_slots & ~ALL_PROVEN || !bytes_are(found.reserved_15, 0, sizeof found.reserved_15)) {
        return false;
    }
    *state = (struct boot_state){
        .sequence = found.sequence,
        .confirmed = found.confirmed_slot,
        .trial = found.trial_slot,
        .trial_boots = found.trial_boots,
        .failed = found.failed_slot,
        .proven = found.proven_slots,
    };
    return is_slot(state->confirmed) && is_slot(state->trial) && is_slot(state->failed);
}

/* The copy that counts, or COPIES when none is whole. */
static uint32_t newest_copy(struct boot_state *newest)
{
    uint32_t found = COPIES;

    *newest = (struct boot_state){0};
    for (uint32_t copy = 0; copy < COPIES; copy++) {
        struct boot_state state;
        if (read_copy(copy, &state) && (found == COPIES || state.sequence >= newest->sequence)) {
            *newest = state;
            found = copy;
        }
    }
    return found;
}

struct boot_state boot_state_read(void)
{
    struct boot_state state;

    newest_copy(&state);
    return state;
}

bool boot_state_write(const struct boot_state *state)
{
    uint8_t page[NPU_FLASH_PAGE_BYTES];
    struct boot_state newest;
    uint32_t copy = newest_copy(&newest) == 0 ? 1 : 0;
    struct npu_boot_state encoded = {
        .magic = NPU_BOOT_STATE_MAGIC,
        .version = NPU_BOOT_STATE_VERSION,
        .confirmed_slot = state->confirmed,
        .trial_slot = state->trial,
        .sequence = newest.sequence + 1,
        .trial_boots = state->trial_boots,
        .failed_slot = state->failed,
        .proven_slots = state->proven,
    };

    encoded.checksum = crc32((const uint8_t *)&encoded, CHECKED_BYTES);
    memset(page, NPU_ERASED, sizeof page);
    memcpy(page, &encoded, sizeof encoded);
    return flash_erase_sector(COPY_OFFSETS[copy]) && flash_program_page(COPY_OFFSETS[copy], page) &&
           bytes_equal(flash_at(COPY_OFFSETS[copy]), &encoded, sizeof encoded);
}

static bool write_if_changed(const struct boot_state *state)
{
    struct boot_state found = boot_state_read();

    if (found.confirmed == state->confirmed && found.trial == state->trial &&
        found.trial_boots == state->trial_boots && found.failed == state->failed && found.proven == state->proven) {
        return true;
    }
    return boot_state_write(state);
}

static uint8_t proven_bit(uint32_t slot)
{
    switch (slot) {
    case NPU_SLOT_A:
        return NPU_PROVEN_SLOT_A;
    case NPU_SLOT_B:
        return NPU_PROVEN_SLOT_B;
    default:
        return 0;
    }
}

bool boot_state_is_proven(const struct boot_state *state, uint32_t slot)
{
    return state->proven & proven_bit(slot);
}

static void end_trial(struct boot_state *state)
{
    state->trial = NPU_SLOT_NONE;
    state->trial_boots = 0;
}

bool boot_state_forget_slot(uint32_t slot, uint32_t running_slot)
{
    struct boot_state state = boot_state_read();

    if (running_slot != NPU_SLOT_NONE || state.confirmed == slot) {
        state.confirmed = (uint8_t)running_slot;
    }
    if (state.trial == slot) {
        end_trial(&state);
    }
    if (state.failed == slot) {
        state.failed = NPU_SLOT_NONE;
    }
    state.proven &= (uint8_t)~proven_bit(slot);
    return write_if_changed(&state);
}

bool boot_state_begin_trial(uint32_t slot)
{
    struct boot_state state = boot_state_read();

    state.trial = (uint8_t)slot;
    state.trial_boots = 0;
    return write_if_changed(&state);
}

bool boot_state_withdraw_trial(void)
{
    struct boot_state state = boot_state_read();

    end_trial(&state);
    return write_if_changed(&state);
}

bool boot_state_confirm(uint32_t slot)
{
    struct boot_state state = boot_state_read();

    end_trial(&state);
    state.confirmed = (uint8_t)slot;
    state.proven |= proven_bit(slot);
    if (state.failed == slot) {
        state.failed = NPU_SLOT_NONE;
    }
    return write_if_changed(&state);
}
