"""Pace of the core's process: its time follows the wall's, and its work keeps to its share of one CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

from driver_shim.protocol.management_registers import MTIME_HERTZ

_NS_PER_S = 1_000_000_000
_LAG_TICKS_MAX = MTIME_HERTZ // 50
"""20 ms: more than a wake-up is late by. Time that the process was stopped for beyond that is lost to the core, so that
its watchdog does not bark at what is no fault of its program's."""
_REST_OWED_NS_MAX = 250_000_000
_REST_NS_MIN = 200_000
"""Shorter sleeps cost more than they save."""
_SLICE_NS = 1_000_000
_SLICE_INSTRUCTIONS_MIN, _SLICE_INSTRUCTIONS_MAX = 256, 200_000
_FIRST_SLICE_INSTRUCTIONS = 2_048
"""A program may begin with what takes longest here: traps."""


class Pace:
    """One core's. Ticks are those of the core's own time."""

    def __init__(
        self,
        share: float,
        wall_ns: Callable[[], int] = time.monotonic_ns,
        cpu_ns: Callable[[], int] = time.process_time_ns,
    ) -> None:
        """`share` of one CPU is what the process may take while the core works."""
        self._rest_per_work = 1 / share - 1
        self._wall_ns = wall_ns
        self._cpu_ns = cpu_ns
        self._cpu_then = cpu_ns()
        self._owed_ns = 0.0
        self._wall_then = wall_ns()
        self._tick_then = 0
        self.instructions = _FIRST_SLICE_INSTRUCTIONS
        """Of the next slice: about a millisecond, whatever the program does."""

    def begin(self, tick: int) -> None:
        """The core's time is `tick` now: what passed before does not count."""
        self._tick_then, self._wall_then = tick, self._wall_ns()

    def lag(self, tick: int, idle_ticks: int = 0) -> int:
        """Ticks to add to the core's time, `tick`, so that it has caught up with the wall; 0 where it is ahead.

        A core that fell behind by more than a wake-up takes loses the rest, but for the `idle_ticks` that it slept.
        """
        passed = (self._wall_ns() - self._wall_then) * MTIME_HERTZ // _NS_PER_S
        behind = passed - (tick - self._tick_then)
        kept = min(max(behind, 0), _LAG_TICKS_MAX + idle_ticks)
        self._tick_then += kept - behind
        return kept

    def worked(self, wall_ns: int, *, whole_slice: bool) -> None:
        """A slice took so long; `whole_slice` says that all its instructions were run."""
        if wall_ns > 2 * _SLICE_NS:
            self.instructions = max(self.instructions * _SLICE_NS // wall_ns, _SLICE_INSTRUCTIONS_MIN)
        elif wall_ns < _SLICE_NS and whole_slice:
            self.instructions = min(self.instructions * 2, _SLICE_INSTRUCTIONS_MAX)

    def rest_s(self) -> float:
        """How long the process must sleep now for what it has worked, in seconds."""
        self._account()
        return self._owed_ns / _NS_PER_S if self._owed_ns >= _REST_NS_MIN else 0.0

    def rested(self, wall_ns: int) -> None:
        """The process slept, for whatever reason."""
        self._account()
        self._owed_ns = max(self._owed_ns - wall_ns, 0.0)

    def _account(self) -> None:
        now = self._cpu_ns()
        self._owed_ns = min(self._owed_ns + (now - self._cpu_then) * self._rest_per_work, _REST_OWED_NS_MAX)
        self._cpu_then = now
