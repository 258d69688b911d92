"""A device's management core, opened: its registers, its firmware, and memory that it can read.

No queue is needed for that, so none is made: the core can be reached where host and device agree on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from driver_shim.cards.holder import canonical_address
from driver_shim.firmware.calls import Firmware
from driver_shim.firmware.mailbox import Mailbox
from driver_shim.function.bring_up import check_function, enable_function
from driver_shim.function.dma import HostMemory
from driver_shim.function.pre_open import read_pre_open, save_pre_open
from driver_shim.function.registers import Registers
from driver_shim.transport.base import Transport
from sdk import environment
from sdk.opening.addresses import open_address


class Management(NamedTuple):
    """An open device, as the management core's tools need it."""

    transport: Transport
    registers: Registers
    firmware: Firmware
    memory: HostMemory | None
    """None where the device cannot reach host memory."""

    @property
    def opened_with_reset(self) -> bool:
        """Whether opening it reset the function (never the core)."""
        return self.transport.resets_on_open


@contextmanager
def open_management(address: str) -> Iterator[Management]:
    """Open the device at an address, and let it go. Raises as `sdk.Device`."""
    opened = open_address(address, None, environment.timeout_s())
    transport = opened.transport
    try:
        registers = Registers(transport)
        if transport.has_dma:
            check_function(transport)
            enable_function(transport)
        registers.check_alive()
        if opened.claim is not None:
            save_pre_open(canonical_address(address), read_pre_open(registers))
        firmware = Firmware(Mailbox(transport, registers))
        if not transport.has_dma:
            yield Management(transport, registers, firmware, None)
            return
        with HostMemory(transport) as memory:
            yield Management(transport, registers, firmware, memory)
    finally:
        transport.close()
        opened.let_go()
