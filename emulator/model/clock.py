"""Device time in ticks: the work that was scheduled plus the wall time between, never backwards.

While work is outstanding, wall time does not count: how long an emulator computes says nothing about the chip. Between
works it does, so that a pause the host makes is a pause the device sees. With an injected wall clock a run is
deterministic to the tick.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_NS_PER_S = 1_000_000_000
LAST_TICK = (1 << 64) - 1
"""Ticks are 64 bits on the bus; there they stop, so that a host which schedules aeons of work breaks nothing."""


class TickClock:
    """Device ticks of one function.

    Order of calls: `begin` when the first work arrives, any number of `schedule` and `complete`, `idle` when nothing
    is outstanding. Calls out of that order are harmless: `begin` while busy and `idle` while idle do nothing.
    """

    __slots__ = ("_busy", "_horizon", "_idle_since_ns", "_tick_hz", "_ticks", "_wall_ns")

    def __init__(self, tick_hz: int, wall_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Start at tick 0, idle. Raises ValueError unless `tick_hz` is positive."""
        if tick_hz <= 0:
            raise ValueError(f"tick_hz is {tick_hz}; it must be positive")
        self._tick_hz = tick_hz
        self._wall_ns = wall_ns
        self._busy = False
        self._ticks = 0
        self._horizon = 0
        """End of the last work scheduled; the time at which the device falls idle."""
        self._idle_since_ns = wall_ns()

    @property
    def busy(self) -> bool:
        """Whether work is outstanding (wall time does not count)."""
        return self._busy

    def now(self) -> int:
        """The current tick: while busy, the end of the last completed work."""
        return self._ticks if self._busy else self._idle_now(self._wall_ns())

    def begin(self) -> int:
        """Work starts: add the idle time and freeze. Returns the current tick."""
        if not self._busy:
            self._ticks = self._horizon = self._idle_now(self._wall_ns())
            self._busy = True
        return self._ticks

    def schedule(self, start_at_least: int, cost: int) -> tuple[int, int]:
        """Place work of `cost` ticks, not before `start_at_least` and not before now. Returns (start, end).

        `start_at_least` is the end of what it must follow: the work before it in its queue, the last of its engine.
        """
        # Not min and max: they cost three times as much, and every command passes here.
        start = self._ticks if self._ticks > start_at_least else start_at_least
        end = start + cost
        if end > LAST_TICK:
            start, end = min(start, LAST_TICK), LAST_TICK
        if end > self._horizon:
            self._horizon = end
        return start, end

    def complete(self, end: int) -> None:
        """Work that ends at tick `end` has been reported: whatever starts later starts no earlier than that."""
        if end > self._ticks:
            self._ticks = end
            if end > self._horizon:
                self._horizon = end

    def idle(self) -> None:
        """Nothing is outstanding: stand at the end of all scheduled work; from here wall time counts again."""
        if self._busy:
            self._ticks = self._horizon
            self._idle_since_ns = self._wall_ns()
            self._busy = False

    def snapshot(self) -> tuple[int, int]:
        """(ticks, wall nanoseconds) of one moment, for correlating the two clocks."""
        wall = self._wall_ns()
        return (self._ticks if self._busy else self._idle_now(wall)), wall

    def _idle_now(self, wall: int) -> int:
        """The tick at wall time `wall`, while idle."""
        return min(self._ticks + max(0, wall - self._idle_since_ns) * self._tick_hz // _NS_PER_S, LAST_TICK)
