"""The command processor: fetches from queues in order, carries commands out, posts completions, signals interrupts.

No thread and no socket: `step` does a bounded slice of work, `arm` says whether it is safe to sleep.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

import numpy as np

from driver_shim.protocol import ring
from driver_shim.protocol.commands import (
    ADMIN_QUEUE_ID,
    BARRIER,
    BLACK_BOX_ENTRIES,
    NOP,
    SQ_TAIL_WORD,
    SUBMISSION_BYTES,
    FaultSource,
    IoOpcode,
    Status,
    status_slug,
)
from driver_shim.shared import fences
from emulator.chip.chip import Chip
from emulator.chip.error_log import ErrorRecord
from emulator.function.admin import AdminCommands
from emulator.function.command_error import CommandError, refuse_reserved
from emulator.function.jobs.copy import CopyJob
from emulator.function.jobs.exec import ExecJob
from emulator.function.jobs.fill import FillJob
from emulator.function.jobs.job import Job
from emulator.function.programs import Programs
from emulator.function.queue_pair import QueuePair, QueueState
from emulator.function.queue_table import QueueTable
from emulator.host_memory.address_space import AddressSpace, DmaFault
from emulator.model import timing
from emulator.model.clock import LAST_TICK

_HEADER = struct.Struct("<BBHI")
_NOP, _BARRIER, _SUCCESS = int(IoOpcode.NOP), int(IoOpcode.BARRIER), int(Status.SUCCESS)
_COPY, _FILL, _EXEC = int(IoOpcode.COPY), int(IoOpcode.FILL), int(IoOpcode.EXEC)
"""Plain ints: comparing with an enum member costs three times as much."""
_EMPTY_BODY = bytes(SUBMISSION_BYTES - _HEADER.size)
COMMANDS_PER_SLICE = 64
"""Commands taken one by one from a queue before the next queue has its turn."""
VECTOR_THRESHOLD = 8
"""Entries waiting from which it pays to look for a run of nops."""


class Controller:
    """Serves the queues of the table while it is enabled. Made once, with the function; `disable` empties it."""

    def __init__(
        self,
        chip: Chip,
        space: AddressSpace,
        queues: QueueTable,
        programs: Programs,
        admin: AdminCommands,
        raise_vector: Callable[[int], None],
    ) -> None:
        self.queues = queues
        self._chip = chip
        self._clock = chip.clock
        self._errors = chip.errors
        self._counters = chip.counters
        self._space = space
        self._space_generation = space.generation
        self._programs = programs
        self._admin = admin
        self._raise_vector = raise_vector
        self.bus_master = False
        """Whether DMA is allowed; see `set_bus_master`."""
        self.enabled = False
        self.fatal = False
        self.recent_descriptors: deque[tuple[int, bytes]] = deque(maxlen=BLACK_BOX_ENTRIES)
        self.recent_completions: deque[tuple[int, int, int, int, int, int, int]] = deque(maxlen=BLACK_BOX_ENTRIES)
        self._nop_ticks = timing.nop_ticks(chip.profile)
        self._barrier_ticks = timing.barrier_ticks(chip.profile)
        self._stalled_without_dma = False

    # --- life cycle -------------------------------------------------------------------------------------------

    def enable(self, admin_queue: QueuePair) -> None:
        """Start with this admin queue."""
        self.queues.add(admin_queue)
        self.enabled = True
        self.fatal = False
        self._space_generation = self._space.generation

    def disable(self) -> None:
        """Stop at once: queues and programs are gone, running engine work is discarded."""
        self.enabled = False
        self.queues.clear()
        self._programs.clear()
        self._admin.clear()
        self._clock.idle()

    def set_bus_master(self, allowed: bool) -> None:
        """DMA is allowed or not from now on (PCI COMMAND bit 2)."""
        self.bus_master = allowed
        self._stalled_without_dma = False

    def ring_bell(self, queue_id: int, sq_tail: int | None, cq_head: int | None) -> None:
        """A doorbell store arrived. A bell for no queue is recorded as a fault."""
        self._counters.doorbells += 1
        queue = self.queues.by_id.get(queue_id)
        if queue is None:
            self._fault(FaultSource.QUEUE, f"doorbell of queue {queue_id}, which does not exist", queue=queue_id)
            return
        if sq_tail is not None:
            queue.bell_sq_tail = sq_tail
        if cq_head is not None:
            queue.bell_cq_head = cq_head

    # --- the loop ---------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Do a bounded slice of work on every queue; True if anything was done."""
        if not self.enabled or self.fatal:
            return False
        if not self.bus_master:
            self._note_missing_bus_master()
            return False
        if self._space.generation != self._space_generation:
            self._remap_queues()
        worked = self._programs.collect() if self._programs.busy else False
        for queue in self.queues.turns:
            line = queue.host_line
            if (queue.bell_sq_tail if line is None else line[SQ_TAIL_WORD]) != queue.sq_head or queue.job is not None:
                worked = self._serve(queue) or worked
        if worked:
            for queue in self.queues.turns:
                if queue.job is not None:
                    break
            else:
                self._clock.idle()
        return worked

    def arm(self) -> bool:
        """Write event indices, fence, look again: True when nothing is pending and a bell will tell of more."""
        if not self.enabled or self.fatal or not self.bus_master:
            return True
        if self._space.generation != self._space_generation:
            return False
        for queue in self.queues.turns:
            queue.arm()
        fences.full()
        return not any(queue.has_work() for queue in self.queues.turns)

    def _serve(self, queue: QueuePair) -> bool:
        """Fetch and carry out up to a slice of one queue's commands; True if anything was done."""
        if queue.state is not QueueState.RUNNING:
            return False
        job = queue.job
        if job is not None and not job.runnable:
            return False
        available, room = queue.window()
        if room < 0 or available < 0:
            self._halt(queue, "a pointer left the range that the ring allows")
            return True
        if not room or (job is None and not available):
            return False
        self._clock.begin()
        budget = COMMANDS_PER_SLICE
        admin = queue.queue_id == ADMIN_QUEUE_ID
        while room > 0 and budget > 0:
            if queue.job is not None:
                if not self._advance(queue):
                    break
            elif available <= 0:
                break
            elif (
                available >= VECTOR_THRESHOLD and not admin and (taken := self._take_nops(queue, min(available, room)))
            ):
                available -= taken
                room -= taken
                budget -= 1
                continue
            else:
                available -= 1
                if not self._begin_command(queue, admin):
                    break
            if queue.deleted:
                return True
            room -= 1
            budget -= 1
        if not queue.deleted:
            self._signal(queue)
        return True

    def _begin_command(self, queue: QueuePair, admin: bool) -> bool:
        """Take one entry. True if it completed at once, False if it became the queue's job or halted it."""
        entry = queue.fetch()
        opcode, flags, command_id, context = _HEADER.unpack_from(entry)
        counters = self._counters
        if opcode == _NOP and not (flags or context or admin) and entry.endswith(_EMPTY_BODY):
            self._complete(queue, command_id, 0, self._nop_ticks)  # first: the host may be waiting for just this
            self.recent_descriptors.append((queue.queue_id, entry))
            counters.nop_commands += 1
            return True
        self.recent_descriptors.append((queue.queue_id, entry))
        try:
            if flags or context:
                raise _bad_header(flags, context)
            if admin:
                counters.admin_commands += 1
                result = self._admin.execute(opcode, entry)
                if isinstance(result, int):
                    self._complete(queue, command_id, result, self._nop_ticks)
                    return True
                queue.job = result
            elif opcode == _BARRIER:
                refuse_reserved(BARRIER, entry)
                counters.barrier_commands += 1
                self._complete(queue, command_id, 0, self._barrier_ticks)
                return True
            else:
                queue.job = self._job(opcode, entry)
        except CommandError as error:
            if not queue.deleted:
                self._fail(queue, entry, error, None)
            return True
        queue.job_entry = entry
        not_before = queue.last_end_tick
        if queue.job.on_engine:
            not_before = self._programs.book_engines(queue.job.cost, max(not_before, self._clock.now()))
        queue.job_ticks = self._clock.schedule(not_before, queue.job.cost)
        return self._advance(queue)

    def _job(self, opcode: int, entry: bytes) -> Job:
        if opcode == _NOP:
            refuse_reserved(NOP, entry)
        if opcode == _COPY:
            self._counters.copy_commands += 1
            return CopyJob(self._chip, self._space, entry)
        if opcode == _FILL:
            self._counters.fill_commands += 1
            return FillJob(self._chip, self._space, entry)
        if opcode == _EXEC:
            self._counters.exec_commands += 1
            return ExecJob(self._chip, self._space, self._programs, entry)
        raise CommandError(Status.INVALID_OPCODE, f"I/O opcode {opcode:#04x} does not exist")

    def _advance(self, queue: QueuePair) -> bool:
        """Carry the queue's job one slice further. True if it completed."""
        try:
            result = queue.job.advance()
        except CommandError as error:
            if self._gone(queue):
                return True
            self._fail(queue, queue.job_entry, error, queue.job_ticks)
            return True
        if result is None:
            return False
        if self._gone(queue):
            return True
        start, end = queue.job_ticks
        self._post(queue, queue.job_entry, _SUCCESS, result, start, end)
        return True

    def _gone(self, queue: QueuePair) -> bool:
        """Whether a command lost its queue while it waited for the host's memory: by a reset, or by an unmapping."""
        if self._space.generation != self._space_generation:
            self._remap_queues()
        return queue.state is not QueueState.RUNNING

    def _take_nops(self, queue: QueuePair, limit: int) -> int:
        """Complete a run of nops at the head of the queue in one go; returns how many."""
        words = queue.peek_words(limit)
        plain = (words[:, 0] & np.uint64(0xFFFF_FFFF_0000_FFFF)) == IoOpcode.NOP
        plain &= ~words[:, 1:].any(axis=1)
        count = len(plain) if plain.all() else int(plain.argmin())
        if not count:
            return 0
        queue.skip(count)
        ids = (words[:count, 0] >> np.uint64(16)) & np.uint64(0xFFFF)
        start, end = self._clock.schedule(queue.last_end_tick, self._nop_ticks * count)
        queue.complete_many(ids, start, self._nop_ticks)
        self._clock.complete(end)
        counters = self._counters
        counters.nop_commands += count
        counters.commands += count
        counters.busy_ticks += end - start
        first_kept = max(0, count - BLACK_BOX_ENTRIES)
        for row in words[first_kept:count]:
            self.recent_descriptors.append((queue.queue_id, row.tobytes()))
        for kept in range(first_kept, count):
            tick = min(start + kept * self._nop_ticks, LAST_TICK - self._nop_ticks)
            head = (queue.sq_head - count + 1 + kept) & 0xFFFF_FFFF
            self.recent_completions.append((queue.queue_id, head, int(ids[kept]), 0, 0, tick, tick + self._nop_ticks))
        return count

    # --- completions ------------------------------------------------------------------------------------------

    def _complete(self, queue: QueuePair, command_id: int, result: int, cost: int) -> None:
        start, end = self._clock.schedule(queue.last_end_tick, cost)
        self._write_completion(queue, command_id, _SUCCESS, result, start, end)

    def _post(self, queue: QueuePair, entry: bytes, status: int, result: int, start: int, end: int) -> None:
        queue.job = None
        self._write_completion(queue, _HEADER.unpack_from(entry)[2], status, result, start, end)

    def _write_completion(
        self, queue: QueuePair, command_id: int, status: int, result: int, start: int, end: int
    ) -> None:
        queue.complete(command_id, status, result, start, end)
        self._clock.complete(end)
        self.recent_completions.append((queue.queue_id, queue.sq_head, command_id, status, result, start, end))
        counters = self._counters
        counters.commands += 1
        counters.busy_ticks += end - start

    def _fail(self, queue: QueuePair, entry: bytes, error: CommandError, ticks: tuple[int, int] | None) -> None:
        """Complete a command with its error status and write it to the error log."""
        opcode, _, command_id, _ = _HEADER.unpack_from(entry)
        self._counters.failed_commands += 1
        self._errors.record(
            ErrorRecord(
                error.source,
                f"{status_slug(error.status)}: {error.message}",
                address=error.address,
                status=error.status,
                opcode=opcode,
                queue=queue.queue_id,
                command_id=command_id,
                command_index=error.command_index,
            )
        )
        start, end = ticks or self._clock.schedule(queue.last_end_tick, 0)
        self._post(queue, entry, error.status, error.command_index, start, end)

    def _signal(self, queue: QueuePair) -> None:
        """Raise the queue's vector if the completions just posted passed the host's interrupt index."""
        if queue.has_shadows:
            fences.full()
        if queue.wants_interrupt():
            self._counters.interrupts += 1
            self._raise_vector(queue.vector)

    # --- faults -----------------------------------------------------------------------------------------------

    def _halt(self, queue: QueuePair, reason: str) -> None:
        """Stop a queue whose host side is broken; without its admin queue the controller is dead."""
        queue.state = QueueState.HALTED
        self._fault(
            FaultSource.QUEUE,
            f"queue {queue.queue_id} halted: {reason}",
            queue=queue.queue_id,
            status=Status.QUEUE_CORRUPT,
        )
        if queue.queue_id == ADMIN_QUEUE_ID:
            self.fatal = True

    def _remap_queues(self) -> None:
        """The host changed its mappings: resolve every ring again, halt the queues that lost theirs."""
        self._space_generation = self._space.generation
        for queue in self.queues.turns:
            try:
                queue.remap()
            except (DmaFault, CommandError) as error:
                if queue.state is QueueState.RUNNING:
                    self._halt(queue, f"its memory was unmapped ({error})")

    def _note_missing_bus_master(self) -> None:
        """Record once, until it is on again, that queues wait for it."""
        # A bell behind the head is an old one, of a queue whose tail has since moved in its shadow line.
        rung = any(0 < ring.occupied(q.bell_sq_tail, q.sq_head) <= q.sq_entries for q in self.queues.turns)
        if rung and not self._stalled_without_dma:
            self._stalled_without_dma = True
            self._fault(FaultSource.DMA, "queues stand still: bus mastering is off (PCI COMMAND bit 2)")

    def _fault(self, source: FaultSource, message: str, *, queue: int = 0, status: int = 0) -> None:
        self._errors.record(ErrorRecord(source, message, queue=queue, status=status))


def _bad_header(flags: int, context: int) -> CommandError:
    if flags:
        return CommandError(Status.INVALID_FIELD, f"flags {flags:#04x}; none are defined")
    return CommandError(Status.INVALID_CONTEXT, f"context {context}; only context 0 exists")
