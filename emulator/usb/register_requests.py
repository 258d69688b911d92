"""The vendor's interface of the debug port: registers of BAR0 by request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from driver_shim.protocol import config_space
from driver_shim.protocol.debug_port import (
    DEBUG_PORT_VERSION,
    INFO,
    REASON,
    WIDTHS,
    Flag,
    Mode,
    Refusal,
    Request,
)
from driver_shim.protocol.registers import BAR0_BYTES
from driver_shim.protocol.usb import Setup
from emulator.usb.transfer import Answer, Ending


class RegisterPort(Protocol):
    """BAR0 past the bus: whether PCI decodes memory makes no difference. Never raises for what a host does."""

    def bar0_read(self, offset: int, size: int) -> bytes:
        """Read inside BAR0."""

    def bar0_write(self, offset: int, data: bytes) -> None:
        """Write inside BAR0."""


class RegisterRequests:
    """Answers the vendor's requests and remembers why it stalled the last one."""

    def __init__(self, registers: RegisterPort, owned: Callable[[], bool], mode: Callable[[], Mode]) -> None:
        """`owned` tells whether a PCI client has the device."""
        self._registers = registers
        self._owned = owned
        self._mode = mode
        self._refusal = Refusal.NONE

    def answer(self, setup: Setup, data: bytes) -> Answer:
        """Carry out one request."""
        last, self._refusal = self._refusal, Refusal.NONE
        if setup.request == Request.REASON and setup.is_in:
            return REASON.build(reason=last)
        if setup.request == Request.INFO and setup.is_in:
            return self._info()
        if setup.request not in (Request.PEEK, Request.POKE) or setup.is_in != (setup.request == Request.PEEK):
            return self._refuse(Refusal.UNKNOWN_REQUEST)
        offset, width = setup.value, setup.length
        if width not in WIDTHS:
            return self._refuse(Refusal.BAD_LENGTH)
        if offset % width or offset + width > BAR0_BYTES:
            return self._refuse(Refusal.OUT_OF_RANGE)
        if setup.request == Request.PEEK:
            return self._registers.bar0_read(offset, width)
        if self._owned() and not setup.index >> 8 & Flag.FORCE:
            return self._refuse(Refusal.OWNED)
        self._registers.bar0_write(offset, data)
        return b""

    def _refuse(self, reason: Refusal) -> Ending:
        self._refusal = reason
        return Ending.STALL

    def _info(self) -> bytes:
        return INFO.build(
            version=DEBUG_PORT_VERSION,
            mode=self._mode(),
            owned=int(self._owned()),
            emulated=1,
            pci_vendor=config_space.VENDOR_ID,
            pci_device=config_space.DEVICE_ID,
            bar0_bytes=BAR0_BYTES,
        )
