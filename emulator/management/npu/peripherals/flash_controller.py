"""The flash controller: what the core writes to flash goes through here."""

from __future__ import annotations

from driver_shim.protocol.firmware_slots import FLASH_BYTES, PAGE_BYTES, SECTOR_BYTES
from driver_shim.protocol.management_registers import FLASH, MTIME_HERTZ, FlashCommand
from emulator.management.npu.flash import Flash, FlashError
from emulator.management.npu.peripherals.register_block import WORD_BYTES, RegisterPeripheral
from emulator.management.riscv.peripheral import MachinePort

ERASE_TICKS = MTIME_HERTZ * 45 // 1000
PROGRAM_TICKS = MTIME_HERTZ * 4 // 10_000
"""Typical sector erase (45 ms) and page program (0.4 ms) of a serial NOR flash (Winbond W25Q32JV, 9.6)."""


class FlashController(RegisterPeripheral):
    """Registers of `management_registers.FLASH`."""

    def __init__(self, machine: MachinePort, flash: Flash) -> None:
        super().__init__(
            FLASH,
            reads={"status": lambda: int(self._failed), "sectors": lambda: FLASH_BYTES // SECTOR_BYTES},
            writes={"command": self._command},
        )
        self._machine = machine
        self._flash = flash
        self._failed = False

    def reset(self) -> None:
        """See Peripheral."""
        super().reset()
        self._failed = False

    def _command(self, value: int) -> None:
        address = self.value("address")
        operation = FLASH.registers["command"].extract(value & 0xF, "operation")
        try:
            if operation == FlashCommand.ERASE_SECTOR:
                self._machine.stall(ERASE_TICKS)
                self._flash.erase(address // SECTOR_BYTES * SECTOR_BYTES)
            elif operation == FlashCommand.PROGRAM_PAGE:
                self._machine.stall(PROGRAM_TICKS)
                self._flash.program(address // PAGE_BYTES * PAGE_BYTES, self.words("page_0", PAGE_BYTES // WORD_BYTES))
            else:
                raise FlashError(f"operation {operation} does not exist")
        except FlashError:
            self._failed = True
        else:
            self._failed = False
