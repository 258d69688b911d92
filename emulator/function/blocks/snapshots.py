"""The snapshot registers: values that belong together, taken at one moment."""

from __future__ import annotations

from driver_shim.protocol.registers import REGISTERS
from emulator.chip.counters import LAST_COUNT, Counters
from emulator.model.clock import TickClock


class Snapshots:
    """Both clocks, and the counters, as they were when the host last asked for them."""

    def __init__(self, clock: TickClock, counters: Counters) -> None:
        self._clock = clock
        self._counters = counters
        self.tick, self.wall_nanoseconds = 0, 0
        self.commands, self.bytes_moved, self.busy_ticks = 0, 0, 0

    def take_clocks(self, value: int) -> None:
        """A write to clock_snapshot."""
        if REGISTERS["clock_snapshot"].extract(value, "take"):
            self.tick, self.wall_nanoseconds = self._clock.snapshot()

    def take_counters(self, value: int) -> None:
        """A write to counter_snapshot."""
        if REGISTERS["counter_snapshot"].extract(value, "take"):
            counts = self._counters.as_shown()
            self.commands, self.busy_ticks = counts["commands"], counts["busy_ticks"]
            self.bytes_moved = min(counts["bytes_copied"] + counts["bytes_filled"], LAST_COUNT)
