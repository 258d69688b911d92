"""The device that ends the machine, at the encoding of SiFive's test finisher."""

from __future__ import annotations

import enum
from collections.abc import Callable

from driver_shim.protocol.registers import CoreReset
from emulator.management.riscv.peripheral import MachinePort, Peripheral


class Command(enum.IntEnum):
    """The lower half of what is stored."""

    FAIL = 0x3333
    PASS = 0x5555
    RESET = 0x7777


class PowerOff(Peripheral):
    """A store of PASS ends with 0, of `code << 16 | FAIL` with the code, of RESET resets the core."""

    def __init__(self, port: MachinePort, power_off: Callable[[int], None]) -> None:
        """`power_off` takes the exit code."""
        self._port = port
        self._power_off = power_off

    def read(self, offset: int, size: int) -> int:
        """See `Peripheral`: nothing is there to be read."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """See `Peripheral`."""
        if offset != 0:
            return
        match value & 0xFFFF:
            case Command.FAIL:
                self._power_off(value >> 16)
            case Command.PASS:
                self._power_off(0)
            case Command.RESET:
                self._port.request_reset(CoreReset.FIRMWARE)

    def reset(self) -> None:
        """See `Peripheral`: it keeps nothing."""
