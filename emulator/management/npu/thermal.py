"""Temperature of the chip: power from how busy the engines are, temperature from power, first order in time.

The figures are assumptions, chosen round; a profile that states its power can replace them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

NS_PER_S = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class ThermalFigures:
    """A chip with its cooler."""

    idle_watts: float = 30.0
    busy_watts: float = 150.0
    """With all engines busy all the time."""
    ambient_celsius: float = 35.0
    celsius_per_watt: float = 0.3
    settle_seconds: float = 8.0
    """Time constant of die and cooler."""
    volts: float = 0.8


class Thermal:
    """The chip's temperature over wall time."""

    def __init__(
        self,
        figures: ThermalFigures,
        busy_ticks: Callable[[], int],
        ticks_per_s: int,
        engines: int,
        wall_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._figures = figures
        self._busy_ticks = busy_ticks
        self._ticks_per_ns = ticks_per_s * engines / NS_PER_S
        self._wall_ns = wall_ns
        self.volts = figures.volts
        self._then = wall_ns()
        self._busy_then = busy_ticks()
        self._watts = figures.idle_watts
        self._celsius = figures.ambient_celsius + figures.idle_watts * figures.celsius_per_watt

    def watts(self) -> float:
        """Power that the chip takes, averaged since it was last asked for."""
        self._catch_up()
        return self._watts

    def celsius(self) -> float:
        """Temperature of the die."""
        self._catch_up()
        return self._celsius

    def _catch_up(self) -> None:
        figures = self._figures
        now, busy = self._wall_ns(), self._busy_ticks()
        elapsed_ns = now - self._then
        if elapsed_ns < NS_PER_S // 100:  # both readings of one moment belong together
            return
        load = min(1.0, max(0, busy - self._busy_then) / (elapsed_ns * self._ticks_per_ns))
        self._then, self._busy_then = now, busy
        self._watts = figures.idle_watts + load * (figures.busy_watts - figures.idle_watts)
        goal = figures.ambient_celsius + self._watts * figures.celsius_per_watt
        self._celsius = goal + (self._celsius - goal) * math.exp(-elapsed_ns / NS_PER_S / figures.settle_seconds)
