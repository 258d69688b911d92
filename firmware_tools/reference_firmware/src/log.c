#include "log.h"

#include "build_id.h"
#include "drivers/boot.h"
#include "drivers/clint.h"
#include "memory_map.h"

#define RING_MAGIC 0x474f4c4eu
/* The largest power of two that fits: sequence numbers may then wrap without a jump in the ring. */
#define RING_RECORDS 1024u

struct log_ring {
    uint32_t magic;
    uint32_t record_bytes;
    uint32_t record_count;
    uint32_t first;
    uint32_t next;
    uint32_t reserved[3];
    struct npu_log_record records[RING_RECORDS];
};

_Static_assert(sizeof(struct log_ring) <= NPU_RETAINED_BYTES, "the ring lies in retained RAM");
_Static_assert((RING_RECORDS & (RING_RECORDS - 1)) == 0, "a power of two");

/* Volatile, because a reset may come at any instruction: stores must happen in the order they are written here. */
static volatile struct log_ring *ring(void)
{
    return (volatile struct log_ring *)(void *)retained_memory;
}

/* The retained memory is ours alone and suitably aligned, but has no type of its own. */
static struct npu_log_record *place_of(uint32_t sequence)
{
    struct log_ring *whole = (struct log_ring *)(void *)retained_memory;

    return &whole->records[sequence % RING_RECORDS];
}

static bool is_whole(void)
{
    volatile struct log_ring *found = ring();

    if (found->magic != RING_MAGIC || found->record_bytes != sizeof(struct npu_log_record) ||
        found->record_count != RING_RECORDS || found->next - found->first > RING_RECORDS) {
        return false;
    }
    for (uint32_t sequence = found->first; sequence != found->next; sequence++) {
        const struct npu_log_record *record = place_of(sequence);
        if (record->sequence != sequence || record->level > NPU_LOG_LEVEL_ERROR ||
            record->argument_count > NPU_LOG_ARGUMENTS) {
            return false;
        }
    }
    return true;
}

void log_start(void)
{
    volatile struct log_ring *fresh = ring();

    if (is_whole()) {
        return;
    }
    fresh->magic = 0;
    fresh->record_bytes = sizeof(struct npu_log_record);
    fresh->record_count = RING_RECORDS;
    fresh->first = 0;
    fresh->next = 0;
    fresh->magic = RING_MAGIC;
}

void log_append(uint32_t level, uint32_t token, uint32_t argument_count, const uint32_t *arguments)
{
    volatile struct log_ring *all = ring();
    uint32_t sequence = all->next;
    struct npu_log_record record = {
        .sequence = sequence,
        .build_id = build_id(),
        .tick = clint_now(),
        .token = token,
        .level = (uint8_t)level,
        .argument_count = (uint8_t)argument_count,
        .boot = (uint16_t)boot_count(),
    };

    for (uint32_t i = 0; i < argument_count; i++) {
        record.arguments[i] = arguments[i];
    }
    /* A reset between any two of these steps leaves a ring that is whole: the oldest record is given up before it is
     * overwritten, and the new one counts only once it is there. */
    if (sequence - all->first == RING_RECORDS) {
        all->first = all->first + 1;
    }
    __asm__ volatile("" ::: "memory");
    *place_of(sequence) = record;
    __asm__ volatile("" ::: "memory");
    all->next = sequence + 1;
}

uint32_t log_first(void)
{
    return ring()->first;
}

uint32_t log_next(void)
{
    return ring()->next;
}

const struct npu_log_record *log_record(uint32_t sequence)
{
    return place_of(sequence);
}

uint32_t log_read(uint32_t sequence, struct npu_log_record *records, uint32_t room, uint32_t *next)
{
    uint32_t kept = log_next() - log_first();
    uint32_t left = log_next() - sequence;
    uint32_t count;

    /* What was never written or is gone looks alike in numbers that wrap: both are answered from the oldest on. */
    if (left > kept) {
        left = kept;
    }
    sequence = log_next() - left;
    count = smaller(left, room);
    for (uint32_t i = 0; i < count; i++) {
        records[i] = *place_of(sequence + i);
    }
    *next = sequence + count;
    return count;
}
