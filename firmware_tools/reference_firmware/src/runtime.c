#include "runtime.h"

#include "boot_state.h"
#include "drivers/boot.h"
#include "drivers/clint.h"
#include "log.h"
#include "slots.h"
#include "update.h"

#define OK NPU_MAILBOX_RESULT_OK

static uint64_t start_tick;
static bool on_trial;

/* From now on nothing older boots. Always the last step: an image must be safely confirmed before the one it came from
 * is shut out. */
static void raise_security_counter(void)
{
    const struct slot_report *running = slots_examine(boot_slot());

    if (running->result == OK && running->security_counter > boot_security_counter()) {
        boot_raise_security_counter(running->security_counter);
        LOG_INFO("security counter raised to %u", running->security_counter);
        slots_forget(slots_other(boot_slot()));
    }
}

void runtime_start(void)
{
    uint32_t slot = boot_slot();

    start_tick = clint_now();
    on_trial = boot_is_trial();
    if (slots_is_slot(slot) && !on_trial && boot_state_read().confirmed == slot) {
        raise_security_counter();
    }
}

uint64_t runtime_uptime_milliseconds(void)
{
    return (clint_now() - start_tick) / TICKS_PER_MILLISECOND;
}

bool runtime_is_on_trial(void)
{
    return on_trial;
}

uint32_t runtime_confirm(void)
{
    if (!on_trial) {
        return NPU_MAILBOX_RESULT_NOT_ON_TRIAL;
    }
    if (!boot_state_confirm(boot_slot())) {
        return NPU_MAILBOX_RESULT_FLASH_FAULT;
    }
    on_trial = false;
    LOG_INFO("slot %c is confirmed", slot_letter(boot_slot()));
    raise_security_counter();
    return OK;
}

/* A rollback has no fall-back: what it leads to must be known to come up. That an image verifies does not say so: an
 * update that was aborted behind its last byte leaves one that nobody has tried. */
static uint32_t check_other(uint32_t other)
{
    uint32_t result = slots_examine(other)->result;
    struct boot_state state = boot_state_read();

    if (result == NPU_MAILBOX_RESULT_ROLLED_BACK) {
        return result;
    }
    if (result != OK) {
        return NPU_MAILBOX_RESULT_NO_OTHER_IMAGE;
    }
    return state.failed != other && boot_state_is_proven(&state, other) ? OK : NPU_MAILBOX_RESULT_UNTRIED;
}

static uint32_t withdraw_trial(uint32_t slot)
{
    if (!boot_state_withdraw_trial()) {
        return NPU_MAILBOX_RESULT_FLASH_FAULT;
    }
    LOG_INFO("the trial of slot %c is withdrawn", slot_letter(slot));
    return OK;
}

uint32_t runtime_roll_back(void)
{
    uint32_t other;
    uint32_t result;

    if (update_is_active()) {
        return NPU_MAILBOX_RESULT_BUSY;
    }
    if (!slots_is_slot(boot_slot())) {
        return NPU_MAILBOX_RESULT_NO_OTHER_IMAGE;
    }
    other = slots_other(boot_slot());
    if (!on_trial && boot_state_read().trial == other) {
        return withdraw_trial(other);
    }
    result = check_other(other);
    if (result != OK) {
        return result;
    }
    if (!boot_state_confirm(other)) {
        return NPU_MAILBOX_RESULT_FLASH_FAULT;
    }
    LOG_INFO("rolled back: slot %c from the next reset on", slot_letter(other));
    return OK;
}
