"""Converters on the die, the engines' throttle, and the readings that firmware shows to the host."""

from __future__ import annotations

import time
from collections.abc import Callable

from driver_shim.protocol.management_registers import SENSORS
from emulator.management.link import Link
from emulator.management.npu.peripherals.register_block import RegisterPeripheral
from emulator.management.npu.thermal import Thermal


class Sensors(RegisterPeripheral):
    """Registers of `management_registers.SENSORS`."""

    def __init__(self, link: Link, thermal: Thermal, wall_ns: Callable[[], int] = time.monotonic_ns) -> None:
        super().__init__(
            SENSORS,
            reads={
                "temperature_raw": lambda: self._code("temperature_raw", (thermal.celsius() + 64) * 16),
                "current_raw": lambda: self._code("current_raw", thermal.watts() / thermal.volts * 256),
                "voltage_raw": lambda: self._code("voltage_raw", thermal.volts * 2048),
            },
            writes={"publish": self._publish, "throttle": self._throttle},
        )
        self._link = link
        self._wall_ns = wall_ns

    def reset(self) -> None:
        """The engines run at full speed again."""
        super().reset()
        self._link["throttle"] = 0

    @staticmethod
    def _code(name: str, value: float) -> int:
        mask = SENSORS.registers[name].fields["code"].mask
        return min(max(round(value), 0), mask)

    def _throttle(self, value: int) -> None:
        self._link["throttle"] = self.value("throttle")

    def _publish(self, value: int) -> None:
        if not SENSORS.registers["publish"].extract(value & 1, "now"):
            return
        for name in ("temperature", "power", "voltage"):
            self._link[name] = self.value(name)
        self._link["published_ns"] = self._wall_ns()
        self._link.count_up("publications")
