"""Host side of one queue pair: rings, shadow lines, doorbells. No locks and no policy: the owner serialises.

Commands of a queue complete in submission order, so a command id is the low 16 bits of its submission index and the
completion of index i is always at index i of the completion ring.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import ContractMismatch
from driver_shim.protocol import ring
from driver_shim.protocol.commands import (
    COMMAND_ID_MASK,
    COMPLETION,
    COMPLETION_BYTES,
    CQ_EVENT_WORD,
    CQ_HEAD_WORD,
    DESCRIPTOR,
    INTERRUPT_INDEX_WORD,
    PHASE_OFFSET,
    SQ_EVENT_WORD,
    SQ_TAIL_WORD,
    SUBMISSION_BYTES,
)
from driver_shim.protocol.registers import BAR2, CQ_HEAD_DOORBELL, DOORBELL_PAGE_BYTES, SQ_TAIL_DOORBELL
from driver_shim.shared import fences
from driver_shim.transport.base import Transport

_PUBLISH_SHARE = 4
"""The completion head is published each quarter of the ring: rarely, and always before the device could run dry."""

_INDEX_MASK = ring.INDEX_MASK
_unpack_completion = COMPLETION.codec.unpack_from

Completion = tuple[int, int, int, int, int, int, int]
"""(submission_head, command_id, status, phase, result, start_tick, end_tick)."""


class HostQueuePair:
    """Rings of `submission_entries` and `completion_entries` (powers of two) in host memory.

    `lines` are the queue's HOST_LINE and DEVICE_LINE, or None for a queue that always uses its doorbells.
    """

    def __init__(
        self,
        transport: Transport,
        queue_id: int,
        submissions: memoryview,
        completions: memoryview,
        lines: tuple[memoryview, memoryview] | None,
    ) -> None:
        self.queue_id = queue_id
        self.entries = len(submissions) // SUBMISSION_BYTES
        self.completion_entries = len(completions) // COMPLETION_BYTES
        self.sq_tail = 0
        self.cq_head = 0
        self._published_tail = 0
        self._published_head = 0
        self._publish_every = self.completion_entries // _PUBLISH_SHARE
        self._transport = transport
        self._bell = queue_id * DOORBELL_PAGE_BYTES + SQ_TAIL_DOORBELL
        self._head_bell = queue_id * DOORBELL_PAGE_BYTES + CQ_HEAD_DOORBELL
        self._submissions = submissions
        self._completions = completions
        self._slots: NDArray[Any] = np.frombuffer(submissions, DESCRIPTOR)
        self._rows: NDArray[Any] = np.frombuffer(completions, COMPLETION.dtype)
        self._phases = self._rows["phase"]
        self._slot_mask = self.entries - 1
        self._completion_mask = self.completion_entries - 1
        self._lap_shift = self._completion_mask.bit_length()
        self._host = lines[0].cast("I") if lines else None
        self._device = lines[1].cast("I") if lines else None

    def outstanding(self) -> int:
        """Commands submitted and not yet reaped."""
        return (self.sq_tail - self.cq_head) & ring.INDEX_MASK

    def put(self, codec: Any, opcode: int, values: tuple[Any, ...] = ()) -> None:
        """Write one entry at the tail with a precompiled codec; flags and context are zero. Not yet visible."""
        tail = self.sq_tail
        at = (tail & self._slot_mask) * SUBMISSION_BYTES
        if values:
            codec.pack_into(self._submissions, at, opcode, 0, tail & COMMAND_ID_MASK, 0, *values)
        else:  # a call without a list of arguments costs a third less
            codec.pack_into(self._submissions, at, opcode, 0, tail & COMMAND_ID_MASK, 0)
        self.sq_tail = (tail + 1) & _INDEX_MASK

    def put_array(self, descriptors: NDArray[Any]) -> None:
        """Write consecutive entries at the tail and give them their command ids. Not yet visible."""
        count = len(descriptors)
        ids = (self.sq_tail + np.arange(count, dtype=np.int64)) & COMMAND_ID_MASK
        first, second = ring.contiguous(self.sq_tail, count, self.entries)
        split = first.stop - first.start
        self._slots[first] = descriptors[:split]
        self._slots["command_id"][first] = ids[:split]
        if split < count:
            self._slots[second] = descriptors[split:]
            self._slots["command_id"][second] = ids[split:]
        self.sq_tail = (self.sq_tail + count) & ring.INDEX_MASK

    def publish(self) -> None:
        """Make everything put since the last call visible and wake the device if it asked for it."""
        tail = self.sq_tail
        old = self._published_tail
        fences.publish()
        host, device = self._host, self._device
        if host is None or device is None:
            self._transport.write(BAR2, self._bell, tail, 4)
            self._published_tail = tail
            return
        host[SQ_TAIL_WORD] = tail
        fences.full()
        if (tail - device[SQ_EVENT_WORD] - 1) & _INDEX_MASK < (tail - old) & _INDEX_MASK:  # ring.need_event, inline
            self._transport.write(BAR2, self._bell, tail, 4)
        self._published_tail = tail  # last: a call that Ctrl-C cuts short must not pass for a bell that was rung

    def ready(self) -> bool:
        """Whether a completion waits at the head."""
        head = self.cq_head
        at = (head & self._completion_mask) * COMPLETION_BYTES + PHASE_OFFSET
        return self._completions[at] == (head >> self._lap_shift & 1) ^ 1

    def spin(self, until_s: float) -> bool:
        """Look for a completion at the head without letting go of the CPU; False at `until_s` of the monotonic clock.

        True also when another thread moved the head meanwhile.
        """
        head = self.cq_head
        at = (head & self._completion_mask) * COMPLETION_BYTES + PHASE_OFFSET
        phase = (head >> self._lap_shift & 1) ^ 1
        completions, now = self._completions, time.monotonic
        while completions[at] != phase:
            if now() > until_s:
                return False
            if self.cq_head != head:
                return True
        return True

    def peek(self) -> Completion | None:
        """The completion at the head, if there is one. Raises ContractMismatch if it is not the one due."""
        head = self.cq_head
        at = (head & self._completion_mask) * COMPLETION_BYTES
        if self._completions[at + PHASE_OFFSET] != (head >> self._lap_shift & 1) ^ 1:
            return None
        fences.consume()
        fields: Completion = _unpack_completion(self._completions, at)
        if fields[1] != head & COMMAND_ID_MASK or head == self.sq_tail:
            raise self._out_of_order(fields[1])
        return fields

    def peek_array(self, limit: int) -> NDArray[Any]:
        """Copies of up to `limit` completions that are there, contiguous in the ring. Raises ContractMismatch."""
        head = self.cq_head
        slots, _ = ring.contiguous(head, min(limit, self.outstanding()), self.completion_entries)
        valid = self._phases[slots] == ring.phase_of(head, self.completion_entries)
        count = len(valid) if valid.all() else int(valid.argmin())
        fences.consume()
        rows = self._rows[slots.start : slots.start + count].copy()
        due = (head + np.arange(count, dtype=np.int64)) & COMMAND_ID_MASK
        if not np.array_equal(rows["command_id"], due):
            wrong = int(np.argmax(rows["command_id"] != due))
            raise self._out_of_order(int(rows["command_id"][wrong]))
        return rows

    def advance(self, count: int = 1) -> None:
        """The completions just peeked at are dealt with."""
        head = self.cq_head = (self.cq_head + count) & _INDEX_MASK
        if (head - self._published_head) & _INDEX_MASK > self._publish_every:
            self.publish_head()

    def publish_head(self) -> None:
        """Tell the device how far completions were reaped, and wake it if it waits for room."""
        old, head = self._published_head, self.cq_head
        host, device = self._host, self._device
        if host is None or device is None:
            self._transport.write(BAR2, self._head_bell, head, 4)
            self._published_head = head
            return
        host[CQ_HEAD_WORD] = head
        fences.full()
        if ring.need_event(device[CQ_EVENT_WORD], head, old):
            self._transport.write(BAR2, self._head_bell, head, 4)
        self._published_head = head  # last, as in publish

    def arm_interrupt(self) -> bool:
        """Ask for an interrupt at the next completion; True if none is there yet, i.e. it is safe to sleep."""
        if self._host is not None:
            self._host[INTERRUPT_INDEX_WORD] = self.cq_head
            fences.full()
        return not self.ready()

    def _out_of_order(self, command_id: int) -> ContractMismatch:
        due = self.cq_head & COMMAND_ID_MASK
        return ContractMismatch(
            f"queue {self.queue_id}: completion of command {command_id:#06x}, due was {due:#06x}",
            device=self._transport.address,
            subsystem="queue",
            remedy="the device broke the order of completions; reset it",
        )
