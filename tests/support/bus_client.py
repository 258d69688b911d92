"""A bus client without a driver: raw rings, raw entries, doorbells of its own, for tests of the device's contract."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from driver_shim.function.registers import Registers
from driver_shim.protocol import commands as c
from driver_shim.protocol import ring
from driver_shim.protocol.config_space import COMMAND_BUS_MASTER, COMMAND_MEMORY, COMMAND_OFFSET
from driver_shim.protocol.layout import Layout
from driver_shim.protocol.registers import BAR2, CQ_HEAD_DOORBELL, DOORBELL_PAGE_BYTES, SQ_TAIL_DOORBELL
from driver_shim.shared import fences
from driver_shim.transport.base import Transport
from driver_shim.transport.mapping import create_memory_file, map_memory_file
from emulator.host_memory.shared_mappings import JoinedMappings, Piece
from tests.support.time_scale import patience

PATIENCE_S = patience(60.0)
MEMORY_BYTES = 2 << 20
MEMORY_IOVA = 0x1_0000_0000
UNMAPPED_IOVA = 0xDEAD_0000_0000
PAGE_BYTES = 4096
ADMIN_ENTRIES = 16
BOTH = COMMAND_MEMORY | COMMAND_BUS_MASTER
Recorder = Callable[[int, int, int], None]
"""Told (queue, opcode, status) of every completion."""


class RawQueue:
    """Rings in the client's memory; entries are raw bytes. Without `lines` it uses doorbells only."""

    def __init__(
        self, client: BusClient, queue_id: int, entries: int, completion_entries: int, lines: tuple[int, int] | None
    ) -> None:
        self.client = client
        self.queue_id = queue_id
        self.entries, self.completion_entries = entries, completion_entries
        self.submission_iova, self.submissions = client.allocate(entries * c.SUBMISSION_BYTES)
        self.completion_iova, self.completions = client.allocate(completion_entries * c.COMPLETION_BYTES)
        self.host_line = self.device_line = None
        if lines is not None:
            at = queue_id * c.LINE_BYTES
            self.host_line = client.at(lines[0] + at, c.LINE_BYTES).cast("I")
            self.device_line = client.at(lines[1] + at, c.LINE_BYTES).cast("I")
            for at in range(3):  # what a queue of this number left there before
                self.host_line[at] = self.device_line[at] = 0
        self.tail = self.head = 0
        self.opcodes: list[int] = []

    def put(self, *entries: bytes) -> None:
        """Write entries at the tail; the device learns of them by `ring`."""
        for entry in entries:
            at = (self.tail & (self.entries - 1)) * c.SUBMISSION_BYTES
            self.submissions[at : at + c.SUBMISSION_BYTES] = entry
            self.tail = ring.advance(self.tail)
            self.opcodes.append(entry[0])

    def ring(self, tail: int | None = None) -> None:
        """Publish the tail (or any other value): shadow line if there is one, and doorbell."""
        value = self.tail if tail is None else tail
        fences.publish()
        if self.host_line is not None:
            self.host_line[0] = value
            fences.full()
        self.client.bell(self.queue_id, SQ_TAIL_DOORBELL, value)

    def publish_head(self, head: int | None = None) -> None:
        """Publish the completion head (or any other value) likewise."""
        value = self.head if head is None else head
        if self.host_line is not None:
            self.host_line[1] = value
            fences.full()
        self.client.bell(self.queue_id, CQ_HEAD_DOORBELL, value)

    def ready(self, ahead: int = 0) -> bool:
        """Whether the completion `ahead` of the head is there."""
        index = ring.advance(self.head, ahead)
        at = (index & (self.completion_entries - 1)) * c.COMPLETION_BYTES
        return self.completions[at + c.PHASE_OFFSET] == ring.phase_of(index, self.completion_entries)

    def take(self, count: int = 1, *, publish: bool = True) -> list[Any]:
        """Wait for completions and take them; with `publish` the device learns of the room."""
        taken = []
        for _ in range(count):
            self.client.wait_until(self.ready, f"a completion of queue {self.queue_id}")
            fences.consume()
            at = (self.head & (self.completion_entries - 1)) * c.COMPLETION_BYTES
            completion = c.COMPLETION.parse(self.completions[at : at + c.COMPLETION_BYTES])
            self.head = ring.advance(self.head)
            self.client.record(self.queue_id, self.opcodes.pop(0), completion.status)
            taken.append(completion)
        if publish:
            self.publish_head()
        return taken

    def run(self, *entries: bytes) -> list[Any]:
        """Submit entries and wait for their completions."""
        self.put(*entries)
        self.ring()
        return self.take(len(entries))


class BusClient:
    """One client of a function: 4 MiB of shareable memory, an admin queue, any I/O queues."""

    def __init__(self, transport: Transport, record: Recorder = lambda *_: None) -> None:
        self.transport = transport
        self.registers = Registers(transport)
        self.record = record
        self._maps: dict[int, int] = {}
        self._fds: list[int] = []
        self.admin_queue: RawQueue | None = None
        self.shadows: tuple[int, int] | None = None
        fd = create_memory_file(MEMORY_BYTES)
        self._fds.append(fd)
        self.memory = map_memory_file(fd, MEMORY_BYTES)
        self._used = 0
        self.file = fd
        self.map(fd, MEMORY_IOVA, MEMORY_BYTES)
        self.command(BOTH)

    def move_to(self, transport: Transport) -> None:
        """Go on over another transport, mapping nothing: what the device still has is for a test to find out."""
        self.transport = transport
        self.registers = Registers(transport)
        self.admin_queue = self.shadows = None

    # --- memory --------------------------------------------------------------------------------------------------

    def map(self, fd: int, iova: int, size: int, offset: int = 0) -> None:
        """Map part of a file; undone by `close`."""
        self.transport.dma_map(fd, offset, iova, size)
        self._maps[iova] = size

    def scatter(self, seed: int = 0) -> None:
        """Have the memory lie in its file page by page in another order, each page a mapping of its own.

        That is what a guest behind an IOMMU makes of it. Before anything was allocated.
        """
        offsets = list(range(0, MEMORY_BYTES, PAGE_BYTES))
        random.Random(seed).shuffle(offsets)
        self.unmap(MEMORY_IOVA)
        for number, offset in enumerate(offsets):
            fd = os.dup(self.file)
            self.map(fd, MEMORY_IOVA + number * PAGE_BYTES, PAGE_BYTES, offset)
            os.close(fd)
        pieces = [Piece(self.file, offset, PAGE_BYTES) for offset in offsets]
        self.memory = memoryview(JoinedMappings().join(pieces, writable=True)).cast("B")

    def unmap(self, iova: int) -> None:
        """Take a mapping back."""
        self.transport.dma_unmap(iova, self._maps.pop(iova))

    def allocate(self, size: int) -> tuple[int, memoryview]:
        """Page-aligned zeroed memory: bus address and view."""
        at = self._used
        self._used += -(-size // PAGE_BYTES) * PAGE_BYTES
        if self._used > MEMORY_BYTES:
            raise ValueError("the client's memory is too small for this test")
        return MEMORY_IOVA + at, self.memory[at : at + size]

    def at(self, iova: int, size: int) -> memoryview:
        """The client's memory at a bus address."""
        return self.memory[iova - MEMORY_IOVA : iova - MEMORY_IOVA + size]

    def unsealed_file(self, size: int) -> int:
        """A file that can be mapped but, not being sealed against shrinking, not shared."""
        fd = os.memfd_create("unsealed", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        self._fds.append(fd)
        return fd

    # --- registers -----------------------------------------------------------------------------------------------

    def command(self, value: int) -> None:
        """Write the PCI COMMAND register."""
        self.transport.config_write(COMMAND_OFFSET, value.to_bytes(2, "little"))

    def bell(self, queue_id: int, register: int, value: int) -> None:
        """Write a doorbell."""
        self.transport.write(BAR2, queue_id * DOORBELL_PAGE_BYTES + register, value, 4)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Let the device work until the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            self.transport.progress()
            if time.monotonic() > deadline:
                pytest.fail(f"no {what} within {PATIENCE_S:g} s")

    def settle(self) -> None:
        """Let the device take in what was written: a register read answers after it, then it gets its turns."""
        for _ in range(3):
            self.registers.identity.read()
            self.transport.progress()

    # --- controller ----------------------------------------------------------------------------------------------

    def set_admin_queue(self, entries: int = ADMIN_ENTRIES, completion_entries: int | None = None) -> RawQueue:
        """Allocate admin rings and tell the registers of them."""
        queue = RawQueue(self, c.ADMIN_QUEUE_ID, entries, completion_entries or entries, None)
        self.registers.admin_queue_size.write(submission_entries=entries, completion_entries=queue.completion_entries)
        self.registers.admin_submission_base.write(address=queue.submission_iova)
        self.registers.admin_completion_base.write(address=queue.completion_iova)
        return queue

    def enable(self) -> BusClient:
        """Bring the controller up with a fresh admin queue."""
        self.admin_queue = self.set_admin_queue()
        self.registers.control.write(enable=1)
        assert self.registers.status.fields() == {"ready": 1, "fatal": 0, "config_error": 0, "bus_master": 1}
        return self

    def disable(self) -> None:
        """Stop the controller; all queues are gone."""
        self.registers.control.write(enable=0)
        self.admin_queue = self.shadows = None
        assert self.registers.status.ready == 0

    def admin(self, layout: Layout, opcode: int, **fields: Any) -> Any:
        """Execute an admin command; its completion."""
        return self.admin_raw(layout.build(opcode=int(opcode), **fields))

    def admin_raw(self, entry: bytes) -> Any:
        """Execute a raw admin entry; its completion."""
        assert self.admin_queue is not None
        return self.admin_queue.run(entry)[0]

    def configure_shadows(self) -> None:
        """Give queues created from now on shadow doorbells."""
        size = (c.MAX_IO_QUEUES + 1) * c.LINE_BYTES
        lines = (self.allocate(size)[0], self.allocate(size)[0])
        done = self.admin(c.CONFIGURE_SHADOWS, c.AdminOpcode.CONFIGURE_SHADOWS, shadows=lines[0], events=lines[1])
        assert done.status == 0
        self.shadows = lines

    def queue(self, queue_id: int = 1, entries: int = 16, completion_entries: int | None = None) -> RawQueue:
        """Create an I/O queue with its own vector; it has shadows if they were configured."""
        queue = RawQueue(self, queue_id, entries, completion_entries or entries, self.shadows)
        done = self.admin(
            c.CREATE_QUEUE,
            c.AdminOpcode.CREATE_QUEUE,
            submission_base=queue.submission_iova,
            completion_base=queue.completion_iova,
            submission_entries=entries,
            completion_entries=queue.completion_entries,
            queue=queue_id,
            vector=queue_id,
        )
        assert done.status == 0, c.status_slug(done.status)
        return queue

    def log_page(self, page: int, size: int = 65536) -> bytes:
        """A log page."""
        used = self._used
        iova, view = self.allocate(size)
        done = self.admin(c.GET_LOG_PAGE, c.AdminOpcode.GET_LOG_PAGE, destination=iova, size=size, page=page)
        assert done.status == 0
        data = bytes(view[: done.result])
        self._used = used
        return data

    def errors(self) -> list[Any]:
        """Error-log entries, newest first."""
        page = self.log_page(c.LogPage.ERRORS)
        header = c.ERROR_LOG_HEADER.parse(page[: c.ERROR_LOG_HEADER.size])
        return [c.ERROR_ENTRY.parse(chunk) for chunk in _chunks(page[c.ERROR_LOG_HEADER.size :], header.entries)]

    def newest_error(self) -> Any:
        """The newest error-log entry, its message as text."""
        return self.errors()[0]

    def interrupts(self, vectors: Sequence[int]) -> dict[int, int]:
        """Connect a non-blocking eventfd to each vector; closed with the client."""
        fds: list[int | None] = [None] * self.transport.interrupt_count()
        for vector in vectors:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._fds.append(fd)
            fds[vector] = fd
        self.transport.set_interrupts(fds)
        return {vector: fd for vector, fd in enumerate(fds) if fd is not None}

    def close(self) -> None:
        """Reset the function and take everything back, so that the next client finds it as after power-on."""
        self.transport.reset()
        self.transport.set_interrupts([])
        for iova in list(self._maps):
            self.unmap(iova)
        for fd in self._fds:
            os.close(fd)


def fired(eventfd: int) -> int:
    """How often an eventfd was signalled since the last look."""
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


def text(entry: Any) -> str:
    """The message of an error-log entry."""
    return bytes(entry.message).rstrip(b"\0").decode()


def _chunks(data: bytes, count: int) -> Iterator[bytes]:
    for at in range(0, count * c.ERROR_ENTRY.size, c.ERROR_ENTRY.size):
        yield data[at : at + c.ERROR_ENTRY.size]
