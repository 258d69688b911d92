"""The control and status registers: enabling the controller, and what has become of that."""

from __future__ import annotations

from driver_shim.protocol.commands import ADMIN_QUEUE_ID, FaultSource, ResetCause
from driver_shim.protocol.registers import REGISTERS
from emulator.chip.error_log import ErrorLog
from emulator.function.blocks.config_space import ConfigSpace
from emulator.function.blocks.registers import StoredValues
from emulator.function.blocks.resets import ResetRecord
from emulator.function.command_error import CommandError
from emulator.function.controller import Controller
from emulator.function.rings import open_rings
from emulator.host_memory.address_space import AddressSpace


class Control:
    """Switches the controller on and off as the host says."""

    def __init__(
        self,
        stored: StoredValues,
        config: ConfigSpace,
        space: AddressSpace,
        controller: Controller,
        errors: ErrorLog,
        resets: ResetRecord,
    ) -> None:
        """`stored` holds the registers that describe the admin queue."""
        self._stored = stored
        self._config = config
        self._space = space
        self._controller = controller
        self._errors = errors
        self._resets = resets
        self._config_error = False

    def read_status(self) -> int:
        """The status register."""
        return REGISTERS["status"].encode(
            ready=int(self._controller.enabled),
            fatal=int(self._controller.fatal),
            config_error=int(self._config_error),
            bus_master=int(self._config.bus_master),
        )

    def write_control(self, value: int) -> None:
        """A write to the control register: enable or disable the controller."""
        enable = bool(REGISTERS["control"].extract(value, "enable"))
        if enable and not self._controller.enabled:
            self._enable()
        elif not enable:
            self._config_error = False
            if self._controller.enabled or self._controller.fatal:
                self.disable()
                self._resets.note(ResetCause.CONTROLLER_DISABLE)

    def disable(self) -> None:
        """Switch the controller off, broken or not, and forget that it was told to enable wrongly."""
        self._controller.disable()
        self._controller.fatal = False
        self._config_error = False

    def _enable(self) -> None:
        """Open the admin queue; a wrong one leaves the controller disabled with status.config_error."""
        self._config_error = True
        size = REGISTERS["admin_queue_size"].decode(self._stored["admin_queue_size"])
        entries = (size["submission_entries"], size["completion_entries"])
        bases = (self._stored["admin_submission_base"], self._stored["admin_completion_base"])
        if not self._config.bus_master:
            self._fault(FaultSource.DMA, bases[0], "bus mastering is off (PCI COMMAND bit 2)")
            return
        try:
            queue = open_rings(self._space, ADMIN_QUEUE_ID, bases, entries, 0, None)
        except CommandError as error:
            self._fault(error.source, error.address, error.message)
            return
        self._config_error = False
        self._controller.enable(queue)

    def _fault(self, source: FaultSource, address: int, reason: str) -> None:
        self._errors.fault(source, address, f"enable refused: {reason}")
