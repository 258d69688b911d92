"""The queues that all models of a device share: as many as it has engines, so that models never run out of them."""

from __future__ import annotations

from collections.abc import Callable

from driver_shim.errors import CommandFailed
from driver_shim.protocol.commands import MAX_BINDINGS
from sdk.queue.queue import Queue

QUEUE_DEPTH = 4 * MAX_BINDINGS
"""More than the commands of many runs, each of which goes into the queue whole."""


class QueuePool:
    """Opens queues as lanes ask for them. The caller serialises."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lanes: dict[Queue, int] = {}
        """How many lanes use each."""

    def take(self, create: Callable[[int, str], Queue]) -> Queue:
        """A queue for one more lane: a new one, or the one that the fewest lanes use. Raises CommandFailed."""
        quietest = min(self._lanes, key=self._lanes.__getitem__, default=None)
        if quietest is None or (self._lanes[quietest] and len(self._lanes) < self._most):
            try:
                quietest = create(QUEUE_DEPTH, "wait")
            except CommandFailed:  # the application has the others
                if quietest is None:
                    raise
            else:
                self._lanes[quietest] = 0
        self._lanes[quietest] += 1
        return quietest

    def give(self, queue: Queue) -> Queue | None:
        """A lane needs its queue no more; returns the queue if nobody does, for the caller to close."""
        if queue not in self._lanes:  # a reset came meanwhile
            return None
        self._lanes[queue] -= 1
        if self._lanes[queue]:
            return None
        del self._lanes[queue]
        return queue

    def forget_all(self) -> None:
        """The device was reset or closed, and its queues are gone."""
        self._lanes = {}
