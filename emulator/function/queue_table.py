"""The queues that exist: by number, and in the order in which they have their turns."""

from __future__ import annotations

from emulator.function.queue_pair import QueuePair, QueueState


class QueueTable:
    """Queues in the order of their creation."""

    __slots__ = ("by_id", "turns")

    def __init__(self) -> None:
        self.by_id: dict[int, QueuePair] = {}
        self.turns: tuple[QueuePair, ...] = ()
        """The same queues; a tuple, so that a queue can come or go while they have their turns."""

    def add(self, queue: QueuePair) -> None:
        """Have a created queue served."""
        self.by_id[queue.queue_id] = queue
        self.turns = tuple(self.by_id.values())

    def remove(self, queue_id: int) -> None:
        """Have a queue served no more; the command it is carrying out is discarded."""
        queue = self.by_id.pop(queue_id)
        queue.state = QueueState.DELETED
        self.turns = tuple(self.by_id.values())
        if queue.job is not None:
            queue.job.discard()

    def clear(self) -> None:
        """Have no queue served any more. Whoever runs their commands discards those."""
        for queue in self.turns:
            queue.state = QueueState.DELETED
        self.by_id = {}
        self.turns = ()
