"""What queues have still to do to blocks and tables, which no other queue may run into."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdk.queue.events import Event
from sdk.queue.queue import Queue


class Preparations:
    """The last command that works on each of some things, by their numbers, and its queue. The caller serialises.

    A queue carries out its commands in order; of another's it knows nothing.
    """

    def __init__(self) -> None:
        self._last: dict[int, tuple[Queue, Event[Any]]] = {}

    def note(self, things: Iterable[int], queue: Queue, command: Event[Any]) -> None:
        """A queue was given a command that works on these, for which `await_others` was called before."""
        for thing in things:
            self._last[thing] = queue, command

    def await_others(self, things: Iterable[int], queue: Queue) -> None:
        """Wait until no other queue has anything to do to these. Raises Timeout, DeviceLost, Closed."""
        for thing in things:
            last = self._last.get(thing)
            if last is not None and last[0] is not queue:
                last[1]._await_end()
                del self._last[thing]
