"""The completion side of a queue: settling events, and whoever waits for them.

The one rule for threads, asyncio and resets: a queue's lock guards its rings and is held only for work that never
waits; whoever waits (thread or event loop) also reaps, for everybody; events are settled under the lock and their
waiters told before it is let go. See docs/concurrency.md.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from driver_shim import timeouts
from driver_shim.errors import Closed, CommandFailed, ContractMismatch, DeviceLost, NpuError, Timeout
from driver_shim.function.queue_pair import HostQueuePair
from driver_shim.function.spinning import Spinner
from driver_shim.protocol import ring
from driver_shim.protocol.commands import status_slug
from sdk.queue.events import Event, StatusesEvent, set_if_waiting
from sdk.queue.waiters import LoopWatch, OwnedDescriptor, Threads

if TYPE_CHECKING:
    import asyncio

    from sdk.device import Device

_MS_PER_S = 1000


class Piece:
    """Consecutive descriptors of one `submit` call, beginning at submission index `first`."""

    __slots__ = ("count", "event", "first", "position")

    def __init__(self, event: StatusesEvent, first: int, position: int, count: int) -> None:
        self.event, self.first, self.position, self.count = event, first, position, count

    def keeps(self, thing: object) -> bool:
        return self.event.keeps(thing)

    def fail(self, error: NpuError) -> None:
        self.event.fail(error)

    def drop(self, error: NpuError) -> None:
        self.event.drop(error)


class CompletionSide:
    """Reaps completions, settles their events and wakes who waits. `Queue` adds the submission side."""

    def __init__(self, device: Device, pair: HostQueuePair, interrupt: int) -> None:
        self.device = device
        self.device_address = device.address
        self._pair = pair
        self._interrupt = OwnedDescriptor(os.dup(interrupt))
        self._lock = threading.Lock()
        self.convert_lock = threading.Lock()
        """Held while an event's value is made of what its command left in host memory."""
        self._threads = Threads()
        self._slots: list[Event[Any] | Piece | None] = [None] * pair.entries
        """Who waits for the completion of each slot of the submission ring."""
        self._slot_mask = pair.entries - 1
        self._futures: list[tuple[Event[Any], asyncio.Future[None], float]] = []
        self._watches: dict[asyncio.AbstractEventLoop, LoopWatch] = {}
        self._spinner = Spinner(device.transport.progress)
        self._closed: NpuError | None = None
        self._ending = False
        """Submissions are refused already, but `fail_all` has yet to say how outstanding commands end."""

    # --- reaping -----------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Settle every event whose completion is there. Never blocks."""
        with self._lock:
            self._reap_locked()

    def _reap_locked(self) -> bool:
        """Settle what has completed; True if anything had. Tells waiting threads and loops.

        While loops wait the interrupt stays armed, whoever reaps: they only sleep on it, and do not look again.
        """
        pair = self._pair
        if self._closed is not None or not pair.ready():
            return False
        try:
            while True:
                while pair.ready():  # cut short at any point, it can be repeated: the head moves last
                    slot = pair.cq_head & self._slot_mask
                    owner = self._slots[slot]
                    if isinstance(owner, Piece):
                        self._settle_piece(owner, slot)
                        continue
                    _, _, status, _, _, start, end = pair.peek()
                    if owner is not None:
                        owner.finish(status, start, end)
                        self._slots[slot] = None
                    pair.advance()
                self._tell_waiters()
                if not self._futures or pair.arm_interrupt():
                    return True
        except ContractMismatch as error:
            self._end_locked(error, error)
            return True

    def _settle_piece(self, piece: Piece, slot: int) -> None:
        done = (self._pair.cq_head - piece.first) & ring.INDEX_MASK
        rows = self._pair.peek_array(piece.count - done)
        piece.event.absorb(piece.position + done, rows)
        self._slots[slot : slot + len(rows)] = [None] * len(rows)
        self._pair.advance(len(rows))

    def _tell_waiters(self) -> None:
        """After events were settled, with the lock held: wake threads and loops that may wait for them."""
        threads = self._threads
        if threads.leader is not None or threads.followers:
            threads.wake()
        if self._futures:
            waiting = []
            for entry in self._futures:
                event, future, _ = entry
                if event.is_done():
                    _resolve(future)
                elif not future.done():
                    waiting.append(entry)
            self._futures = waiting

    def command_error(self, what: str, status: int) -> CommandFailed:
        """The error of a completion status."""
        slug = status_slug(status)
        return CommandFailed(
            f"{what} failed: {slug}",
            status=status,
            code=slug,
            device=self.device_address,
            subsystem="queue",
            remedy="the device's error log says more: dev.errors()",
        )

    # --- waiting: threads --------------------------------------------------------------------------------------

    def wait_until(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Wait until `condition` holds, reaping. Raises Timeout, DeviceLost, or the error the queue ended with.

        Spins with `Transport.progress` for at most SPIN_S (not at all on one CPU), then sleeps on the interrupt.
        """
        limit = self.device.timeout if timeout is None else _checked_timeout(timeout)
        now = time.monotonic()
        deadline = now + limit
        spin_until = now + (timeouts.SPIN_S if self.device.may_spin else 0.0)
        turn = self._spinner.turn
        ready = self._pair.ready
        while True:
            if self._closed is None and ready():
                with self._lock:
                    self._reap_locked()
            if condition():
                return
            if self._over:
                self._refuse()
            previous, now = now, time.monotonic()
            if now >= deadline:
                raise self._timed_out(what, limit)
            if now < spin_until:
                turn(previous, now)
            else:
                self._sleep(condition, deadline - now)

    def _sleep(self, condition: Callable[[], bool], patience_s: float) -> None:
        """Block until something was reaped, the patience or one liveness interval ends, whichever is first."""
        interval = min(patience_s, timeouts.LIVENESS_S)
        threads, me = self._threads, threading.get_ident()
        token: threading.Lock | None = None
        try:
            with self._lock:
                self._reap_locked()
                if condition() or self._over:
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
        with self._lock:
            armed = self._closed is None and self._pair.arm_interrupt()
        if armed:
            transport = self.device.transport
            transport.progress()
            poller = select.poll()
            poller.register(self._interrupt.number, select.POLLIN)
            poller.register(self._threads.nudge.number, select.POLLIN)
            if transport.hang_up_fd is not None:
                poller.register(transport.hang_up_fd, 0)
            if not poller.poll(interval * _MS_PER_S) or not transport.alive():
                self.device.check_alive()
        self._threads.nudge.drain()
        with self._lock:
            if self._closed is None:  # else the vector may already be another queue's
                self._interrupt.drain()
            self._reap_locked()

    def _timed_out(self, what: str, limit: float) -> Timeout:
        return Timeout(
            f"{what} did not end within {limit:g} s; the job goes on",
            device=self.device_address,
            subsystem="queue",
            remedy="wait longer, or reset the device",
        )

    # --- waiting: event loops ----------------------------------------------------------------------------------

    def notify(self, event: Event[Any], future: asyncio.Future[None]) -> None:
        """Resolve `future` in its loop when `event` ends, or with Timeout or DeviceLost. Called in that loop."""
        loop = future.get_loop()
        with self._lock:
            self._reap_locked()
            if event.is_done():
                future.set_result(None)
                return
            if self._over:
                self._refuse()
            self._futures.append((event, future, time.monotonic() + self.device.timeout))
        if loop not in self._watches:
            watch = self._watches[loop] = LoopWatch(loop, self._interrupt)
            loop.add_reader(watch.interrupt.number, self._on_interrupt, watch)
            watch.timer = loop.call_later(timeouts.LIVENESS_S, self._look_after, watch)
        self._reap_and_arm()

    def _on_interrupt(self, watch: LoopWatch) -> None:
        """The interrupt came: runs in a loop that awaits events of this queue."""
        if self._over:
            self._unwatch(watch)
            return
        watch.interrupt.drain()
        self._reap_and_arm()

    def _reap_and_arm(self) -> None:
        """Reap until nothing is there, with the interrupt armed for what comes next."""
        self.device.transport.progress()
        with self._lock:
            self._reap_locked()
            while self._futures and self._closed is None and not self._pair.arm_interrupt():
                self._reap_locked()

    def _look_after(self, watch: LoopWatch) -> None:
        """Each liveness interval while a loop has futures here: time-outs, liveness, and leaving when idle."""
        now = time.monotonic()
        with self._lock:
            self._reap_locked()
            self._tell_waiters()  # also of what an interrupted thread settled and did not tell
            mine = [entry for entry in self._futures if entry[1].get_loop() is watch.loop]
            late = [entry for entry in mine if now >= entry[2]]
            self._futures = [entry for entry in self._futures if entry not in late]
        for event, future, _ in late:
            set_if_waiting(future, self._timed_out(repr(event), self.device.timeout))
        if len(mine) == len(late):
            self._unwatch(watch)
            return
        watch.timer = watch.loop.call_later(timeouts.LIVENESS_S, self._look_after, watch)
        try:
            self.device.check_alive()
        except (DeviceLost, Closed):
            pass  # every queue has been told
        except NpuError as error:
            self.device.lost(error)
        if self._closed is None:
            self._reap_and_arm()

    def _unwatch(self, watch: LoopWatch) -> None:
        """The loop has nothing to wait for here any more; called in it."""
        if self._watches.get(watch.loop) is watch:
            del self._watches[watch.loop]
            watch.leave()

    # --- the end -----------------------------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        """Whether the queue has ended and said how; while it is ending, what is outstanding has yet to be settled."""
        return self._closed is not None and not self._ending

    def _refuse(self) -> NoReturn:
        """Raise what the queue ended with."""
        if self._closed is None:
            raise RuntimeError("the queue is open")
        raise self._closed.again()

    def shut(self, closed: NpuError) -> None:
        """Refuse submissions from now on; what is there already is settled first."""
        with self._lock:
            if self._closed is None:
                self._reap_locked()
            if self._closed is None:
                self._closed = closed
                self._ending = True

    def shut_in_child(self, closed: NpuError) -> None:
        """In a forked child: everything outstanding ends with `closed`, and the rings, which are not there, stay alone.

        The locks may be held by threads that do not exist here.
        """
        self._closed = closed
        self._ending = False
        self._lock = threading.Lock()
        self.convert_lock = threading.Lock()
        self._threads = Threads()
        self._futures = []
        self._watches = {}
        for owner in self._slots:
            if owner is not None:
                owner.drop(closed)
        self._slots = [None] * len(self._slots)

    def fail_all(self, error: NpuError, closed: NpuError) -> None:
        """End every outstanding command with `error`; later submissions raise `closed`."""
        with self._lock:
            if self._closed is None:
                self._reap_locked()
            self._end_locked(error, self._closed or closed)

    def _end_locked(self, error: NpuError, closed: NpuError) -> None:
        self._closed = closed
        self._ending = False
        for slot, owner in enumerate(self._slots):
            if owner is not None:
                owner.fail(error)
                self._slots[slot] = None
        self._tell_waiters()
        for loop, watch in list(self._watches.items()):
            with contextlib.suppress(RuntimeError):  # the loop was closed: it watches nothing any more
                loop.call_soon_threadsafe(self._unwatch, watch)


def _resolve(future: asyncio.Future[None]) -> None:
    """Settle a future from any thread; a loop that was closed meanwhile has nobody waiting."""
    with contextlib.suppress(RuntimeError):
        future.get_loop().call_soon_threadsafe(set_if_waiting, future)


def _checked_timeout(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or math.isnan(timeout) or timeout < 0:
        raise ValueError(f"timeout must be seconds >= 0, math.inf or None, got {timeout!r}")
    return float(timeout)
