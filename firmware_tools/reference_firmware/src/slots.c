#include "slots.h"

#include "authenticity.h"
#include "bytes.h"
#include "drivers/flash.h"
#include "image.h"
#include "npu_registers.h"

#define SLOT_COUNT 2u

static struct {
    bool known;
    struct slot_report report;
} memory[SLOT_COUNT];

bool slots_is_slot(uint32_t slot)
{
    return slot == NPU_SLOT_A || slot == NPU_SLOT_B;
}

uint32_t slots_offset(uint32_t slot)
{
    return slot == NPU_SLOT_A ? NPU_SLOT_A_OFFSET : NPU_SLOT_B_OFFSET;
}

uint32_t slots_other(uint32_t slot)
{
    return slot == NPU_SLOT_A ? NPU_SLOT_B : NPU_SLOT_A;
}

static struct slot_report examine(const uint8_t *bytes)
{
    struct image image;
    struct slot_report report = {0};

    report.result = image_read_header(bytes, NPU_SLOT_BYTES, &image);
    if (report.result == NPU_MAILBOX_RESULT_OK) {
        report.result = image_read_tlvs(bytes + image.payload_end, NPU_SLOT_BYTES - image.payload_end, &image);
    }
    if (report.result != NPU_MAILBOX_RESULT_OK) {
        return report;
    }
    report.image_bytes = image.total_bytes;
    report.security_counter = image.security_counter;
    report.version = image_version(&image);
    memcpy(report.hash, image.digest, sizeof report.hash);
    report.result = authenticity_check_whole(&image, bytes);
    if (report.result == NPU_MAILBOX_RESULT_OK) {
        /* That an image without hardware ids may lie here was decided when it was written. */
        report.result = authenticity_check_admission(&image, true);
    }
    return report;
}

const struct slot_report *slots_examine(uint32_t slot)
{
    uint32_t index = slot - NPU_SLOT_A;

    if (!memory[index].known) {
        memory[index].report = examine(flash_at(slots_offset(slot)));
        memory[index].known = true;
    }
    return &memory[index].report;
}

bool slots_is_known(uint32_t slot)
{
    return memory[slot - NPU_SLOT_A].known;
}

void slots_forget(uint32_t slot)
{
    memory[slot - NPU_SLOT_A].known = false;
}
