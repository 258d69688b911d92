"""Queues: ordered streams of commands. Here is the submission side; who waits and reaps is in `completions.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import Closed, CommandFailed, NpuError, QueueFull
from driver_shim.function.controller import OpenQueue
from driver_shim.protocol import ring
from driver_shim.protocol.commands import DESCRIPTOR
from sdk.memory.buffers import Span
from sdk.queue.batch import Batch, Recorded
from sdk.queue.commands import Commands, check_buffer
from sdk.queue.completions import Completions, Piece, SlotOwner
from sdk.queue.events import Event, StatusesEvent, T
from sdk.queue.port import QueueOwner

MIN_DEPTH, MAX_DEPTH = 2, 4096
_RING_FACTOR = 2
"""Rings hold this many times the depth, so that neither ring is ever the limit."""
_SMALLEST_RING = 64
_INDEX_MASK = ring.INDEX_MASK
Entry = tuple[Any, int, tuple[Any, ...]]
"""(codec, opcode, values) of a command."""


class Queue(Commands):
    """An ordered stream of commands. Created by `Device.queue`; thread-safe."""

    def __init__(self, owner: QueueOwner, opened: OpenQueue, depth: int, when_full: str, interrupt: int) -> None:
        super().__init__(Completions(owner, opened.pair, interrupt))
        self.depth = depth
        self.when_full = when_full
        self._pair = opened.pair
        self._opened = opened

    # --- submitting --------------------------------------------------------------------------------------------

    def _issue(self, event: Event[T], codec: Any, opcode: int, values: tuple[Any, ...]) -> Event[T]:
        completions, pair = self._completions, self._pair
        while True:
            with completions.lock:
                if completions.closed is not None:
                    completions.refuse()
                tail = pair.sq_tail
                if (tail - pair.cq_head) & _INDEX_MASK < self.depth or completions.reap_locked():
                    if event._keep is not None:
                        event._check_kept()
                    completions.slots[tail & completions.slot_mask] = event
                    pair.put(codec, opcode, values)
                    try:
                        pair.publish()
                    except NpuError as error:
                        event._drop(error)  # this call reports the loss; nobody else has the event
                        raise
                    return event
            self._await_room(1)

    def submit(self, descriptors: NDArray[Any], keep: Span | Sequence[Span] = ()) -> Event[NDArray[np.uint8]]:
        """Submit a 1-D array of raw `sdk.DESCRIPTOR` entries; command ids are set here.

        Returns one event of statuses (uint8, one a descriptor); its error is `CommandFailed` naming the first bad
        index. `keep` are the buffers to hold on to. The array may be reused as soon as this returns.
        """
        if not isinstance(descriptors, np.ndarray) or descriptors.dtype != DESCRIPTOR or descriptors.ndim != 1:
            got = (
                f"{descriptors.dtype} {descriptors.shape}"
                if isinstance(descriptors, np.ndarray)
                else type(descriptors).__name__
            )
            raise TypeError(f"submit takes a 1-D numpy array of dtype sdk.DESCRIPTOR, got {got}")
        kept = (keep,) if isinstance(keep, Span) else tuple(keep)
        for thing in kept:
            check_buffer(thing, "keep", self._completions.owner)
        event = StatusesEvent(self._completions, len(descriptors), tuple(span._root for span in kept))
        if self.when_full == "raise":
            with self._completions.lock:
                self._require_room(len(descriptors))
                self._put_piece(event, descriptors, 0, len(descriptors))
            return event
        done = 0
        while True:
            with self._completions.lock:
                if self._completions.closed is not None:
                    self._completions.refuse()
                self._completions.reap_locked()
                room = self.depth - self._pair.outstanding()
                count = min(room, len(descriptors) - done)
                # half a queue at a time keeps both sides busy: small pieces cost a turn of both loops each
                if count == len(descriptors) - done or count >= self.depth // 2:
                    self._put_piece(event, descriptors[done : done + count], done, count)
                    done += count
                    if done == len(descriptors):
                        return event
                    continue
            self._await_room(min(self.depth // 2, len(descriptors) - done))

    def _put_piece(self, event: StatusesEvent, descriptors: NDArray[Any], position: int, count: int) -> None:
        event._check_kept()
        if not count:
            return
        piece = Piece(event, self._pair.sq_tail, position, count)
        first, second = ring.contiguous(piece.first, count, self._pair.entries)
        self._completions.slots[first] = [piece] * (first.stop - first.start)
        self._completions.slots[second] = [piece] * (second.stop - second.start)
        self._pair.put_array(descriptors)
        self._pair.publish()

    def batch(self) -> Batch:
        """Record many calls for one doorbell: `with q.batch() as b: b.copy(...); b.nop()`."""
        return Batch(self._completions, self._submit_recorded)

    def _submit_recorded(self, recorded: deque[Recorded]) -> None:
        """Make a batch's commands visible; empties `recorded`.

        A batch that fits the queue's depth goes in whole, with one doorbell and nobody's command in between.
        """
        if self.when_full == "raise":
            with self._completions.lock:
                self._require_room(len(recorded))
                if recorded:
                    self._put_recorded(recorded, len(recorded))  # at once, before another thread has the room
            return
        while recorded:
            wanted = min(self.depth, len(recorded))
            with self._completions.lock:
                if self._completions.closed is not None:
                    self._completions.refuse()
                self._completions.reap_locked()
                if self._pair.outstanding() + wanted <= self.depth:
                    self._put_recorded(recorded, wanted)
                    continue
            self._await_room(wanted)

    def _put_recorded(self, recorded: deque[Recorded], count: int) -> None:
        """Submit the first `count` commands of a batch with one doorbell; called with the lock held."""
        for _ in range(count):
            event, codec, opcode, values = recorded[0]
            event._check_kept()
            self._completions.slots[self._pair.sq_tail & self._completions.slot_mask] = event
            self._pair.put(codec, opcode, values)
            recorded.popleft()
        self._pair.publish()

    def _submit_group(
        self, owners: Sequence[SlotOwner], event: Event[Any], entries: Sequence[Entry], *, may_wait: bool
    ) -> None:
        """Submit commands with one doorbell and nobody's in between; `owners` are told of each, `event` stands for all.

        Raises QueueFull where it `may_wait` not, Closed, DeviceLost.
        """
        completions, pair, count = self._completions, self._pair, len(entries)
        while True:
            with completions.lock:
                if completions.closed is not None:
                    completions.refuse()
                if pair.outstanding() + count > self.depth:
                    completions.reap_locked()
                if pair.outstanding() + count <= self.depth:
                    event._check_kept()
                    for owner, (codec, opcode, values) in zip(owners, entries, strict=True):
                        completions.slots[pair.sq_tail & completions.slot_mask] = owner
                        pair.put(codec, opcode, values)
                    try:
                        pair.publish()
                    except NpuError as error:
                        event._drop(error)  # this call reports the loss; nobody else has the event
                        raise
                    return
            if not may_wait:
                raise self._full(count)
            self._await_room(count)

    def _require_room(self, count: int) -> None:
        """Raise QueueFull unless `count` more commands fit now; called with the lock held."""
        if self._completions.closed is not None:
            self._completions.refuse()
        self._completions.reap_locked()
        if self._pair.outstanding() + count > self.depth:
            raise self._full(count)

    def _await_room(self, count: int) -> None:
        """Wait until `count` more commands fit, or raise QueueFull right away."""
        if self.when_full == "raise":
            raise self._full(count)
        self._completions.wait_until(lambda: self._pair.outstanding() + count <= self.depth, None, "room in the queue")

    def _full(self, count: int) -> QueueFull:
        return QueueFull(
            f"the queue holds {self._pair.outstanding()} of {self.depth} commands; {count} more do not fit",
            depth=self.depth,
            device=self._completions.address,
            subsystem="queue",
            remedy='wait for an event, or open the queue with when_full="wait"',
        )

    # --- the end -----------------------------------------------------------------------------------------------

    def drain(self, timeout: float | None = None) -> None:
        """Wait until nothing is in flight."""
        completions = self._completions
        with completions.lock:
            if completions.has_ended:
                completions.refuse()
            if completions.closed is None:
                self._pair.publish()  # a submission that Ctrl-C cut short may not have been
        completions.wait_until(lambda: not self._pair.outstanding(), timeout, "draining the queue")

    def close(self) -> None:
        """Delete the queue. Commands still in flight end with CommandFailed; idempotent."""
        completions = self._completions
        closed = Closed("the queue is closed", device=completions.address, remedy="open another with dev.queue()")
        unfinished = CommandFailed(
            "the queue was closed before the command ended", code="queue-closed", device=completions.address
        )
        if completions.closed is not None:
            return
        completions.shut(closed)
        try:
            completions.owner.delete_queue(self, self._opened)
        finally:
            completions.fail_all(unfinished, closed)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or its device reset, closed or lost."""
        return self._completions.closed is not None

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is None and not self.closed:
                self.drain()
        finally:
            self.close()


def ring_entries(depth: int) -> int:
    """Entries of the rings of a queue of this depth."""
    return max(_SMALLEST_RING, 1 << (_RING_FACTOR * depth - 1).bit_length())
