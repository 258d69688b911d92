"""The stagings of all lanes of a device, which share its host memory."""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import Protocol

from sdk.model.runs import RunEvent


class LaneStagings(Protocol):
    """The stagings of one lane."""

    def let_go_of_one(self) -> bool:
        """Give the memory of an idle staging back; False where none is idle. Called with the lock of all held."""

    def in_use(self) -> bool:
        """Whether there is any staging, taken or idle."""

    def oldest_turn(self) -> int | None:
        """When the run took its staging that has had it for longest, by the turns of all."""

    def own_oldest_run(self) -> RunEvent | None:
        """The run of this lane that has had its staging for longest."""

    def reclaim_oldest(self) -> None:
        """Wait for that run, and make arrays of what it left. Raises Timeout, DeviceLost."""


class StagingPools:
    """Where host memory is found when a lane can get no more. Thread-safe, but for what says otherwise.

    Its lock is held while a lane takes a staging, never while anything is waited for. Stagings are given back without.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.turns = itertools.count()
        """Numbers of the stagings that are taken, in order."""
        self._pools: weakref.WeakSet[LaneStagings] = weakref.WeakSet()

    def add(self, pool: LaneStagings) -> None:
        """One more lane."""
        with self.lock:
            self._pools.add(pool)

    def let_go_of_one(self) -> bool:
        """Give the memory of an idle staging back; False where none is idle. Called with the lock held."""
        return any(pool.let_go_of_one() for pool in self._pools)

    def in_use(self) -> bool:
        """Whether any lane has a staging, so that memory will come. Called with the lock held."""
        return any(pool.in_use() for pool in self._pools)

    def holder(self) -> LaneStagings | None:
        """The lane with the run that has had its staging for longest."""
        with self.lock:
            turns = [(turn, pool) for pool in self._pools if (turn := pool.oldest_turn()) is not None]
        return min(turns, key=lambda each: each[0], default=(0, None))[1]
