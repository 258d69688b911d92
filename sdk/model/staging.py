"""The host memory that runs of a lane are staged through. Each run has its own until its outputs were taken."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

from numpy.typing import NDArray

from driver_shim.errors import BufferInUse, HostMemoryLimit, QueueFull
from sdk.model.port import ModelOwner
from sdk.model.runs import RunEvent
from sdk.model.staging_pools import LaneStagings
from sdk.queue.queue import Queue

MOST_STAGINGS = 32
STAGING_BUDGET_BYTES = 64 << 20
"""A lane has stagings for this many runs, or for as many as fit into so much memory, and never less than two."""


class Staging:
    """Host memory of one run."""

    def __init__(self, owner: ModelOwner, size: int) -> None:
        self._block = owner.host_buffer(size, "uint8")
        self.size = size
        self.run: RunEvent | None = None
        """Whose outputs are in it, or will be."""
        self.turn = 0
        """When it was taken: the lower, the earlier."""
        self.prepared: Any = None
        """What the last work in it made ready for the next of its kind."""

    @property
    def address(self) -> int:
        """Bus address of its first byte."""
        return self._block.address

    @property
    def memory(self) -> NDArray[Any]:
        """Its bytes. Whoever keeps a view of them keeps it in `prepared`."""
        return self._block.array

    def let_go(self) -> None:
        """Give the memory back at once, whoever still refers to this object."""
        self.prepared = None
        with contextlib.suppress(BufferInUse):  # an error's traceback has a view: it goes with that
            self._block.free()


class StagingPool:
    """The stagings of one lane. Members may be used without a lock, unless they say otherwise."""

    def __init__(self, owner: ModelOwner, queue: Queue) -> None:
        self._owner = owner
        self._queue = queue
        self._all = owner.stagings
        self._idle: list[Staging] = []
        self._taken: deque[Staging] = deque()
        """In use, the longest first: by a run in flight, or with outputs that nobody has taken yet."""
        self._all.add(self)

    def take(self, size: int, may_wait: bool) -> Staging:
        """Host memory for one more run, when there is some: what the oldest run left is then made an array.

        The oldest of this lane, or where it has none, of all lanes.
        Raises HostMemoryLimit where no run has any that could be waited for; QueueFull where it may not wait.
        """
        most = max(2, min(MOST_STAGINGS, STAGING_BUDGET_BYTES // max(size, 1)))
        while True:
            with self._all.lock:
                staging = self._at_once(size, most)
            if staging is not None:
                return staging
            if not may_wait:
                raise QueueFull("all staging is in use", device=self._owner.address)
            holder = self._holder()
            if holder is not None:
                holder.reclaim_oldest()

    def _at_once(self, size: int, most: int) -> Staging | None:
        staging = self._idle_one(size)
        if staging is None and len(self._taken) < most:
            staging = self._new(size)
        if staging is not None:
            staging.turn = next(self._all.turns)
            self._taken.append(staging)
        return staging

    def _idle_one(self, size: int) -> Staging | None:
        while self._idle:
            staging = self._idle.pop()
            if staging.size >= size:
                return staging
            staging.let_go()  # it was for a smaller program
        return None

    def _new(self, size: int) -> Staging | None:
        """One more, in place of idle ones of any lane if need be; None where a run has to end first."""
        while True:
            try:
                return Staging(self._owner, size)
            except HostMemoryLimit:
                if self._all.let_go_of_one():
                    continue
                if not self._all.in_use():
                    raise
                return None

    def let_go_of_one(self) -> bool:
        """Give the memory of an idle staging back; False where none is idle. Called with the lock of all held."""
        if not self._idle:
            return False
        self._idle.pop().let_go()
        return True

    def give(self, staging: Staging, run: RunEvent) -> None:
        """The run needs its staging no more. Ignored when it gave it back before."""
        if staging.run is run:
            staging.run = None
            self._idle.append(staging)  # first, so that whoever looks meanwhile finds it in one of both
            self._taken.remove(staging)

    def in_use(self) -> bool:
        """Whether there is any staging, taken or idle."""
        return bool(self._taken) or bool(self._idle)

    def oldest_turn(self) -> int | None:
        """When the run took its staging that has had it for longest, by the turns of all."""
        staging = self._oldest()
        return None if staging is None else staging.turn

    def oldest_run(self) -> RunEvent | None:
        """The run that has had its staging for longest, in this lane or where it has none, in all."""
        holder = self._holder()
        return None if holder is None else holder.own_oldest_run()

    def own_oldest_run(self) -> RunEvent | None:
        """The run of this lane that has had its staging for longest."""
        staging = self._oldest()
        return None if staging is None else staging.run

    def _holder(self) -> LaneStagings | None:
        """The lane with the run to wait for."""
        return self if self._oldest() is not None else self._all.holder()

    def _oldest(self) -> Staging | None:
        return next((each for each in tuple(self._taken) if each.run is not None), None)

    def reclaim_oldest(self) -> None:
        """Wait for the oldest run, and make arrays of what it left. Raises Timeout, DeviceLost."""
        staging = self._oldest()
        run = None if staging is None else staging.run
        if staging is None or run is None:  # given back meanwhile
            return
        run._await_end()
        run._take_value()
        # The run of a closed model has ended before the device is done with its staging.
        self._queue._completions.wait_until(lambda: staging.run is not run, None, "model run")
