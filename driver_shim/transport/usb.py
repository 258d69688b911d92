"""Registers through the USB debug port: what is left when PCI is not there, or belongs to somebody else.

No DMA, no interrupts, no configuration space but the IDs. Looking disturbs nobody: writes are refused by the device
while a PCI client has it, unless the port was opened by force.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from driver_shim import timeouts
from driver_shim.errors import Closed, ContractMismatch, DeviceBusy, NpuError, no_dma
from driver_shim.protocol.config_space import DEVICE_ID, VENDOR_ID
from driver_shim.protocol.debug_port import (
    DEBUG_PORT_VERSION,
    INFO,
    INTERFACE_REGISTERS,
    REASON,
    WIDTHS,
    Flag,
    Refusal,
    Request,
)
from driver_shim.protocol.registers import BAR0, BAR0_BYTES
from driver_shim.protocol.usb import Direction, Recipient, RequestType
from driver_shim.transport.base import RegionInfo
from driver_shim.transport.register_only import RegisterOnlyTransport
from driver_shim.transport.usb_ports import PREFIX, close_debug_port, open_debug_port, usb_errors

if TYPE_CHECKING:
    import usb.core

_OUT = Direction.OUT | RequestType.VENDOR | Recipient.INTERFACE
_IN = Direction.IN | RequestType.VENDOR | Recipient.INTERFACE
_MS_PER_S = 1000
_IDS = VENDOR_ID.to_bytes(2, "little") + DEVICE_ID.to_bytes(2, "little")


class UsbTransport(RegisterOnlyTransport):
    """A function's BAR0 through its debug port: a register access is one control transfer."""

    name = "usb"

    def __init__(self, serial: str, *, force: bool = False, timeout: float = timeouts.USB_TRANSFER_S) -> None:
        """Open the debug port of the device with this serial number. `force` writes though a PCI client has the device;
        `timeout` bounds each transfer, in seconds.

        Raises DeviceNotFound, DeviceBusy (another host has the port), PermissionDenied, DeviceLost, Timeout,
        ContractMismatch, UnsupportedPlatform.
        """
        self.address = PREFIX + serial
        self.serial = serial
        self._write_index = INTERFACE_REGISTERS | (Flag.FORCE << 8 if force else 0)
        self._lock = threading.Lock()
        self._timeout_ms = max(1, int(timeout * _MS_PER_S))  # zero would mean for ever
        self._port: usb.core.Device | None = open_debug_port(serial, timeout)
        try:
            self._check_version()
        except BaseException:
            self.close()
            raise

    def _check_version(self) -> None:
        info = INFO.parse(self._ask(Request.INFO, 0, INFO.size))
        if info.version != DEBUG_PORT_VERSION or info.bar0_bytes < BAR0_BYTES:
            raise ContractMismatch(
                f"{self.address} speaks debug port protocol {info.version} with {info.bar0_bytes:#x} bytes of BAR0;"
                f" this driver {DEBUG_PORT_VERSION} with {BAR0_BYTES:#x}",
                device=self.address,
                subsystem="usb",
                remedy="use the driver that belongs to the device",
            )
        self.emulated = bool(info.emulated)

    # --- the interface -----------------------------------------------------------------------------------------

    def regions(self) -> dict[int, RegionInfo]:
        """BAR0; nothing of it can be mapped."""
        return {BAR0: RegionInfo(BAR0, BAR0_BYTES, True, True, ())}

    def config_read(self, offset: int, size: int) -> bytes:
        """The vendor and the device ID, which the port told. Raises UnsupportedPlatform for anything else."""
        self._check_open()
        if offset < 0 or size <= 0 or offset + size > len(_IDS):
            raise no_dma(self.address)
        return _IDS[offset : offset + size]

    def config_write(self, offset: int, data: bytes) -> None:
        """Not through USB. Raises UnsupportedPlatform."""
        self._check_open()
        raise no_dma(self.address)

    def read(self, region: int, offset: int, width: int) -> int:
        """One register read."""
        self._check_access(region, width)
        return int.from_bytes(self._ask(Request.PEEK, offset, width), "little")

    def write(self, region: int, offset: int, value: int, width: int) -> None:
        """One register write. Raises DeviceBusy while a PCI client has the device."""
        self._check_access(region, width)
        self._request(_OUT, Request.POKE, offset, self._write_index, value.to_bytes(width, "little"))

    def map_region(self, region: int, offset: int, size: int) -> memoryview:
        """Raises ValueError: every access is a transfer."""
        self._check_open()
        raise ValueError(f"{self.address}: nothing of region {region} can be mapped")

    def alive(self) -> bool:
        """Whether the port still answers."""
        try:
            self._ask(Request.INFO, 0, INFO.size)
        except NpuError:
            return False
        return True

    def close(self) -> None:
        """Give the port back; idempotent."""
        with self._lock:
            port, self._port = self._port, None
        if port is not None:
            close_debug_port(port)

    # --- helpers -----------------------------------------------------------------------------------------------

    def _ask(self, request: Request, value: int, size: int) -> bytes:
        """The answer to one vendor request, which is so long."""
        return self._whole(request, self._request(_IN, request, value, INTERFACE_REGISTERS, size), size)

    def _whole(self, request: Request, data: bytes, size: int) -> bytes:
        """A part of a register must not be taken for its value. Raises ContractMismatch."""
        if len(data) != size:
            raise ContractMismatch(
                f"{self.address} answers request {request.name} with {len(data)} bytes instead of {size}",
                device=self.address,
                subsystem="usb",
            )
        return data

    def _request(self, kind: int, request: Request, value: int, index: int, data: int | bytes) -> bytes:
        """One vendor request; the data of an IN one."""
        with self._lock:
            port = self._opened()
            try:
                with usb_errors(self.address):
                    answer = port.ctrl_transfer(kind, request, value, index, data, self._timeout_ms)
            except OSError as error:
                if error.errno != errno.EPIPE or isinstance(error, NpuError):
                    raise
                refusal = self._refusal(port)
            else:
                return bytes(answer) if kind == _IN else b""
        raise self._refused(request, value, refusal)

    def _refusal(self, port: usb.core.Device) -> int:
        with usb_errors(self.address):
            data = port.ctrl_transfer(_IN, Request.REASON, 0, INTERFACE_REGISTERS, REASON.size, self._timeout_ms)
        return int(REASON.parse(self._whole(Request.REASON, bytes(data), REASON.size)).reason)

    def _refused(self, request: Request, offset: int, refusal: int) -> Exception:
        if refusal == Refusal.OWNED:
            return DeviceBusy(
                f"{self.address} is not written to while a PCI client has the device",
                device=self.address,
                subsystem="usb",
                remedy=f"end that program, or open {self.address}?force=yes",
            )
        if refusal in (Refusal.OUT_OF_RANGE, Refusal.BAD_LENGTH):
            return ValueError(f"{self.address}: no register access at {offset:#x} of BAR0, {BAR0_BYTES:#x} bytes")
        return ContractMismatch(
            f"{self.address} refuses request {request.name} for reason {refusal}", device=self.address, subsystem="usb"
        )

    def _check_access(self, region: int, width: int) -> None:
        if region != BAR0:
            raise ValueError(f"{self.address} has no region {region}; it has {BAR0}")
        if width not in WIDTHS:
            raise ValueError(f"{self.address}: registers are {', '.join(map(str, WIDTHS))} bytes wide, not {width}")

    def _check_open(self) -> None:
        with self._lock:
            self._opened()

    def _opened(self) -> usb.core.Device:
        """Called with the lock held."""
        if self._port is None:
            raise Closed(f"{self.address} is closed", device=self.address)
        return self._port
