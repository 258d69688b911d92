"""Sleepers until a queue has reaped something: threads, and event loops.

Of the sleeping threads one, the leader, sleeps on the interrupt; the others sleep on tokens of their own and are told.
Descriptors are copies, owned by what sleeps on them: a number that someone else closed may already be another file.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from driver_shim.errors import NpuError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class OwnedDescriptor:
    """A file descriptor that is closed when the last reference to this object goes."""

    __slots__ = ("_close", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self._close = os.close  # still there at the interpreter's exit

    def drain(self) -> None:
        """Take what an eventfd holds, if anything."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.number)

    def __del__(self) -> None:
        self._close(self.number)


class Threads:
    """Threads that sleep on one queue. Members are used under the queue's lock, unless they say otherwise."""

    __slots__ = ("followers", "leader", "nudge")

    def __init__(self) -> None:
        self.leader: int | None = None
        """Identifier of the thread that sleeps on the interrupt for all."""
        self.followers: list[threading.Lock] = []
        """A token of each other one; releasing it wakes its thread."""
        self.nudge = OwnedDescriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        """Wakes the leader. The interrupt would not do: an event loop may drain it first."""

    def follow(self) -> threading.Lock:
        """A token to sleep on."""
        token = threading.Lock()
        token.acquire()
        self.followers.append(token)
        return token

    def leave(self, token: threading.Lock) -> None:
        """A follower sleeps no more. Needs no lock, so that an interrupted thread cannot fail to leave."""
        with contextlib.suppress(ValueError):
            self.followers.remove(token)

    def wake(self) -> None:
        """Wake them all to look for themselves. Needs no lock."""
        followers = self.followers
        while followers:
            try:
                followers.pop().release()
            except IndexError:  # it left just now
                break
        leader = self.leader
        if leader is not None and leader != threading.get_ident():
            os.eventfd_write(self.nudge.number, 1)


class LoopWatch:
    """An event loop that sleeps on a queue's interrupt, and the timer that looks after it."""

    __slots__ = ("loop", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.timer: asyncio.TimerHandle | None = None


class LoopWatches:
    """The loops that watch one interrupt. A loop that was closed is forgotten when the next one comes."""

    def __init__(self, interrupt: OwnedDescriptor) -> None:
        self._interrupt = interrupt
        self._watches: dict[asyncio.AbstractEventLoop, LoopWatch] = {}

    def begin(self, loop: asyncio.AbstractEventLoop, on_interrupt: Callable[[LoopWatch], None]) -> LoopWatch | None:
        """Have the loop call `on_interrupt`; None if it does already. Called in the loop."""
        if loop in self._watches:
            return None
        for other in list(self._watches):  # a copy made in one step, since loops of other threads come and go
            if other.is_closed():
                self._watches.pop(other, None)
        watch = self._watches[loop] = LoopWatch(loop)
        loop.add_reader(self._interrupt.number, on_interrupt, watch)
        return watch

    def end(self, watch: LoopWatch) -> None:
        """The loop has nothing to wait for here any more; called in it."""
        if self._watches.get(watch.loop) is watch:
            del self._watches[watch.loop]
            if watch.timer is not None:
                watch.timer.cancel()
            watch.loop.remove_reader(self._interrupt.number)

    def end_all(self) -> None:
        """Have every loop stop watching, from any thread."""
        for loop, watch in list(self._watches.items()):
            with contextlib.suppress(RuntimeError):  # the loop was closed: it watches nothing any more
                loop.call_soon_threadsafe(self.end, watch)


def resolve(future: asyncio.Future[None]) -> None:
    """Settle a future from any thread; a loop that was closed meanwhile has nobody waiting."""
    with contextlib.suppress(RuntimeError):
        future.get_loop().call_soon_threadsafe(set_if_waiting, future)


def set_if_waiting(future: asyncio.Future[None], error: NpuError | None = None) -> None:
    """Resolve a future unless its task was cancelled meanwhile; runs in the future's loop."""
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
