"""Spinning without starving: how a wait passes the time between two looks at a completion ring."""

from __future__ import annotations

import time
from collections.abc import Callable

CROWDED_TURN_S = 4e-6
"""A turn of a spinning wait costs 1 µs; one that takes longer gave the CPU to somebody who used it."""
CROWDED_TURNS = 16
"""So many in a row, and the device most likely shares our CPU."""
MOST_CROWDED_TURNS = 4096
_NAP_S = 1e-6


class Spinner:
    """Yields the CPU between looks, and moves away from the device when both have come to share one CPU.

    Two processes that only yield to each other can stay on one CPU for seconds while another is idle (round trips of
    14 µs in place of 5.5, measured on two cores). A scheduler chooses anew when a thread wakes up, so after some
    crowded turns this one naps once. Where that does not help, because all CPUs are busy, naps become rare.
    """

    def __init__(self, progress: Callable[[], None]) -> None:
        """`progress` is `Transport.progress`."""
        self._progress = progress
        self._crowded = 0
        self._limit = CROWDED_TURNS

    def turn(self, previous_s: float, now_s: float) -> None:
        """Pass the time once. `previous_s` and `now_s`: when the last turn began, and now."""
        if now_s - previous_s < CROWDED_TURN_S:
            self._crowded = 0
        else:
            self._crowded += 1
            if self._crowded >= self._limit:
                self._crowded = 0
                self._limit = min(2 * self._limit, MOST_CROWDED_TURNS)
                time.sleep(_NAP_S)
                return
        self._progress()
