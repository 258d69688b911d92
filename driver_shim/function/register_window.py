"""The controller's stand-in where there is no DMA: registers can be read, nothing is brought up or changed."""

from __future__ import annotations

import logging
from typing import NamedTuple

from driver_shim.errors import no_dma
from driver_shim.function.allocator import RangeAllocator
from driver_shim.function.controller import Controller
from driver_shim.function.pre_open import read_pre_open
from driver_shim.protocol.registers import IDENTITY

_log = logging.getLogger("npu")


class RegisterIdentity(NamedTuple):
    """What registers and the way to them tell of `IDENTIFY_DATA`; empty or None is unknown."""

    contract_major: int
    contract_minor: int
    silicon_revision: int
    memory_bytes: int
    tick_hertz: int
    serial: bytes = b""
    profile: bytes = b""
    firmware: bytes = b""
    kernels: bytes = b""
    max_io_queues: int | None = None
    engines: int | None = None
    max_programs: int | None = None
    emulated: int | None = None


class RegisterWindow(Controller):
    """A function whose registers are read while it is left as it is: for bring-up, on any state of the firmware."""

    def bring_up(self) -> None:
        """Read what registers tell. A wrong identity is only logged: what a board answers is what its engineer asks."""
        identity = self.registers.identity.read()
        if identity != IDENTITY:
            _log.warning(
                "%s: the identity register reads %#010x, not %#010x", self.transport.address, identity, IDENTITY
            )
        else:
            self.pre_open = read_pre_open(self.registers)
        contract = self.registers.contract.fields()
        self.identity = RegisterIdentity(
            contract_major=contract["major"],
            contract_minor=contract["minor"],
            silicon_revision=self.registers.revision.read(),
            memory_bytes=self.registers.device_memory_bytes.read(),
            tick_hertz=self.registers.tick_hertz.read(),
            serial=(self.transport.serial or "").encode(),
            emulated=self.transport.emulated,
        )

    def check_operable(self) -> None:
        """Raise UnsupportedPlatform (code "no-dma"): commands need DMA."""
        raise no_dma(self.transport.address)

    def device_memory(self, granule: int) -> RangeAllocator:
        """Nothing to hand out: `check_operable` is in the way of it."""
        return RangeAllocator(0, granule, granule)

    def check_alive(self) -> None:
        """Raise DeviceLost unless the identity register answers as it must, whether or not the controller runs."""
        self.registers.check_alive()

    def shut_down(self) -> None:
        """Nothing was brought up."""
