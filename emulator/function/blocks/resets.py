"""The record of resets, and the registers that show it."""

from __future__ import annotations

from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.registers import REGISTERS
from emulator.chip.counters import Counters

_COUNT_MASK = (1 << REGISTERS["reset_cause"].fields["count"].width) - 1
_HISTORY_MASK = (1 << 8 * REGISTERS["reset_history"].size) - 1


class ResetRecord:
    """The causes of a function's resets, the newest in the lowest byte of the history."""

    def __init__(self, counters: Counters) -> None:
        """Powered on, and not reset since. The number of resets is one of the chip's counters."""
        self._counters = counters
        self._cause = ResetCause.POWER_ON
        self._history = 0

    def note(self, cause: ResetCause) -> None:
        """The function was reset."""
        self._cause = cause
        self._history = (self._history << 8 | int(cause)) & _HISTORY_MASK
        self._counters.resets += 1

    def read_cause(self) -> int:
        """The reset_cause register."""
        return REGISTERS["reset_cause"].encode(cause=int(self._cause), count=self._counters.resets & _COUNT_MASK)

    def read_history(self) -> int:
        """The reset_history register."""
        return self._history
