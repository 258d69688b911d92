/* One function a command. Lengths have been checked before it is called, by the protocol's own table; it fills in the
 * answer's body and returns the result. An answer that is not OK has no body. */
#include "mailbox_service.h"

#include "boot_state.h"
#include "build_id.h"
#include "bytes.h"
#include "drivers/boot.h"
#include "drivers/mailbox.h"
#include "log.h"
#include "runtime.h"
#include "slots.h"
#include "staging.h"
#include "thermal.h"
#include "update.h"

#define OK NPU_MAILBOX_RESULT_OK

struct log_answer {
    struct npu_log_answer head;
    struct npu_log_record records[NPU_LOG_RECORDS_AT_ONCE];
};

struct stage_write {
    struct npu_stage_write head;
    uint8_t bytes[NPU_STAGE_BYTES];
};

/* What a request can hold, and an answer. */
union body {
    uint8_t bytes[NPU_BODY_BYTES];
    struct npu_firmware_info info;
    struct npu_slot_query slot_query;
    struct npu_slot_info slot_info;
    struct npu_sensor_readings sensors;
    struct npu_log_query log_query;
    struct log_answer log_answer;
    struct stage_write stage_write;
    struct npu_update_begin update_begin;
    struct npu_update_status update_status;
};

struct message {
    struct npu_mailbox_request head;
    union body body;
};
_Static_assert(sizeof(struct message) == NPU_MAILBOX_BYTES, "fills the window");

static bool reset_is_due;

/* The handlers get the length of the request's body in *count, and leave that of the answer's. */
typedef uint32_t handler(const union body *request, union body *answer, uint32_t *count);

static uint32_t ping(const union body *request, union body *answer, uint32_t *count)
{
    memcpy(answer->bytes, request->bytes, *count);
    return OK;
}

static uint32_t info(const union body *request, union body *answer, uint32_t *count)
{
    (void)request;
    answer->info = (struct npu_firmware_info){
        .protocol = NPU_MAILBOX_VERSION,
        .slot = (uint8_t)boot_slot(),
        .on_trial = runtime_is_on_trial(),
        .version = boot_version(),
        .build_id = build_id(),
        .boot_reason = (uint8_t)boot_reason(),
        .throttle = (uint8_t)thermal_throttle(),
        .boots = (uint16_t)boot_count(),
        .uptime_milliseconds = runtime_uptime_milliseconds(),
        .security_counter = boot_security_counter(),
        .hardware_id = boot_hardware_id(),
        .log_first = log_first(),
        .log_next = log_next(),
    };
    *count = sizeof answer->info;
    return OK;
}

static void describe_slot(uint32_t slot, struct npu_slot_info *answer)
{
    const struct slot_report *report = slots_examine(slot);
    struct boot_state state = boot_state_read();

    *answer = (struct npu_slot_info){
        .slot = (uint8_t)slot,
        .valid = report->result == OK,
        .confirmed = state.confirmed == slot,
        .trial = state.trial == slot,
        .failed = state.failed == slot,
        .result = (uint8_t)report->result,
        .proven = boot_state_is_proven(&state, slot),
        .version = report->version,
        .image_bytes = report->image_bytes,
        .security_counter = report->security_counter,
        .build_id = slot == boot_slot() ? build_id() : 0,
    };
    memcpy(answer->hash, report->hash, sizeof answer->hash);
}

static uint32_t slot_info(const union body *request, union body *answer, uint32_t *count)
{
    const struct npu_slot_query *query = &request->slot_query;

    if (!slots_is_slot(query->slot) || !bytes_are(query->reserved_1, 0, sizeof query->reserved_1)) {
        return NPU_MAILBOX_RESULT_BAD_ARGUMENT;
    }
    /* An update has the hash engine, and may be writing the slot. */
    if (update_is_active() && !slots_is_known(query->slot)) {
        return NPU_MAILBOX_RESULT_BUSY;
    }
    describe_slot(query->slot, &answer->slot_info);
    *count = sizeof answer->slot_info;
    return OK;
}

static uint32_t sensors(const union body *request, union body *answer, uint32_t *count)
{
    const struct sensor_readings *readings = thermal_readings();

    (void)request;
    answer->sensors = (struct npu_sensor_readings){
        .temperature_millicelsius = (uint32_t)readings->millicelsius,
        .power_milliwatts = readings->milliwatts,
        .voltage_millivolts = readings->millivolts,
        .throttle = thermal_throttle(),
        .updates = thermal_updates(),
    };
    *count = sizeof answer->sensors;
    return OK;
}

static uint32_t log_read_request(const union body *request, union body *answer, uint32_t *count)
{
    struct log_answer *log = &answer->log_answer;
    uint32_t next;
    uint32_t records = log_read(request->log_query.first, log->records, NPU_LOG_RECORDS_AT_ONCE, &next);

    log->head = (struct npu_log_answer){.next = next, .count = records};
    *count = sizeof log->head + records * sizeof *log->records;
    return OK;
}

static uint32_t stage_write(const union body *request, union body *answer, uint32_t *count)
{
    const struct stage_write *write = &request->stage_write;
    uint32_t bytes = *count - sizeof write->head;

    (void)answer;
    *count = 0;
    if (update_is_active()) {
        return NPU_MAILBOX_RESULT_BUSY;
    }
    return staging_write(write->head.offset, write->bytes, bytes) ? OK : NPU_MAILBOX_RESULT_TOO_LARGE;
}

static uint32_t update_begin_request(const union body *request, union body *answer, uint32_t *count)
{
    (void)answer;
    *count = 0;
    return update_begin(&request->update_begin, boot_slot(), runtime_is_on_trial());
}

static uint32_t update_status_request(const union body *request, union body *answer, uint32_t *count)
{
    (void)request;
    update_status(&answer->update_status);
    *count = sizeof answer->update_status;
    return OK;
}

static uint32_t update_abort_request(const union body *request, union body *answer, uint32_t *count)
{
    (void)request;
    (void)answer;
    (void)count;
    update_abort();
    return OK;
}

static uint32_t confirm(const union body *request, union body *answer, uint32_t *count)
{
    (void)request;
    (void)answer;
    (void)count;
    return runtime_confirm();
}

static uint32_t rollback(const union body *request, union body *answer, uint32_t *count)
{
    (void)request;
    (void)answer;
    (void)count;
    return runtime_roll_back();
}

static uint32_t reset(const union body *request, union body *answer, uint32_t *count)
{
    (void)request;
    (void)answer;
    (void)count;
    reset_is_due = true;
    return OK;
}

static handler *handler_of(uint32_t command)
{
    switch (command) {
    case NPU_MAILBOX_COMMAND_PING:
        return ping;
    case NPU_MAILBOX_COMMAND_INFO:
        return info;
    case NPU_MAILBOX_COMMAND_SLOT_INFO:
        return slot_info;
    case NPU_MAILBOX_COMMAND_SENSORS:
        return sensors;
    case NPU_MAILBOX_COMMAND_LOG_READ:
        return log_read_request;
    case NPU_MAILBOX_COMMAND_STAGE_WRITE:
        return stage_write;
    case NPU_MAILBOX_COMMAND_UPDATE_BEGIN:
        return update_begin_request;
    case NPU_MAILBOX_COMMAND_UPDATE_STATUS:
        return update_status_request;
    case NPU_MAILBOX_COMMAND_UPDATE_ABORT:
        return update_abort_request;
    case NPU_MAILBOX_COMMAND_CONFIRM:
        return confirm;
    case NPU_MAILBOX_COMMAND_ROLLBACK:
        return rollback;
    case NPU_MAILBOX_COMMAND_RESET:
        return reset;
    default:
        return NULL;
    }
}

static bool is_length_allowed(uint32_t command, uint32_t length)
{
    switch (command) {
#define ALLOWS(known, shortest, longest) \
    case known:                          \
        return length - (shortest) <= (longest) - (shortest);
        NPU_REQUEST_BODIES(ALLOWS)
#undef ALLOWS
    default:
        return false;
    }
}

static uint32_t handle(const struct message *request, struct message *answer)
{
    uint32_t count = request->head.body_bytes;
    handler *handle_command = handler_of(request->head.command);
    uint32_t result;

    if (!handle_command) {
        return NPU_MAILBOX_RESULT_UNKNOWN_COMMAND;
    }
    if (!is_length_allowed(request->head.command, count)) {
        return NPU_MAILBOX_RESULT_BAD_LENGTH;
    }
    result = handle_command(&request->body, &answer->body, &count);
    answer->head.body_bytes = (uint16_t)(result == OK ? count : 0);
    return result;
}

/* Of a message with such a body, in whole words: the window's registers are slow, so no more of them are touched. */
static uint32_t message_bytes(uint32_t body_bytes)
{
    uint32_t count = body_bytes < sizeof(union body) ? body_bytes : sizeof(union body);

    return (sizeof(struct npu_mailbox_request) + count + sizeof(uint32_t) - 1) & ~(sizeof(uint32_t) - 1);
}

void mailbox_service(void)
{
    static struct message request;
    static struct message answer;
    uint32_t result;

    if (!mailbox_request_waits()) {
        return;
    }
    mailbox_read(&request.head, sizeof request.head);
    mailbox_read(&request, message_bytes(request.head.body_bytes));
    answer.head = (struct npu_mailbox_request){.command = request.head.command, .sequence = request.head.sequence};
    result = handle(&request, &answer);
    /* Registers are words; what a body lacks to its last word is zeros. */
    memset(answer.body.bytes + answer.head.body_bytes, 0, sizeof answer.body.bytes - answer.head.body_bytes);
    mailbox_answer(result, &answer, message_bytes(answer.head.body_bytes));
    if (reset_is_due) {
        boot_request_reset();
    }
}
