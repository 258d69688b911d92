"""Admin commands: identify, queues, shadow doorbells, log pages, programs."""

from __future__ import annotations

from collections.abc import Callable

from driver_shim.protocol.commands import (
    ADMIN_QUEUE_ID,
    BINDING,
    CONFIGURE_SHADOWS,
    CREATE_QUEUE,
    DELETE_QUEUE,
    GET_LOG_PAGE,
    GET_PROGRAM_REPORT,
    IDENTIFY,
    IDENTIFY_DATA,
    LINE_BYTES,
    LOAD_PROGRAM,
    MAX_IO_QUEUES,
    UNLOAD_PROGRAM,
    AdminOpcode,
    LogPage,
    Status,
)
from emulator.function.command_error import CommandError, check_host_range, dma_error, refuse_reserved
from emulator.function.jobs.load import LoadJob
from emulator.function.programs import Programs
from emulator.function.queue_table import QueueTable
from emulator.function.records import Records
from emulator.function.rings import check_page_aligned, not_shareable, open_rings, shareable
from emulator.host_memory.address_space import AddressSpace, DmaFault

MAX_LOG_BYTES = 1 << 20
"""Longest piece of a log page that one command reads."""


class AdminCommands:
    """Executes admin commands: what they create and delete is in `queues` and `programs`."""

    def __init__(
        self, space: AddressSpace, queues: QueueTable, programs: Programs, records: Records, load_ticks: int
    ) -> None:
        self._space = space
        self._queues = queues
        self._programs = programs
        self._records = records
        self._load_ticks = load_ticks
        self._shadows: tuple[int, int] | None = None
        self._table: dict[AdminOpcode, Callable[[bytes], int | LoadJob]] = {
            AdminOpcode.IDENTIFY: self._identify,
            AdminOpcode.CREATE_QUEUE: self._create_queue,
            AdminOpcode.DELETE_QUEUE: self._delete_queue,
            AdminOpcode.CONFIGURE_SHADOWS: self._configure_shadows,
            AdminOpcode.GET_LOG_PAGE: self._get_log_page,
            AdminOpcode.LOAD_PROGRAM: self._load_program,
            AdminOpcode.UNLOAD_PROGRAM: self._unload_program,
            AdminOpcode.GET_PROGRAM_REPORT: self._get_program_report,
        }

    def clear(self) -> None:
        """Forget what admin commands configured (controller disabled)."""
        self._shadows = None

    def execute(self, opcode: int, entry: bytes) -> int | LoadJob:
        """Carry one command out; returns its 64-bit result, or what goes on with it. Raises CommandError."""
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
        self._send(destination, self._records.identify(), "identify")
        return 0

    def _create_queue(self, entry: bytes) -> int:
        refuse_reserved(CREATE_QUEUE, entry)
        fields: tuple[int, ...] = CREATE_QUEUE.codec.unpack(entry)
        *_, sq_base, cq_base, sq_entries, cq_entries, queue_id, vector = fields
        if not 1 <= queue_id <= MAX_IO_QUEUES:
            raise CommandError(Status.INVALID_QUEUE, f"queue {queue_id}; I/O queues are 1 to {MAX_IO_QUEUES}")
        if queue_id in self._queues.by_id:
            raise CommandError(Status.QUEUE_EXISTS, f"queue {queue_id} exists; delete it first")
        if vector > MAX_IO_QUEUES:
            raise CommandError(Status.INVALID_VECTOR, f"vector {vector}; there are {MAX_IO_QUEUES + 1}")
        bases, entries = (sq_base, cq_base), (sq_entries, cq_entries)
        self._queues.add(open_rings(self._space, queue_id, bases, entries, vector, self._shadows))
        return queue_id

    def _delete_queue(self, entry: bytes) -> int:
        refuse_reserved(DELETE_QUEUE, entry)
        queue_id: int = DELETE_QUEUE.codec.unpack(entry)[-1]
        if queue_id == ADMIN_QUEUE_ID or queue_id not in self._queues.by_id:
            raise CommandError(Status.INVALID_QUEUE, f"queue {queue_id} is no I/O queue that exists")
        self._queues.remove(queue_id)
        return 0

    def _configure_shadows(self, entry: bytes) -> int:
        refuse_reserved(CONFIGURE_SHADOWS, entry)
        *_, shadows, events = CONFIGURE_SHADOWS.codec.unpack(entry)
        size = (MAX_IO_QUEUES + 1) * LINE_BYTES
        for address, what in ((shadows, "shadow doorbells"), (events, "event indices")):
            check_page_aligned(address, what)
            shareable(self._space, address, size, what)
        self._shadows = (shadows, events)
        return 0

    def _get_log_page(self, entry: bytes) -> int:
        """The result is the size of the whole page; only the bytes that exist are written."""
        refuse_reserved(GET_LOG_PAGE, entry)
        *_, destination, size, page, offset = GET_LOG_PAGE.codec.unpack(entry)
        try:
            whole = self._records.log_page(LogPage(page))
        except ValueError:
            raise CommandError(Status.INVALID_LOG_PAGE, f"log page {page} does not exist") from None
        if size > MAX_LOG_BYTES:
            raise CommandError(Status.INVALID_FIELD, f"log page: {size} bytes asked for; at most {MAX_LOG_BYTES}")
        self._send(destination, whole[offset : offset + size], "log page")
        return len(whole)

    def _load_program(self, entry: bytes) -> LoadJob:
        refuse_reserved(LOAD_PROGRAM, entry)
        *_, source, size, constants, count = LOAD_PROGRAM.codec.unpack(entry)
        self._programs.check_size(size, count)
        image = self._snapshot(source, size, "program")
        table = self._snapshot(constants, count * BINDING.size, "constants' table") if count else b""
        return LoadJob(self._programs, image, list(BINDING.codec.iter_unpack(table)), self._load_ticks)

    def _snapshot(self, source: int, size: int, what: str) -> bytes:
        try:
            return self._space.snapshot(source, size)
        except DmaFault as fault:
            raise not_shareable(fault, source, what) from fault

    def _unload_program(self, entry: bytes) -> int:
        refuse_reserved(UNLOAD_PROGRAM, entry)
        self._programs.unload(UNLOAD_PROGRAM.codec.unpack(entry)[-1])
        return 0

    def _get_program_report(self, entry: bytes) -> int:
        """As for log pages: the result is the size of all of it; only the bytes that exist are written."""
        refuse_reserved(GET_PROGRAM_REPORT, entry)
        *_, destination, size, handle, offset = GET_PROGRAM_REPORT.codec.unpack(entry)
        whole = self._programs.report(handle)
        if size > MAX_LOG_BYTES:
            raise CommandError(Status.INVALID_FIELD, f"report: {size} bytes asked for; at most {MAX_LOG_BYTES}")
        check_host_range(self._space, destination, size, write=True, what="program report")
        self._send(destination, whole[offset : offset + size], "program report")
        return len(whole)

    def _send(self, iova: int, data: bytes, what: str) -> None:
        check_host_range(self._space, iova, len(data), write=True, what=what)
        try:
            self._space.write(iova, data)
        except DmaFault as fault:
            raise dma_error(fault, what) from fault
