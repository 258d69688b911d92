"""Who sleeps until a queue has reaped something: threads, and event loops.

Of the sleeping threads one, the leader, sleeps on the interrupt; the others sleep on tokens of their own and are told.
Descriptors are copies, owned by what sleeps on them: a number that someone else closed may already be another file.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


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
    """An event loop that sleeps on a queue: its own copy of the interrupt, and the timer that looks after it."""

    __slots__ = ("interrupt", "loop", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, interrupt: OwnedDescriptor) -> None:
        self.loop = loop
        self.interrupt = OwnedDescriptor(os.dup(interrupt.number))
        self.timer: asyncio.TimerHandle | None = None

    def leave(self) -> None:
        """Stop watching. Called in the loop."""
        if self.timer is not None:
            self.timer.cancel()
        self.loop.remove_reader(self.interrupt.number)
