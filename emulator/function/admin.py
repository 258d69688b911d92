"""Admin commands: identify, queues, shadow doorbells, log pages, programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from driver_shim.protocol import ring
from driver_shim.protocol.commands import (
    ADMIN_QUEUE_ID,
    COMPLETION_BYTES,
    CONFIGURE_SHADOWS,
    CREATE_QUEUE,
    DELETE_QUEUE,
    GET_LOG_PAGE,
    IDENTIFY,
    IDENTIFY_DATA,
    LINE_BYTES,
    LOAD_PROGRAM,
    MAX_IO_QUEUES,
    MAX_QUEUE_ENTRIES,
    MIN_QUEUE_ENTRIES,
    QUEUE_ALIGNMENT,
    SUBMISSION_BYTES,
    UNLOAD_PROGRAM,
    AdminOpcode,
    FaultSource,
    LogPage,
    Status,
)
from emulator.function.jobs import CommandError, Machine, dma_error, host_range, refuse_reserved
from emulator.function.queue_pair import Mapped, QueuePair
from emulator.host_memory.address_space import AddressSpace, DmaFault

if TYPE_CHECKING:
    from emulator.function.controller import Controller

MAX_LOG_BYTES = 1 << 20
"""Longest piece of a log page that one command reads."""


def shareable(space: AddressSpace, iova: int, size: int, what: str) -> memoryview:
    """A view of host memory that both sides map. Raises CommandError(NOT_SHAREABLE) elsewhere."""
    try:
        return space.view(iova, size, write=True)
    except DmaFault as fault:
        raise _not_shareable(fault, iova, what) from fault


def _not_shareable(fault: DmaFault, iova: int, what: str) -> CommandError:
    return CommandError(Status.NOT_SHAREABLE, f"{what}: {fault}", address=iova, source=FaultSource.DMA)


def queue_size(entries: int, what: str) -> None:
    """Raise CommandError unless `entries` is a power of two within the limits."""
    if not ring.is_power_of_two(entries) or not MIN_QUEUE_ENTRIES <= entries <= MAX_QUEUE_ENTRIES:
        raise CommandError(
            Status.INVALID_QUEUE_SIZE,
            f"{what}: {entries} entries; a power of two from {MIN_QUEUE_ENTRIES} to {MAX_QUEUE_ENTRIES} is needed",
        )


def page_aligned(address: int, what: str) -> None:
    """Raise CommandError unless `address` begins a page."""
    if address % QUEUE_ALIGNMENT:
        raise CommandError(
            Status.MISALIGNED, f"{what}: {address:#x} is not a multiple of {QUEUE_ALIGNMENT}", address=address
        )


def open_rings(
    space: AddressSpace,
    queue_id: int,
    bases: tuple[int, int],
    entries: tuple[int, int],
    vector: int,
    shadows: tuple[int, int] | None,
) -> QueuePair:
    """Build the device side of a queue pair. Raises CommandError for any wrong address or size."""
    names = (f"submission ring of queue {queue_id}", f"completion ring of queue {queue_id}")
    for name, base, count in zip(names, bases, entries, strict=True):
        queue_size(count, name)
        page_aligned(base, name)

    def resolve() -> Mapped:
        host_line = device_line = None
        if shadows is not None:
            at = queue_id * LINE_BYTES
            host_line = shareable(space, shadows[0] + at, LINE_BYTES, "shadow doorbells")
            device_line = shareable(space, shadows[1] + at, LINE_BYTES, "event indices")
        return Mapped(
            shareable(space, bases[0], entries[0] * SUBMISSION_BYTES, names[0]),
            shareable(space, bases[1], entries[1] * COMPLETION_BYTES, names[1]),
            host_line,
            device_line,
        )

    return QueuePair(queue_id, resolve, *entries, vector, bases)


class AdminCommands:
    """Executes admin commands on behalf of a controller."""

    def __init__(
        self,
        controller: Controller,
        machine: Machine,
        identify: Callable[[], bytes],
        log_page: Callable[[int], bytes],
    ) -> None:
        self._controller = controller
        self._machine = machine
        self._identify_data = identify
        self._log_page = log_page
        self._shadows: tuple[int, int] | None = None
        self._table = {
            AdminOpcode.IDENTIFY: self._identify,
            AdminOpcode.CREATE_QUEUE: self._create_queue,
            AdminOpcode.DELETE_QUEUE: self._delete_queue,
            AdminOpcode.CONFIGURE_SHADOWS: self._configure_shadows,
            AdminOpcode.GET_LOG_PAGE: self._get_log_page,
            AdminOpcode.LOAD_PROGRAM: self._load_program,
            AdminOpcode.UNLOAD_PROGRAM: self._unload_program,
        }

    def clear(self) -> None:
        """Forget what admin commands configured (controller disabled)."""
        self._shadows = None

    def execute(self, opcode: int, entry: bytes) -> int:
        """Carry one command out; returns its 64-bit result. Raises CommandError."""
        try:
            handler = self._table[AdminOpcode(opcode)]
        except ValueError:
            raise CommandError(Status.INVALID_OPCODE, f"admin opcode {opcode:#04x} does not exist") from None
        return handler(entry)

    def _identify(self, entry: bytes) -> int:
        refuse_reserved(IDENTIFY, entry)
        *_, destination, size = IDENTIFY.codec.unpack(entry)
        if size != IDENTIFY_DATA.size:
            raise CommandError(Status.INVALID_FIELD, f"identify: {size} bytes asked for; it is {IDENTIFY_DATA.size}")
        self._send(destination, self._identify_data(), "identify")
        return 0

    def _create_queue(self, entry: bytes) -> int:
        refuse_reserved(CREATE_QUEUE, entry)
        fields: tuple[int, ...] = CREATE_QUEUE.codec.unpack(entry)
        *_, sq_base, cq_base, sq_entries, cq_entries, queue_id, vector = fields
        if not 1 <= queue_id <= MAX_IO_QUEUES:
            raise CommandError(Status.INVALID_QUEUE, f"queue {queue_id}; I/O queues are 1 to {MAX_IO_QUEUES}")
        if queue_id in self._controller.queues:
            raise CommandError(Status.QUEUE_EXISTS, f"queue {queue_id} exists; delete it first")
        if vector > MAX_IO_QUEUES:
            raise CommandError(Status.INVALID_VECTOR, f"vector {vector}; there are {MAX_IO_QUEUES + 1}")
        space = self._machine.address_space
        queue = open_rings(space, queue_id, (sq_base, cq_base), (sq_entries, cq_entries), vector, self._shadows)
        self._controller.add_queue(queue)
        return queue_id

    def _delete_queue(self, entry: bytes) -> int:
        refuse_reserved(DELETE_QUEUE, entry)
        queue_id: int = DELETE_QUEUE.codec.unpack(entry)[-1]
        if queue_id == ADMIN_QUEUE_ID or queue_id not in self._controller.queues:
            raise CommandError(Status.INVALID_QUEUE, f"queue {queue_id} is no I/O queue that exists")
        self._controller.remove_queue(queue_id)
        return 0

    def _configure_shadows(self, entry: bytes) -> int:
        refuse_reserved(CONFIGURE_SHADOWS, entry)
        *_, shadows, events = CONFIGURE_SHADOWS.codec.unpack(entry)
        size = (MAX_IO_QUEUES + 1) * LINE_BYTES
        for address, what in ((shadows, "shadow doorbells"), (events, "event indices")):
            page_aligned(address, what)
            shareable(self._machine.address_space, address, size, what)
        self._shadows = (shadows, events)
        return 0

    def _get_log_page(self, entry: bytes) -> int:
        """The result is the size of the whole page; only the bytes that exist are written."""
        refuse_reserved(GET_LOG_PAGE, entry)
        *_, destination, size, page, offset = GET_LOG_PAGE.codec.unpack(entry)
        try:
            whole = self._log_page(LogPage(page))
        except ValueError:
            raise CommandError(Status.INVALID_LOG_PAGE, f"log page {page} does not exist") from None
        if size > MAX_LOG_BYTES:
            raise CommandError(Status.INVALID_FIELD, f"log page: {size} bytes asked for; at most {MAX_LOG_BYTES}")
        self._send(destination, whole[offset : offset + size], "log page")
        return len(whole)

    def _load_program(self, entry: bytes) -> int:
        refuse_reserved(LOAD_PROGRAM, entry)
        *_, source, size, constants = LOAD_PROGRAM.codec.unpack(entry)
        programs = self._controller.programs
        programs.check_size(size)
        try:
            image = self._machine.address_space.snapshot(source, size)
        except DmaFault as fault:
            raise _not_shareable(fault, source, "program") from fault
        return programs.load(image, constants)

    def _unload_program(self, entry: bytes) -> int:
        refuse_reserved(UNLOAD_PROGRAM, entry)
        self._controller.programs.unload(UNLOAD_PROGRAM.codec.unpack(entry)[-1])
        return 0

    def _send(self, iova: int, data: bytes, what: str) -> None:
        host_range(self._machine, iova, len(data), write=True, what=what)
        try:
            self._machine.address_space.write(iova, data)
        except DmaFault as fault:
            raise dma_error(fault, what) from fault
