"""The queues that all models of a device share: as many as it has engines, so that models never run out of them."""

from __future__ import annotations

from collections.abc import Callable

from driver_shim.errors import CommandFailed
from driver_shim.protocol.commands import MAX_BINDINGS
from sdk.queue.queue import Queue

QUEUE_DEPTH = 4 * MAX_BINDINGS
"""More than the commands of many runs, each of which goes into the queue whole."""
ALL_TAKEN = "invalid-queue"
"""Code of the error where the application has the others."""


class QueuePool:
    """Opens queues as lanes ask for them. The caller serialises."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lanes: dict[Queue, int] = {}
        """How many lanes use each."""

    def take(self, create: Callable[[int, str], Queue]) -> Queue:
        """A queue for one more lane: a new one, or the one that the fewest lanes use. Raises CommandFailed."""
        queue = self._quietest()
        if queue is None or (self._lanes[queue] and len(self._lanes) < self._most):
            try:
                queue = create(QUEUE_DEPTH, "wait")
            except CommandFailed as error:
                queue = self._quietest()  # anew, since `create` cleans up what was let go
                if queue is None or error.code != ALL_TAKEN:
                    raise
            self._lanes.setdefault(queue, 0)
        self._lanes[queue] += 1
        return queue

    def _quietest(self) -> Queue | None:
        return min(self._lanes, key=self._lanes.__getitem__, default=None)

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
