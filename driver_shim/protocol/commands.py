"""Submission and completion entries, statuses, identify data and log pages: the command contract.

Facts only. The queue model is NVMe's (NVM Express Base 2.0, 3.3): an admin queue pair, then I/O queue pairs
created by admin commands. Reserved bytes and flags must be zero; a device refuses others with `INVALID_FIELD`.
"""

from __future__ import annotations

import enum

from driver_shim.protocol.layout import Layout, raw, reserved, u8, u16, u32, u64, union_dtype
from driver_shim.protocol.slugs import slug, slug_of

SUBMISSION_BYTES = 64
COMPLETION_BYTES = 32
ADMIN_QUEUE_ID = 0
COMMAND_ID_MASK = 0xFFFF
"""Command ids are 16 bits: the low ones of the submission index."""

MIN_QUEUE_ENTRIES = 2
MAX_QUEUE_ENTRIES = 8192
MAX_IO_QUEUES = 31
"""One MSI-X vector and one doorbell page each, beside the admin queue."""
QUEUE_ALIGNMENT = 4096
"""Rings begin on a page."""

MAX_BINDINGS = 256
PATTERN_SIZES = (1, 2, 4, 8)


class IoOpcode(enum.IntEnum):
    """What an I/O queue can be asked to do."""

    NOP = 0x00
    COPY = 0x01
    FILL = 0x02
    EXEC = 0x03
    BARRIER = 0x04


class AdminOpcode(enum.IntEnum):
    """What the admin queue can be asked to do."""

    IDENTIFY = 0x80
    CREATE_QUEUE = 0x81
    DELETE_QUEUE = 0x82
    CONFIGURE_SHADOWS = 0x83
    GET_LOG_PAGE = 0x84
    LOAD_PROGRAM = 0x85
    UNLOAD_PROGRAM = 0x86
    GET_PROGRAM_REPORT = 0x87


class Space(enum.IntEnum):
    """Which memory an address of a command means."""

    HOST = 0
    """A bus address (IOVA) that the host has mapped."""
    DEVICE = 1
    """An offset into the function's device memory."""


class Status(enum.IntEnum):
    """Completion statuses. 0x00 is success; each other value has one cause."""

    SUCCESS = 0x00
    INVALID_OPCODE = 0x01
    INVALID_FIELD = 0x02
    """A reserved byte or flag is set, or a field holds a value outside its declared set."""
    INVALID_CONTEXT = 0x03
    DMA_FAULT = 0x04
    """A bus address is not mapped, not writable, or the host failed to answer for it."""
    DEVICE_ADDRESS_FAULT = 0x05
    """A device address lies outside device memory."""
    INVALID_QUEUE = 0x06
    QUEUE_EXISTS = 0x07
    INVALID_QUEUE_SIZE = 0x08
    INVALID_VECTOR = 0x09
    MISALIGNED = 0x0A
    NOT_SHAREABLE = 0x0B
    """Rings, shadows and programs must lie in mappings that carry a file sealed against shrinking."""
    INVALID_LOG_PAGE = 0x0C
    PROGRAM_REJECTED = 0x10
    """The container is malformed or fails verification; the error log says why."""
    INVALID_PROGRAM = 0x11
    """No program of this handle is loaded."""
    BINDING_MISMATCH = 0x12
    """Number, size, alignment or place of the bound buffers is not what the program declares."""
    PROGRAM_LIMIT = 0x13
    """No more programs can be loaded."""
    VALUE_OUT_OF_RANGE = 0x20
    """An int64 tensor received a value that does not fit 32 bits."""
    INDEX_OUT_OF_RANGE = 0x21
    DIVISION_BY_ZERO = 0x22
    EXECUTION_FAULT = 0x23
    """A program's command failed for another reason; the error log names it."""
    ENGINE_LOST = 0x30
    """What ran the program, or verified it, died; its results were discarded."""
    QUEUE_CORRUPT = 0x40
    """A tail or head pointer left the range the ring allows; the queue is halted."""
    INTERNAL = 0x7F

    @property
    def slug(self) -> str:
        """Stable kebab-case name, as in `CommandFailed.code`."""
        return slug(self)


DATA_FAULTS = frozenset(
    {Status.VALUE_OUT_OF_RANGE, Status.INDEX_OUT_OF_RANGE, Status.DIVISION_BY_ZERO, Status.EXECUTION_FAULT}
)
"""With these an exec ends by the data of one of its program's commands: the completion's result is its position."""


def status_slug(value: int) -> str:
    """`Status.slug` of a status byte, also for values this version does not know."""
    return slug_of(Status, value, f"status-{value:#04x}")


def _submission(name: str, *fields: object) -> Layout:
    """A submission entry: the common 8 bytes, then what the command needs."""
    return Layout(name, SUBMISSION_BYTES, "opcode" / u8, "flags" / u8, "command_id" / u16, "context" / u32, *fields)


NOP = _submission("nop", reserved(56))
BARRIER = _submission("barrier", reserved(56))
COPY = _submission(
    "copy",
    "destination" / u64,
    "source" / u64,
    "size" / u64,
    "destination_space" / u8,
    "source_space" / u8,
    reserved(30),
)
FILL = _submission(
    "fill",
    "destination" / u64,
    reserved(8),
    "size" / u64,
    "destination_space" / u8,
    reserved(1),
    "pattern_size" / u8,
    reserved(5),
    "pattern" / u64,
    reserved(16),
)
EXEC = _submission(
    "exec",
    reserved(24),
    "entry" / u32,
    reserved(4),
    "program" / u32,
    "binding_count" / u32,
    "bindings" / u64,
    "workspace" / u64,
)
"""`entry`: which of the program's entry points, counted from 0. `bindings`: bus address of `binding_count` BINDING
entries: inputs, outputs, then states. `workspace`: device address of the entry point's `workspace_bytes`; its contents
are undefined afterwards."""

IDENTIFY = _submission("identify", "destination" / u64, "size" / u64, reserved(40))
CREATE_QUEUE = _submission(
    "create_queue",
    "submission_base" / u64,
    "completion_base" / u64,
    "submission_entries" / u32,
    "completion_entries" / u32,
    "queue" / u16,
    "vector" / u16,
    reserved(28),
)
DELETE_QUEUE = _submission("delete_queue", reserved(24), "queue" / u16, reserved(30))
CONFIGURE_SHADOWS = _submission("configure_shadows", "shadows" / u64, "events" / u64, reserved(40))
"""Two arrays of MAX_IO_QUEUES + 1 lines: HOST_LINE at `shadows`, DEVICE_LINE at `events`. Applies to queues
created afterwards; the admin queue always uses its doorbell."""
GET_LOG_PAGE = _submission(
    "get_log_page", "destination" / u64, "size" / u64, "page" / u8, reserved(7), "offset" / u64, reserved(24)
)
LOAD_PROGRAM = _submission(
    "load_program", "source" / u64, "size" / u64, "constants" / u64, "constant_count" / u32, reserved(28)
)
"""`source`: bus address of the container. `constants`: bus address of `constant_count` BINDING entries: where in device
memory each constant of its tensor table lies, in order. They are there before the first exec and do not change while
the program is loaded, since an engine may keep them in a form of its own. Both lie in shareable mappings. The result is
the program's handle."""
UNLOAD_PROGRAM = _submission("unload_program", reserved(24), "program" / u32, reserved(28))
GET_PROGRAM_REPORT = _submission(
    "get_program_report", "destination" / u64, "size" / u64, "program" / u32, reserved(4), "offset" / u64, reserved(24)
)
"""A COMMAND_RUN for each command of the program's newest successful run, from byte `offset` on; none before one. The
result is the size of the whole report."""
KERNEL_NAME_BYTES = 40
COMMAND_RUN = Layout("command_run", 48, "wall_ns" / u64, "kernel" / raw(KERNEL_NAME_BYTES))
"""`kernel`: zero-padded UTF-8, provider and kind ("golden.softmax"); `wall_ns`: how long it ran on the host's clock."""

IO_COMMANDS: dict[IoOpcode, Layout] = {
    IoOpcode.NOP: NOP,
    IoOpcode.COPY: COPY,
    IoOpcode.FILL: FILL,
    IoOpcode.EXEC: EXEC,
    IoOpcode.BARRIER: BARRIER,
}
ADMIN_COMMANDS: dict[AdminOpcode, Layout] = {
    AdminOpcode.IDENTIFY: IDENTIFY,
    AdminOpcode.CREATE_QUEUE: CREATE_QUEUE,
    AdminOpcode.DELETE_QUEUE: DELETE_QUEUE,
    AdminOpcode.CONFIGURE_SHADOWS: CONFIGURE_SHADOWS,
    AdminOpcode.GET_LOG_PAGE: GET_LOG_PAGE,
    AdminOpcode.LOAD_PROGRAM: LOAD_PROGRAM,
    AdminOpcode.UNLOAD_PROGRAM: UNLOAD_PROGRAM,
    AdminOpcode.GET_PROGRAM_REPORT: GET_PROGRAM_REPORT,
}

DESCRIPTOR = union_dtype(SUBMISSION_BYTES, list(IO_COMMANDS.values()))
"""numpy dtype of one I/O submission entry, with the fields of every I/O command."""

COMPLETION = Layout(
    "completion",
    COMPLETION_BYTES,
    "submission_head" / u32,
    "command_id" / u16,
    "status" / u8,
    "phase" / u8,
    "result" / u64,
    "start_tick" / u64,
    "end_tick" / u64,
)
PHASE_OFFSET = COMPLETION.offset_of("phase")

BINDING = Layout("binding", 16, "address" / u64, "size" / u64)

LINE_BYTES = 64
HOST_LINE = Layout("host_line", LINE_BYTES, "sq_tail" / u32, "cq_head" / u32, "interrupt_index" / u32, reserved(52))
"""Shadow doorbells of one queue, written by the host only (a cache line of its own)."""
DEVICE_LINE = Layout("device_line", LINE_BYTES, "sq_event" / u32, "cq_event" / u32, reserved(56))
"""Event indices of one queue, written by the device only."""
_WORD_BYTES = 4
SQ_TAIL_WORD = HOST_LINE.offset_of("sq_tail") // _WORD_BYTES
"""Positions within a line that is read as 32-bit words, as both sides do."""
CQ_HEAD_WORD = HOST_LINE.offset_of("cq_head") // _WORD_BYTES
INTERRUPT_INDEX_WORD = HOST_LINE.offset_of("interrupt_index") // _WORD_BYTES
SQ_EVENT_WORD = DEVICE_LINE.offset_of("sq_event") // _WORD_BYTES
CQ_EVENT_WORD = DEVICE_LINE.offset_of("cq_event") // _WORD_BYTES

IDENTIFY_DATA = Layout(
    "identify_data",
    512,
    "contract_major" / u16,
    "contract_minor" / u16,
    "silicon_revision" / u32,
    "features" / u64,
    "serial" / raw(32),
    "profile" / raw(32),
    "firmware" / raw(32),
    "kernels" / raw(16),
    "memory_bytes" / u64,
    "tick_hertz" / u64,
    "max_queue_entries" / u32,
    "max_io_queues" / u32,
    "engines" / u32,
    "max_programs" / u32,
    "max_bindings" / u32,
    "emulated" / u8,
    reserved(3),
    "max_program_bytes" / u64,
    reserved(336),
)


class LogPage(enum.IntEnum):
    """Pages of GET_LOG_PAGE."""

    ERRORS = 1
    """ERROR_LOG: the newest ERROR_LOG_ENTRIES errors, newest first."""
    ACTIVITY = 2
    """ACTIVITY_LOG: what the device has done since power-on."""
    BLACK_BOX = 3
    """BLACK_BOX, BLACK_BOX_QUEUE entries, descriptors, completions, error log: what the last reset saved."""


ERROR_LOG_ENTRIES = 64
ERROR_MESSAGE_BYTES = 168


class FaultSource(enum.IntEnum):
    """Which part of the device an error-log entry comes from."""

    COMMAND = 1
    REGISTER = 2
    APERTURE = 3
    DMA = 4
    QUEUE = 5
    ENGINE = 6
    CLIENT = 7
    CONFIG = 8


ERROR_ENTRY = Layout(
    "error_entry",
    224,
    "sequence" / u64,
    "tick" / u64,
    "wall_nanoseconds" / u64,
    "address" / u64,
    "count" / u32,
    "source" / u8,
    "status" / u8,
    "opcode" / u8,
    reserved(1),
    "queue" / u16,
    "command_id" / u16,
    "command_index" / u32,
    reserved(8),
    "message" / raw(ERROR_MESSAGE_BYTES),
)
ERROR_LOG_HEADER = Layout("error_log_header", 32, "total" / u64, "entries" / u32, reserved(20))

ACTIVITY_LOG = Layout(
    "activity_log",
    128,
    "commands" / u64,
    "failed_commands" / u64,
    "nop_commands" / u64,
    "copy_commands" / u64,
    "fill_commands" / u64,
    "exec_commands" / u64,
    "barrier_commands" / u64,
    "admin_commands" / u64,
    "bytes_copied" / u64,
    "bytes_filled" / u64,
    "program_commands" / u64,
    "doorbells" / u64,
    "interrupts" / u64,
    "resets" / u64,
    "busy_ticks" / u64,
    "fast_program_commands" / u64,
)
"""Counters since power-on. `program_commands`: commands inside executed programs, `fast_program_commands` those
that a fast kernel ran; the others ran golden kernels."""

BLACK_BOX_ENTRIES = 32


class ResetCause(enum.IntEnum):
    """Why the function was last reset."""

    POWER_ON = 0
    CONTROLLER_DISABLE = 1
    FLR = 2
    DEVICE_RESET = 3
    CLIENT_LOST = 4
    FATAL = 5


BLACK_BOX = Layout(
    "black_box",
    64,
    "present" / u32,
    "cause" / u32,
    "tick" / u64,
    "wall_nanoseconds" / u64,
    "register_bytes" / u32,
    "queue_count" / u32,
    "descriptor_count" / u32,
    "completion_count" / u32,
    "error_count" / u32,
    reserved(20),
)
"""Then follow: `register_bytes` of BAR0, BLACK_BOX_QUEUE × queue_count, BLACK_BOX_DESCRIPTOR ×
descriptor_count, BLACK_BOX_COMPLETION × completion_count (both oldest first), ERROR_ENTRY × error_count."""
BLACK_BOX_QUEUE = Layout(
    "black_box_queue",
    64,
    "queue" / u16,
    "state" / u16,
    "submission_entries" / u32,
    "completion_entries" / u32,
    "sq_head" / u32,
    "sq_tail" / u32,
    "cq_head" / u32,
    "cq_tail" / u32,
    "vector" / u32,
    "submission_base" / u64,
    "completion_base" / u64,
    reserved(16),
)
BLACK_BOX_DESCRIPTOR = Layout(
    "black_box_descriptor", 72, "queue" / u16, reserved(6), "descriptor" / raw(SUBMISSION_BYTES)
)
BLACK_BOX_COMPLETION = Layout(
    "black_box_completion", 40, "queue" / u16, reserved(6), "completion" / raw(COMPLETION_BYTES)
)

ALL_LAYOUTS: tuple[Layout, ...] = (
    *IO_COMMANDS.values(),
    *ADMIN_COMMANDS.values(),
    COMPLETION,
    BINDING,
    COMMAND_RUN,
    HOST_LINE,
    DEVICE_LINE,
    IDENTIFY_DATA,
    ERROR_ENTRY,
    ERROR_LOG_HEADER,
    ACTIVITY_LOG,
    BLACK_BOX,
    BLACK_BOX_QUEUE,
    BLACK_BOX_DESCRIPTOR,
    BLACK_BOX_COMPLETION,
)
