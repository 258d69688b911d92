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
from emulator.chip.error_log import ErrorLog, ErrorRecord
from emulator.function.admin import AdminCommands
from emulator.function.exec_job import ExecJob, Programs
from emulator.function.jobs import CommandError, CopyJob, FillJob, Job, Machine, refuse_reserved
from emulator.function.queue_pair import QueuePair, QueueState
from emulator.host_memory.address_space import DmaFault
from emulator.model import timing
from emulator.model.clock import LAST_TICK, TickClock

_HEADER = struct.Struct("<BBHI")
_NOP, _BARRIER, _SUCCESS = int(IoOpcode.NOP), int(IoOpcode.BARRIER), int(Status.SUCCESS)
"""Plain ints: comparing with an enum member costs three times as much."""
_BODY = slice(_HEADER.size, SUBMISSION_BYTES)
_EMPTY_BODY = bytes(SUBMISSION_BYTES - _HEADER.size)
COMMANDS_PER_SLICE = 64
"""Commands taken one by one from a queue before the next queue has its turn."""
VECTOR_THRESHOLD = 8
"""Entries waiting from which it pays to look for a run of nops."""


class Controller:
    """Queues and what they run; created anew by nobody: `disable` empties it."""

    def __init__(
        self,
        machine: Machine,
        clock: TickClock,
        errors: ErrorLog,
        programs: Programs,
        raise_vector: Callable[[int], None],
        identify: Callable[[], bytes],
        log_page: Callable[[int], bytes],
    ) -> None:
        self.machine = machine
        self.clock = clock
        self.errors = errors
        self.programs = programs
        self._raise_vector = raise_vector
        self.bus_master = False
        """Whether DMA is allowed; see `set_bus_master`."""
        self.queues: dict[int, QueuePair] = {}
        self._turns: tuple[QueuePair, ...] = ()
        self.enabled = False
        self.fatal = False
        self.recent_descriptors: deque[tuple[int, bytes]] = deque(maxlen=BLACK_BOX_ENTRIES)
        self.recent_completions: deque[tuple[int, int, int, int, int, int, int]] = deque(maxlen=BLACK_BOX_ENTRIES)
        self._space = machine.address_space
        self._space_generation = self._space.generation
        self._admin = AdminCommands(self, machine, identify, log_page)
        self._nop_ticks = timing.nop_ticks(machine.profile)
        self._barrier_ticks = timing.barrier_ticks(machine.profile)
        self._stalled_without_dma = False

    # --- life cycle -------------------------------------------------------------------------------------------

    def enable(self, admin_queue: QueuePair) -> None:
        """Start with this admin queue."""
        self.queues = {}
        self.add_queue(admin_queue)
        self.enabled = True
        self.fatal = False
        self._space_generation = self.machine.address_space.generation

    def disable(self) -> None:
        """Stop at once: queues and programs are gone, running engine work is discarded."""
        self.enabled = False
        for queue in self._turns:
            queue.state = QueueState.DELETED
        self.queues = {}
        self._turns = ()
        self.programs.clear()
        self._admin.clear()
        self.clock.idle()

    def set_bus_master(self, allowed: bool) -> None:
        """DMA is allowed or not from now on (PCI COMMAND bit 2)."""
        self.bus_master = allowed
        self._stalled_without_dma = False

    def add_queue(self, queue: QueuePair) -> None:
        """Start serving a created queue."""
        self.queues[queue.queue_id] = queue
        self._turns = tuple(self.queues.values())

    def remove_queue(self, queue_id: int) -> None:
        """Stop serving a queue; the command it is carrying out is discarded."""
        queue = self.queues.pop(queue_id)
        queue.state = QueueState.DELETED
        self._turns = tuple(self.queues.values())
        if isinstance(queue.job, ExecJob):
            self.programs.discard(queue.job)

    def ring_bell(self, queue_id: int, sq_tail: int | None, cq_head: int | None) -> None:
        """A doorbell store arrived. A bell for no queue is recorded as a fault."""
        self.machine.activity.doorbells += 1
        queue = self.queues.get(queue_id)
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
        worked = self.programs.collect() if self.programs.running else False
        for queue in self._turns:
            line = queue.host_line
            if (queue.bell_sq_tail if line is None else line[SQ_TAIL_WORD]) != queue.sq_head or queue.job is not None:
                worked = self._serve(queue) or worked
        if worked and not any(queue.job is not None for queue in self._turns):
            self.clock.idle()
        return worked

    def arm(self) -> bool:
        """Write event indices, fence, look again: True when nothing is pending and a bell will tell of more."""
        if not self.enabled or self.fatal or not self.bus_master:
            return True
        if self._space.generation != self._space_generation:
            return False
        for queue in self.queues.values():
            queue.arm()
        fences.full()
        return not any(queue.has_work() for queue in self.queues.values())

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
        self.clock.begin()
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
        self.recent_descriptors.append((queue.queue_id, entry))
        opcode, flags, command_id, context = _HEADER.unpack_from(entry)
        activity = self.machine.activity
        try:
            if flags or context:
                raise _bad_header(flags, context)
            if admin:
                activity.admin_commands += 1
                self._complete(queue, command_id, self._admin.execute(opcode, entry), self._nop_ticks)
                return True
            if opcode == _NOP:
                if entry[_BODY] != _EMPTY_BODY:
                    refuse_reserved(NOP, entry)
                activity.nop_commands += 1
                self._complete(queue, command_id, 0, self._nop_ticks)
                return True
            if opcode == _BARRIER:
                refuse_reserved(BARRIER, entry)
                activity.barrier_commands += 1
                self._complete(queue, command_id, 0, self._barrier_ticks)
                return True
            queue.job = self._job(opcode, entry)
        except CommandError as error:
            if not queue.deleted:
                self._fail(queue, entry, error, None)
            return True
        queue.job_entry = entry
        not_before = queue.last_end_tick
        if isinstance(queue.job, ExecJob):
            not_before = self.programs.book_engine(queue.job.cost, max(not_before, self.clock.now()))
        queue.job_ticks = self.clock.schedule(not_before, queue.job.cost)
        return self._advance(queue)

    def _job(self, opcode: int, entry: bytes) -> Job:
        if opcode == IoOpcode.COPY:
            self.machine.activity.copy_commands += 1
            return CopyJob(self.machine, entry)
        if opcode == IoOpcode.FILL:
            self.machine.activity.fill_commands += 1
            return FillJob(self.machine, entry)
        if opcode == IoOpcode.EXEC:
            self.machine.activity.exec_commands += 1
            return ExecJob(self.machine, self.programs, entry)
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
        self._post(queue, queue.job_entry, Status.SUCCESS, result, start, end)
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
        start, end = self.clock.schedule(queue.last_end_tick, self._nop_ticks * count)
        queue.complete_many(ids, start, self._nop_ticks)
        self.clock.complete(end)
        activity = self.machine.activity
        activity.nop_commands += count
        activity.commands += count
        activity.busy_ticks += end - start
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
        start, end = self.clock.schedule(queue.last_end_tick, cost)
        self._write_completion(queue, command_id, _SUCCESS, result, start, end)

    def _post(self, queue: QueuePair, entry: bytes, status: int, result: int, start: int, end: int) -> None:
        queue.job = None
        self._write_completion(queue, _HEADER.unpack_from(entry)[2], status, result, start, end)

    def _write_completion(
        self, queue: QueuePair, command_id: int, status: int, result: int, start: int, end: int
    ) -> None:
        queue.complete(command_id, status, result, start, end)
        self.clock.complete(end)
        self.recent_completions.append((queue.queue_id, queue.sq_head, command_id, status, result, start, end))
        activity = self.machine.activity
        activity.commands += 1
        activity.busy_ticks += end - start

    def _fail(self, queue: QueuePair, entry: bytes, error: CommandError, ticks: tuple[int, int] | None) -> None:
        """Complete a command with its error status and write it to the error log."""
        opcode, _, command_id, _ = _HEADER.unpack_from(entry)
        self.machine.activity.failed_commands += 1
        self.errors.record(
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
        start, end = ticks or self.clock.schedule(queue.last_end_tick, 0)
        self._post(queue, entry, error.status, 0, start, end)

    def _signal(self, queue: QueuePair) -> None:
        """Raise the queue's vector if the completions just posted passed the host's interrupt index."""
        if queue.has_shadows:
            fences.full()
        if queue.wants_interrupt():
            self.machine.activity.interrupts += 1
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
        self._space_generation = self.machine.address_space.generation
        for queue in self.queues.values():
            try:
                queue.remap()
            except (DmaFault, CommandError) as error:
                if queue.state is QueueState.RUNNING:
                    self._halt(queue, f"its memory was unmapped ({error})")

    def _note_missing_bus_master(self) -> None:
        """Record once, until it is on again, that queues wait for it."""
        # A bell behind the head is an old one, of a queue whose tail has since moved in its shadow line.
        rung = any(0 < ring.occupied(q.bell_sq_tail, q.sq_head) <= q.sq_entries for q in self.queues.values())
        if rung and not self._stalled_without_dma:
            self._stalled_without_dma = True
            self._fault(FaultSource.DMA, "queues stand still: bus mastering is off (PCI COMMAND bit 2)")

    def _fault(self, source: FaultSource, message: str, *, queue: int = 0, status: int = 0) -> None:
        self.errors.record(ErrorRecord(source, message, queue=queue, status=status))


def _bad_header(flags: int, context: int) -> CommandError:
    if flags:
        return CommandError(Status.INVALID_FIELD, f"flags {flags:#04x}; none are defined")
    return CommandError(Status.INVALID_CONTEXT, f"context {context}; only context 0 exists")
