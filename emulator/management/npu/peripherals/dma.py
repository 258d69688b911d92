"""The core's window on host memory: the PCI function carries its transfers out."""

from __future__ import annotations

from collections.abc import Callable

from driver_shim.protocol.management_registers import DMA, DmaStatus
from emulator.management.link import MAX_DMA_BYTES, Link
from emulator.management.npu.peripherals.register_block import RegisterPeripheral
from emulator.management.riscv.peripheral import MachinePort


class DmaEngine(RegisterPeripheral):
    """Registers of `management_registers.DMA`. `wake_function` tells the PCI function to look."""

    def __init__(self, machine: MachinePort, interrupt: int, link: Link, wake_function: Callable[[], None]) -> None:
        super().__init__(DMA, reads={"status": self._status}, writes={"command": self._start, "status": self._clear})
        self._machine = machine
        self._interrupt = interrupt
        self._link = link
        self._wake_function = wake_function
        self._state = DmaStatus.IDLE
        self._abandoned = False
        """Whether a transfer is under way for a core that was reset since."""

    @property
    def busy(self) -> bool:
        """Whether the function has yet to answer."""
        return self._state is DmaStatus.BUSY or self._abandoned

    def look(self) -> bool:
        """Take the function's answer; True if there was one."""
        if not self.busy or self._link.noticed("dma_finished") != self._link["dma_number"]:
            return False
        if self._abandoned:
            self._abandoned = False
            return True
        self._finish(self._deliver())
        return True

    def reset(self) -> None:
        """See Peripheral."""
        self._abandoned = self.busy
        self._enter(DmaStatus.IDLE)
        super().reset()

    def _deliver(self) -> bool:
        if self._link["dma_failed"]:
            return False
        try:
            self._machine.write_memory(self.value("destination"), bytes(self._link.dma[: self.value("length")]))
        except ValueError:
            return False
        return True

    def _status(self) -> int:
        return DMA.registers["status"].encode(state=int(self._state))

    def _start(self, value: int) -> None:
        if not DMA.registers["command"].extract(value, "start") or self._state is DmaStatus.BUSY:
            return
        length = self.value("length")
        if not 0 < length <= MAX_DMA_BYTES or self._abandoned:
            self._finish(False)
            return
        self._enter(DmaStatus.BUSY)
        self._link["dma_address"] = self.value("address_high") << 32 | self.value("address_low")
        self._link["dma_length"] = length
        self._link.count_up("dma_number")
        self._wake_function()

    def _clear(self, value: int) -> None:
        if DMA.registers["status"].extract(value, "clear") and self._state is not DmaStatus.BUSY:
            self._enter(DmaStatus.IDLE)

    def _finish(self, succeeded: bool) -> None:
        self._enter(DmaStatus.DONE if succeeded else DmaStatus.FAULT)

    def _enter(self, state: DmaStatus) -> None:
        self._state = state
        self._machine.set_interrupt(self._interrupt, state in (DmaStatus.DONE, DmaStatus.FAULT))
