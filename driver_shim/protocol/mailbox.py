"""Requests and answers between host and firmware through the mailbox (protocol 1).

A request is a header and a body in the mailbox's data window; the answer takes its place, and `mailbox_status.result`
says how it went. The mailbox never changes from contract 1.0 on.
"""

from __future__ import annotations

import enum

from driver_shim.protocol.layout import Layout, array, raw, reserved, u8, u16, u32, u64

MAILBOX_VERSION = 1
MAILBOX_BYTES = 256
"""The data window."""


class MailboxState(enum.IntEnum):
    """`mailbox_status.state`."""

    IDLE = 0
    BUSY = 1
    """The firmware has the request."""
    DONE = 2
    """The answer is in the window."""
    ABSENT = 3
    """There is no management core to answer, or it is held or lost."""


class MailboxCommand(enum.IntEnum):
    """What can be asked."""

    PING = 0x01
    """Gives the body back."""
    INFO = 0x02
    SLOT_INFO = 0x03
    SENSORS = 0x04
    LOG_READ = 0x05
    STAGE_WRITE = 0x10
    UPDATE_BEGIN = 0x11
    UPDATE_STATUS = 0x12
    UPDATE_ABORT = 0x13
    CONFIRM = 0x14
    ROLLBACK = 0x15
    """Has the other slot's image run from the next reset on; withdraws its trial when that has not begun yet."""
    RESET = 0x16
    """Answers first, then resets the core."""


class MailboxResult(enum.IntEnum):
    """`mailbox_status.result`, and why an update failed."""

    OK = 0
    UNKNOWN_COMMAND = 1
    BAD_LENGTH = 2
    """The body is not as long as the command takes."""
    BAD_ARGUMENT = 3
    BUSY = 4
    """An update is going on."""
    TOO_LARGE = 5
    """The image does not fit the slot."""
    BAD_FORMAT = 6
    """Not an image, or one of a kind that this device does not boot."""
    BAD_HASH = 7
    BAD_SIGNATURE = 8
    UNKNOWN_KEY = 9
    """Signed with a key that is not the device's."""
    NO_HARDWARE_ID = 10
    """The image does not say which hardware it is for, and that was not allowed."""
    WRONG_HARDWARE = 11
    ROLLED_BACK = 12
    """Its security counter is below the device's."""
    DMA_FAULT = 13
    """Host memory could not be read."""
    CHANGED = 14
    """What was read the second time is not what was verified."""
    FLASH_FAULT = 15
    """Flash does not read back as written."""
    NOT_ON_TRIAL = 16
    """There is nothing to confirm."""
    NO_OTHER_IMAGE = 17
    """The other slot holds nothing that could be booted."""
    ABORTED = 18
    NOT_STAGED = 19
    """Bytes of the image are missing in the staging memory."""
    UNCONFIRMED = 20
    """The running image is on trial: the other slot is the only fall-back and stays."""
    CORE_RESET = 21
    """The core was reset before it had answered."""
    UNTRIED = 22
    """The image in the other slot failed its trial, or was never confirmed: it would run without a fall-back."""


class UpdateState(enum.IntEnum):
    """`update_status.state`."""

    NONE = 0
    """No update since the core started."""
    VERIFYING = 1
    """Nothing has been written yet."""
    WRITING = 2
    READING_BACK = 3
    DONE = 4
    """Written, verified, and marked for a trial boot."""
    FAILED = 5


class UpdateFlag(enum.IntFlag):
    """`update_begin.flags`."""

    STAGED = 1 << 0
    """The image was staged; else it is read from `address` by DMA."""
    ALLOW_NO_HARDWARE_ID = 1 << 1


REQUEST = Layout("mailbox_request", 8, "command" / u16, "body_bytes" / u16, "sequence" / u32)
"""Heads every request; the answer has the same head, with the length of its own body."""
BODY_BYTES = MAILBOX_BYTES - REQUEST.size
STAGE_BYTES = 240
"""Most that one `STAGE_WRITE` carries."""

INFO = Layout(
    "firmware_info",
    48,
    "protocol" / u16,
    "slot" / u8,
    "on_trial" / u8,
    "version" / u64,
    "build_id" / u32,
    "boot_reason" / u8,
    "throttle" / u8,
    "boots" / u16,
    "uptime_milliseconds" / u64,
    "security_counter" / u32,
    "hardware_id" / u32,
    "log_first" / u32,
    "log_next" / u32,
    reserved(4),
)
"""Answer of `INFO`. `version` is as the image's header has it, `security_counter` is the device's, and `log_*` are the
sequence numbers of the oldest record and of the next one."""
SLOT_QUERY = Layout("slot_query", 4, "slot" / u8, reserved(3))
SLOT_INFO = Layout(
    "slot_info",
    64,
    "slot" / u8,
    "valid" / u8,
    "confirmed" / u8,
    "trial" / u8,
    "failed" / u8,
    "result" / u8,
    "proven" / u8,
    reserved(1),
    "version" / u64,
    "image_bytes" / u32,
    "security_counter" / u32,
    "build_id" / u32,
    reserved(4),
    "hash" / raw(32),
)
"""Answer of `SLOT_INFO`. `result` is a MailboxResult that says why `valid` is 0; an empty slot has `image_bytes` 0.
`proven` is 1 when the slot's image was confirmed since it was written."""
SENSORS = Layout(
    "sensor_readings",
    24,
    "temperature_millicelsius" / u32,
    "power_milliwatts" / u32,
    "voltage_millivolts" / u32,
    "throttle" / u32,
    "updates" / u32,
    reserved(4),
)
"""Answer of `SENSORS`. Temperature is a two's complement number."""
LOG_QUERY = Layout("log_query", 4, "first" / u32)
LOG_ANSWER = Layout("log_answer", 8, "next" / u32, "count" / u32)
"""Heads the records: `next` is what to ask for next time."""
LOG_ARGUMENTS = 4
LOG_RECORD = Layout(
    "log_record",
    40,
    "sequence" / u32,
    "build_id" / u32,
    "tick" / u64,
    "token" / u32,
    "level" / u8,
    "argument_count" / u8,
    "boot" / u16,
    "arguments" / array(LOG_ARGUMENTS, u32),
)
"""One record. `token` is where the format string lies in the ELF's `.log_strings`; `boot` counts core resets."""
LOG_RECORDS_AT_ONCE = (BODY_BYTES - LOG_ANSWER.size) // LOG_RECORD.size


class LogLevel(enum.IntEnum):
    """`log_record.level`."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3


STAGE_WRITE = Layout("stage_write", 4, "offset" / u32)
"""Heads the bytes to stage: 1 to STAGE_BYTES of them."""
UPDATE_BEGIN = Layout("update_begin", 16, "address" / u64, "image_bytes" / u32, "flags" / u32)
UPDATE_STATUS = Layout(
    "update_status",
    24,
    "state" / u8,
    "result" / u8,
    "slot" / u8,
    reserved(1),
    "done_bytes" / u32,
    "total_bytes" / u32,
    "kept_bytes" / u32,
    "detail" / u64,
)
"""Answer of `UPDATE_STATUS`. `kept_bytes` were already in the slot and not written again; `detail` is an offset."""

REQUEST_BODIES: dict[MailboxCommand, tuple[int, int]] = {
    MailboxCommand.PING: (0, BODY_BYTES),
    MailboxCommand.INFO: (0, 0),
    MailboxCommand.SLOT_INFO: (SLOT_QUERY.size, SLOT_QUERY.size),
    MailboxCommand.SENSORS: (0, 0),
    MailboxCommand.LOG_READ: (LOG_QUERY.size, LOG_QUERY.size),
    MailboxCommand.STAGE_WRITE: (STAGE_WRITE.size + 1, STAGE_WRITE.size + STAGE_BYTES),
    MailboxCommand.UPDATE_BEGIN: (UPDATE_BEGIN.size, UPDATE_BEGIN.size),
    MailboxCommand.UPDATE_STATUS: (0, 0),
    MailboxCommand.UPDATE_ABORT: (0, 0),
    MailboxCommand.CONFIRM: (0, 0),
    MailboxCommand.ROLLBACK: (0, 0),
    MailboxCommand.RESET: (0, 0),
}
"""Shortest and longest body of each request; anything else is BAD_LENGTH."""

ALL_LAYOUTS = (
    REQUEST, INFO, SLOT_QUERY, SLOT_INFO, SENSORS, LOG_QUERY, LOG_ANSWER, LOG_RECORD, STAGE_WRITE, UPDATE_BEGIN,
    UPDATE_STATUS,
)  # fmt: skip
