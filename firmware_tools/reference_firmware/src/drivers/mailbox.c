#include "drivers/mailbox.h"

#include "drivers/mmio.h"

bool mailbox_request_waits(void)
{
    return FIELD_OF(mmio_read(REGISTER(MAILBOX, REQUEST)), MAILBOX_REQUEST_PENDING);
}

void mailbox_read(void *bytes, uint32_t count)
{
    mmio_read_bytes(REGISTER(MAILBOX, DATA), bytes, count);
}

void mailbox_answer(uint32_t result, const void *bytes, uint32_t count)
{
    mmio_write_bytes(REGISTER(MAILBOX, DATA), bytes, count);
    mmio_write(REGISTER(MAILBOX, ANSWER), FIELD(MAILBOX_ANSWER_RESULT, result) | FIELD(MAILBOX_ANSWER_DONE, 1));
}
