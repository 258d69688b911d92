"""The completion side of a queue: settling events, and whoever waits for them.

The one rule for threads, asyncio and resets: a queue's lock guards its rings and is held only for work that never
waits; whoever waits (thread or event loop) also reaps, for everybody; events are settled under the lock and their
waiters told before it is let go. See docs/concurrency.md.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from driver_shim import timeouts
from driver_shim.errors import Closed, CommandFailed, ContractMismatch, DeviceLost, NpuError, Timeout
from driver_shim.function.queue_pair import HostQueuePair
from driver_shim.function.spinning import Spinner
from driver_shim.protocol import ring
from driver_shim.protocol.commands import status_slug
from sdk.queue.events import Event, StatusesEvent
from sdk.queue.port import QueueOwner
from sdk.queue.waiters import LoopWatches, OwnedDescriptor, Threads, resolve, set_if_waiting

if TYPE_CHECKING:
    import asyncio

    from sdk.queue.waiters import LoopWatch

_MS_PER_S = 1000


class Piece:
    """Consecutive descriptors of one `submit` call, beginning at submission index `first`."""

    __slots__ = ("count", "event", "first", "position")

    def __init__(self, event: StatusesEvent, first: int, position: int, count: int) -> None:
        self.event, self.first, self.position, self.count = event, first, position, count

    def _keeps(self, thing: object) -> bool:
        return self.event._keeps(thing)

    def _fail(self, error: NpuError) -> None:
        self.event._fail(error)

    def _drop(self, error: NpuError) -> None:
        self.event._drop(error)


class SlotOwner(Protocol):
    """Who is told of a command's end."""

    def _finish(self, status: int, start_tick: int, end_tick: int, result: int) -> None:
        """The completion arrived."""

    def _keeps(self, thing: object) -> bool:
        """Whether the command, still in flight, uses this buffer."""

    def _fail(self, error: NpuError) -> None:
        """It ended with its queue."""

    def _drop(self, error: NpuError) -> None:
        """It is not submitted, or belongs to the parent of this process; nobody need be told."""


class Completions:
    """Reaps one queue's completions, settles their events and wakes who waits. `Queue` puts commands in."""

    def __init__(self, owner: QueueOwner, pair: HostQueuePair, interrupt: int) -> None:
        self.owner = owner
        self.address = owner.address
        self.pair = pair
        self.lock = threading.Lock()
        """Guards rings and slots."""
        self.convert_lock = threading.Lock()
        self.slots: list[SlotOwner | Piece | None] = [None] * pair.entries
        """Who waits for the completion of each slot of the submission ring."""
        self.slot_mask = pair.entries - 1
        self.closed: NpuError | None = None
        """Why nothing can be submitted any more."""
        self._interrupt = OwnedDescriptor(os.dup(interrupt))
        self._threads = Threads()
        self._futures: list[tuple[Event[Any], asyncio.Future[None], float]] = []
        self._watches = LoopWatches(self._interrupt)
        self._spinner = Spinner(owner.transport)
        self._spins_quietly = owner.may_spin and not owner.transport.steps_device
        self._ending = False
        """Submissions are refused already, but `fail_all` has yet to say how outstanding commands end."""

    # --- reaping -----------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Settle every event whose completion is there. Never blocks."""
        with self.lock:
            self.reap_locked()

    def reap_locked(self) -> bool:
        """Settle what has completed; True if anything had. Tells waiting threads and loops.

        While loops wait the interrupt stays armed, whoever reaps: they only sleep on it, and do not look again.
        """
        pair = self.pair
        if self.closed is not None:
            return False
        slots, mask = self.slots, self.slot_mask
        try:
            completion = pair.peek()
            if completion is None:
                return False
            while True:
                while completion is not None:  # cut short at any point, it can be repeated: the head moves last
                    slot = pair.cq_head & mask
                    owner = slots[slot]
                    if isinstance(owner, Piece):
                        self._settle_piece(owner, slot)
                    else:
                        if owner is not None:
                            owner._finish(completion[2], completion[5], completion[6], completion[4])
                            slots[slot] = None
                        pair.advance()
                    completion = pair.peek() if pair.cq_head != pair.sq_tail else None
                threads = self._threads
                if self._futures or threads.leader is not None or threads.followers:
                    self._tell_waiters()
                if not self._futures or pair.arm_interrupt():
                    return True
                completion = pair.peek()
        except ContractMismatch as error:
            self._end_locked(error, error)
            return True

    def _settle_piece(self, piece: Any, slot: int) -> None:
        done = (self.pair.cq_head - piece.first) & ring.INDEX_MASK
        rows = self.pair.peek_array(piece.count - done)
        piece.event._absorb(piece.position + done, rows)
        self.slots[slot : slot + len(rows)] = [None] * len(rows)
        self.pair.advance(len(rows))

    def _tell_waiters(self) -> None:
        """After events were settled, with the lock held: wake threads and loops that may wait for them."""
        threads = self._threads
        if threads.leader is not None or threads.followers:
            threads.wake()
        if self._futures:
            waiting = []
            for entry in self._futures:
                event, future, _ = entry
                if event._done:
                    if not future.done():
                        event._take_failure()  # whoever awaits is told, even if it is cancelled meanwhile
                    resolve(future)
                elif not future.done():
                    waiting.append(entry)
            self._futures = waiting

    def uses(self, buffer: object) -> bool:
        """Whether a command in flight uses the buffer."""
        with self.lock:
            self.reap_locked()
            return any(owner is not None and owner._keeps(buffer) for owner in self.slots)

    def idle(self) -> bool:
        """Whether nothing is in flight. Never blocks."""
        with self.lock:
            self.reap_locked()
            return self.closed is not None or not self.pair.outstanding()

    def command_error(self, what: str, status: int) -> CommandFailed:
        """The error of a completion status."""
        slug = status_slug(status)
        return CommandFailed(
            f"{what} failed: {slug}",
            status=status,
            code=slug,
            device=self.address,
            subsystem="queue",
            remedy="the device's error log says more: dev.errors()",
        )

    # --- waiting: threads --------------------------------------------------------------------------------------

    def wait_for(self, event: Event[Any], timeout: float | None) -> None:
        """Wait until the event has ended, reaping. Raises Timeout, DeviceLost, or the error the queue ended with."""
        limit = None if timeout is None else _checked_timeout(timeout)
        if self._spins_quietly and self.closed is None:  # else the rings may be gone, as in a forked child
            patient = limit is None or limit >= timeouts.QUIET_SPIN_S
            until = time.monotonic() + (timeouts.QUIET_SPIN_S if patient else limit or 0.0)
            while self.pair.spin(until):
                with self.lock:
                    self.reap_locked()
                if event._done:
                    return
                if self.closed is not None:
                    break
            else:
                if patient:
                    self._spinner.missed(until)
        self.wait_until(lambda: event._done, limit, event._what, quietly_first=False)

    def wait_until(
        self, condition: Callable[[], bool], timeout: float | None, what: str, *, quietly_first: bool = True
    ) -> None:
        """Wait until `condition` holds, reaping. Raises Timeout, DeviceLost, or the error the queue ended with.

        Spins for QUIET_SPIN_S without letting go of the CPU, then with `Transport.progress`, for SPIN_S in all (not at
        all on one CPU), then sleeps on the interrupt.
        """
        limit = self.owner.timeout if timeout is None else _checked_timeout(timeout)
        now = time.monotonic()
        deadline = now + limit
        spin_until = now + (timeouts.SPIN_S if self.owner.may_spin else 0.0)
        quiet_until = now + timeouts.QUIET_SPIN_S if quietly_first and self._spins_quietly else now
        yields, ready = self._spinner.yields, self.pair.ready
        while True:
            if self.closed is None and ready():
                with self.lock:
                    self.reap_locked()
            if condition():
                return
            if self.has_ended:
                self.refuse()
            now = time.monotonic()
            if now >= deadline:
                raise self._timed_out(what, limit)
            if now < quiet_until:
                self.pair.spin(min(quiet_until, deadline))
            elif now >= spin_until or not yields():
                self._sleep(condition, deadline - now)

    def _sleep(self, condition: Callable[[], bool], patience_s: float) -> None:
        """Block until something was reaped, the patience or one liveness interval ends, whichever is first."""
        interval = min(patience_s, timeouts.LIVENESS_S)
        threads, me = self._threads, threading.get_ident()
        token: threading.Lock | None = None
        try:
            with self.lock:
                self.reap_locked()
                if condition() or self.has_ended:
                    return
                if self._ending or threads.leader not in (None, me):
                    token = threads.follow()
                else:
                    threads.leader = me
            if token is None:
                self._sleep_as_leader(interval)
            else:
                token.acquire(timeout=interval)
        finally:
            if threads.leader == me:
                threads.leader = None
                threads.wake()
            if token is not None:
                threads.leave(token)

    def _sleep_as_leader(self, interval: float) -> None:
        with self.lock:
            armed = self.closed is None and self.pair.arm_interrupt()
        if armed:
            transport = self.owner.transport
            transport.progress()
            poller = select.poll()
            poller.register(self._interrupt.number, select.POLLIN)
            poller.register(self._threads.nudge.number, select.POLLIN)
            if transport.hang_up_fd is not None:
                poller.register(transport.hang_up_fd, 0)
            if not poller.poll(interval * _MS_PER_S) or not transport.alive():
                self._look_alive()
        self._threads.nudge.drain()
        with self.lock:
            if self.closed is None:  # else the vector may already be another queue's
                self._interrupt.drain()
            self.reap_locked()

    def _timed_out(self, what: str, limit: float) -> Timeout:
        return Timeout(
            f"{what} did not end within {limit:g} s; the job goes on",
            device=self.address,
            subsystem="queue",
            remedy="wait longer, or reset the device",
        )

    # --- waiting: event loops ----------------------------------------------------------------------------------

    def notify(self, event: Event[Any], future: asyncio.Future[None]) -> None:
        """Resolve `future` in its loop when `event` ends, or with Timeout or DeviceLost. Called in that loop."""
        loop = future.get_loop()
        with self.lock:
            self.reap_locked()
            if event._done:
                future.set_result(None)
                return
            if self.has_ended:
                self.refuse()
            self._futures.append((event, future, time.monotonic() + self.owner.timeout))
        watch = self._watches.begin(loop, self._on_interrupt)
        if watch is not None:
            watch.timer = loop.call_later(timeouts.LIVENESS_S, self._look_after, watch)
        self._reap_and_arm()

    def _on_interrupt(self, watch: LoopWatch) -> None:
        """The interrupt came: runs in a loop that awaits events of this queue."""
        if self.has_ended:
            self._watches.end(watch)
            return
        self._interrupt.drain()
        self._reap_and_arm()

    def _reap_and_arm(self) -> None:
        """Reap until nothing is there, with the interrupt armed for what comes next. Called in an event loop."""
        if self.owner.transport.steps_device:  # elsewhere it would give the loop's CPU away, on a busy machine for long
            self.owner.transport.progress()
        with self.lock:
            self.reap_locked()
            while self._futures and self.closed is None and not self.pair.arm_interrupt():
                self.reap_locked()

    def _look_after(self, watch: LoopWatch) -> None:
        """Each liveness interval while a loop has futures here: time-outs, liveness, and leaving when idle."""
        now = time.monotonic()
        with self.lock:
            self.reap_locked()
            self._tell_waiters()  # also of what an interrupted thread settled and did not tell
            mine = [entry for entry in self._futures if entry[1].get_loop() is watch.loop]
            late = [entry for entry in mine if now >= entry[2]]
            self._futures = [entry for entry in self._futures if entry not in late]
        for event, future, _ in late:
            set_if_waiting(future, self._timed_out(repr(event), self.owner.timeout))
        if len(mine) == len(late):
            self._watches.end(watch)
            return
        watch.timer = watch.loop.call_later(timeouts.LIVENESS_S, self._look_after, watch)
        self._look_alive()
        if self.closed is None:
            self._reap_and_arm()

    def _look_alive(self) -> None:
        """See whether the device lives. If it does not, every queue is told, this one too: waiters find out there."""
        try:
            self.owner.check_alive()
        except (DeviceLost, Closed):
            pass  # every queue has been told
        except NpuError as error:
            self.owner.lost(error)

    # --- the end -----------------------------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether the queue has ended and said how; while it is ending, what is outstanding has yet to be settled."""
        return self.closed is not None and not self._ending

    def refuse(self) -> NoReturn:
        """Raise what the queue ended with."""
        if self.closed is None:
            raise RuntimeError("the queue is open")
        raise self.closed.again()

    def shut(self, closed: NpuError) -> None:
        """Refuse submissions from now on; what is there already is settled first."""
        with self.lock:
            if self.closed is None:
                self.reap_locked()
            if self.closed is None:
                self.closed = closed
                self._ending = True

    def shut_in_child(self, closed: NpuError) -> None:
        """In a forked child: everything outstanding ends with `closed`, and the rings, which are not there, stay alone.

        The locks may be held by threads that do not exist here.
        """
        self.closed = closed
        self._ending = False
        self.lock = threading.Lock()
        self.convert_lock = threading.Lock()
        self._threads = Threads()
        self._futures = []
        self._watches = LoopWatches(self._interrupt)
        for owner in self.slots:
            if owner is not None:
                owner._drop(closed)
        self.slots = [None] * len(self.slots)

    def fail_all(self, error: NpuError, closed: NpuError) -> None:
        """End every outstanding command with `error`; later submissions raise `closed`."""
        with self.lock:
            if self.closed is None:
                self.reap_locked()
            self._end_locked(error, self.closed or closed)

    def _end_locked(self, error: NpuError, closed: NpuError) -> None:
        self.closed = closed
        self._ending = False
        for slot, owner in enumerate(self.slots):
            if owner is not None:
                owner._fail(error)
                self.slots[slot] = None
        self._tell_waiters()
        self._watches.end_all()


def _checked_timeout(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or math.isnan(timeout) or timeout < 0:
        raise ValueError(f"timeout must be seconds >= 0, math.inf or None, got {timeout!r}")
    return float(timeout)
