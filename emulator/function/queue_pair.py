"""One submission/completion ring pair as the device sees it: pointers, phases and shadow lines.

Pure ring work over memory views; fetching policy is in `controller.py`, what commands do in `jobs/`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol import ring
from driver_shim.protocol.commands import (
    BLACK_BOX_QUEUE,
    COMPLETION,
    COMPLETION_BYTES,
    CQ_EVENT_WORD,
    CQ_HEAD_WORD,
    INTERRUPT_INDEX_WORD,
    PHASE_OFFSET,
    SQ_EVENT_WORD,
    SQ_TAIL_WORD,
    SUBMISSION_BYTES,
)
from driver_shim.shared import fences

_copy_entry = struct.Struct(f"{SUBMISSION_BYTES}s").unpack_from
"""Half the price of slicing the view."""
_pack_completion = COMPLETION.codec.pack
_INDEX_MASK = ring.INDEX_MASK


class QueueState(enum.IntEnum):
    """The states of a queue."""

    RUNNING = 0
    HALTED = 1
    """A pointer was corrupt or its memory went away; only deleting it or a reset helps."""
    DELETED = 2
    """Deleted, perhaps while a command waited for the host: nothing may be written to its rings any more."""


class Mapped:
    """The host memory that a queue works in, resolved anew whenever the host changes its mappings."""

    __slots__ = ("completions", "device_line", "host_line", "submissions")

    def __init__(
        self,
        submissions: memoryview,
        completions: memoryview,
        host_line: memoryview | None,
        device_line: memoryview | None,
    ) -> None:
        self.submissions = submissions
        self.completions = completions
        self.host_line = host_line.cast("I") if host_line is not None else None
        self.device_line = device_line.cast("I") if device_line is not None else None


class QueuePair:
    """Device side of a queue pair. Indices are free-running u32 (`protocol/ring.py`)."""

    def __init__(
        self,
        queue_id: int,
        resolve: Callable[[], Mapped],
        submission_entries: int,
        completion_entries: int,
        vector: int,
        bases: tuple[int, int],
    ) -> None:
        self.queue_id = queue_id
        self.vector = vector
        self.bases = bases
        self.state = QueueState.RUNNING
        self.sq_entries = submission_entries
        self.cq_entries = completion_entries
        self._cq_mask = completion_entries - 1
        self._lap_shift = self._cq_mask.bit_length()
        self.sq_head = 0
        self.cq_tail = 0
        self.bell_sq_tail = 0
        """Last value written to the SQ tail doorbell; the truth only while there is no shadow."""
        self.bell_cq_head = 0
        self.signalled = 0
        """Completions up to here were considered for an interrupt."""
        self.last_end_tick = 0
        self.job: Any = None
        """The command being carried out, when it takes more than one slice."""
        self.job_entry = b""
        """Its descriptor."""
        self.job_ticks = (0, 0)
        """Its modelled start and end."""
        self._resolve = resolve
        self.remap()

    def remap(self) -> None:
        """Resolve the rings again. Raises what the resolver raises when the memory is gone."""
        mapped = self._resolve()
        self._submissions = mapped.submissions
        self._completions = mapped.completions
        self.host_line = mapped.host_line
        self._device_line = mapped.device_line
        words = np.frombuffer(mapped.submissions, dtype="<u8").reshape(self.sq_entries, SUBMISSION_BYTES // 8)
        self._submission_words: NDArray[Any] = words
        self._completion_rows = COMPLETION.view(mapped.completions, count=self.cq_entries)

    @property
    def has_shadows(self) -> bool:
        """Whether pointers come from shadow lines, with event and interrupt indices."""
        return self.host_line is not None

    def sq_tail(self) -> int:
        """The host's submission tail as visible now."""
        return self.host_line[SQ_TAIL_WORD] if self.host_line is not None else self.bell_sq_tail

    def cq_head(self) -> int:
        """The host's completion head as visible now."""
        return self.host_line[CQ_HEAD_WORD] if self.host_line is not None else self.bell_cq_head

    @property
    def deleted(self) -> bool:
        """Whether nothing may be written to its rings any more; can change while a command waits for the host."""
        return self.state is QueueState.DELETED

    def window(self) -> tuple[int, int]:
        """(submitted entries not yet fetched, completions that fit); negative when the host's pointer is impossible."""
        line = self.host_line
        if line is None:
            tail, head = self.bell_sq_tail, self.bell_cq_head
        else:
            tail, head = line[SQ_TAIL_WORD], line[CQ_HEAD_WORD]
        available = (tail - self.sq_head) & _INDEX_MASK
        room = self.cq_entries - ((self.cq_tail - head) & _INDEX_MASK)
        return (available if available <= self.sq_entries else -1), room

    def fetch(self) -> bytes:
        """A private copy of the next entry (the host may scribble on the ring meanwhile); advances the head."""
        head = self.sq_head
        entry: bytes = _copy_entry(self._submissions, (head & (self.sq_entries - 1)) * SUBMISSION_BYTES)[0]
        self.sq_head = (head + 1) & _INDEX_MASK
        return entry

    def peek_words(self, count: int) -> NDArray[Any]:
        """A private copy, uint64 (n, 8), of up to `count` entries from the head to the end of the ring."""
        start = self.sq_head & (self.sq_entries - 1)
        return self._submission_words[start : min(start + count, self.sq_entries)].copy()

    def skip(self, count: int) -> None:
        """Advance the head past entries taken by `peek_words`."""
        self.sq_head = (self.sq_head + count) & ring.INDEX_MASK

    def complete(self, command_id: int, status: int, result: int, start_tick: int, end_tick: int) -> None:
        """Post one completion: body first, then, after the publish fence, its phase byte."""
        index = self.cq_tail
        phase = (index >> self._lap_shift & 1) ^ 1  # ring.phase_of, without the call
        start = (index & self._cq_mask) * COMPLETION_BYTES
        # Not `pack_into`: it zeroes the entry first, and in every other round a zero phase makes it valid at once.
        self._completions[start : start + COMPLETION_BYTES] = _pack_completion(
            self.sq_head, command_id, status, phase ^ 1, result, start_tick, end_tick
        )
        fences.publish()
        self._completions[start + PHASE_OFFSET] = phase
        self.cq_tail = (index + 1) & _INDEX_MASK
        self.last_end_tick = end_tick

    def complete_many(self, command_ids: NDArray[Any], first_start: int, cost: int) -> None:
        """Post successful completions for consecutive commands of equal cost; the caller checked room."""
        done = 0
        count = len(command_ids)
        heads = np.arange(self.sq_head - count + 1, self.sq_head + 1, dtype=np.int64)
        starts = first_start + cost * np.arange(count, dtype=np.uint64)
        for part in ring.contiguous(self.cq_tail, count, self.cq_entries):
            size = part.stop - part.start
            if not size:
                continue
            rows = self._completion_rows[part]
            phase = ring.phase_of(ring.advance(self.cq_tail, done), self.cq_entries)
            chunk = slice(done, done + size)
            rows["submission_head"] = heads[chunk] & ring.INDEX_MASK
            rows["command_id"] = command_ids[chunk]
            rows["status"] = 0
            rows["result"] = 0
            rows["start_tick"] = starts[chunk]
            rows["end_tick"] = starts[chunk] + np.uint64(cost)
            fences.publish()
            rows["phase"] = phase
            done += size
        self.cq_tail = ring.advance(self.cq_tail, count)
        self.last_end_tick = first_start + cost * count

    def wants_interrupt(self) -> bool:
        """After the full fence: whether completions since the last call passed the host's interrupt index."""
        old, self.signalled = self.signalled, self.cq_tail
        if old == self.cq_tail:
            return False
        if self.host_line is None:
            return True
        return ring.need_event(self.host_line[INTERRUPT_INDEX_WORD], self.cq_tail, old)

    def arm(self) -> None:
        """Ask the host for a bell at its next submission, and at its next reaping if there is no room."""
        if self._device_line is not None:
            self._device_line[SQ_EVENT_WORD] = self.sq_head
            self._device_line[CQ_EVENT_WORD] = self.cq_head()

    def has_work(self) -> bool:
        """Whether a step would move this queue: used after `arm` and the full fence."""
        if self.state is not QueueState.RUNNING:
            return False
        available, room = self.window()
        if self.job is not None:
            return bool(self.job.runnable) and room != 0
        return available != 0 and room != 0

    def describe(self) -> bytes:
        """BLACK_BOX_QUEUE bytes of the present state."""
        return BLACK_BOX_QUEUE.build(
            queue=self.queue_id,
            state=int(self.state),
            submission_entries=self.sq_entries,
            completion_entries=self.cq_entries,
            sq_head=self.sq_head,
            sq_tail=self.sq_tail(),
            cq_head=self.cq_head(),
            cq_tail=self.cq_tail,
            vector=self.vector,
            submission_base=self.bases[0],
            completion_base=self.bases[1],
        )
