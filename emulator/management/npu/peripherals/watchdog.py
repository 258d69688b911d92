"""The watchdog: resets a core that stops feeding it."""

from __future__ import annotations

from driver_shim.protocol.management_registers import MTIME_HERTZ, WATCHDOG, WATCHDOG_FEED
from driver_shim.protocol.registers import CoreReset
from emulator.management.npu.peripherals.register_block import RegisterPeripheral
from emulator.management.riscv.peripheral import MachinePort

MIN_PERIOD_MS, MAX_PERIOD_MS = 10, 60_000
BOOT_PERIOD_MS = 5_000
"""What the boot ROM gives an image to take it over."""


class Watchdog(RegisterPeripheral):
    """Registers of `management_registers.WATCHDOG`."""

    def __init__(self, machine: MachinePort) -> None:
        super().__init__(
            WATCHDOG,
            reads={"status": lambda: int(self._deadline is not None)},
            writes={"period": self._set_period, "feed": self._feed},
        )
        self._machine = machine
        self._period_ms = BOOT_PERIOD_MS
        self._deadline: int | None = None

    def start(self) -> None:
        """The boot ROM starts it before it starts an image."""
        self._deadline = self._machine.tick + self._period_ms * MTIME_HERTZ // 1000

    def deadline(self) -> int | None:
        """See Peripheral."""
        return self._deadline

    def expire(self) -> None:
        """See Peripheral."""
        self._deadline = None
        self._machine.request_reset(CoreReset.WATCHDOG)

    def reset(self) -> None:
        """See Peripheral."""
        super().reset()
        self._period_ms = BOOT_PERIOD_MS
        self.store("period", BOOT_PERIOD_MS)
        self._deadline = None

    def _set_period(self, value: int) -> None:
        self._period_ms = min(max(value, MIN_PERIOD_MS), MAX_PERIOD_MS)
        self.store("period", self._period_ms)

    def _feed(self, value: int) -> None:
        if value == WATCHDOG_FEED:
            self.start()
