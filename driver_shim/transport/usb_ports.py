"""Debug ports of served emulators in the runtime folder and of cards on USB, and what USB says in our errors.

pyusb is an optional dependency and imported when a port is asked for.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from driver_shim import timeouts
from driver_shim.cards import libusb
from driver_shim.cards.discovery import find_served
from driver_shim.errors import (
    ContractMismatch,
    DeviceBusy,
    DeviceLost,
    DeviceNotFound,
    NpuError,
    PermissionDenied,
    Timeout,
    UnsupportedPlatform,
)
from driver_shim.protocol.debug_port import CONFIGURATION, DEBUG_PORT_ID, VENDOR_ID

if TYPE_CHECKING:
    import usb.core

PREFIX = "usb:"
_UDEV = "join the group npu, or see udev/README.md"


def find_debug_port(serial: str, limit_s: float = timeouts.USB_TRANSFER_S) -> usb.core.Device:
    """The debug port of the device with this serial number. `limit_s` bounds each answer of an emulator.

    Raises DeviceNotFound, DeviceBusy (another host has it), PermissionDenied, DeviceLost, Timeout, and
    UnsupportedPlatform where pyusb or libusb is missing.
    """
    core = _pyusb()
    address = PREFIX + serial
    with usb_errors(address):
        for served in find_served():
            if served["usbip_port"] is not None and served["serial"] == serial:
                from driver_shim.transport.usbip_backend import UsbipBackend

                found = core.find(
                    backend=UsbipBackend(served["usbip_port"], limit_s), idVendor=VENDOR_ID, idProduct=DEBUG_PORT_ID
                )
                if found is None:
                    raise _no_port(address, "its emulator exports none at the moment")
                return found
        return _on_usb(core, address, serial)


def open_debug_port(serial: str, limit_s: float = timeouts.USB_TRANSFER_S) -> usb.core.Device:
    """As `find_debug_port`; opened and configured, to be given back with `close_debug_port`."""
    port = find_debug_port(serial, limit_s)
    core = _pyusb()
    try:
        with usb_errors(PREFIX + serial):
            try:
                port.get_active_configuration()
            except core.USBError as error:
                if error.errno is not None:
                    raise
                port.set_configuration(CONFIGURATION)  # no kernel has configured it
            return port
    except ValueError as error:  # pyusb finds no such configuration
        close_debug_port(port)
        raise ContractMismatch(f"{PREFIX}{serial}: {error}", device=PREFIX + serial, subsystem="usb") from error
    except BaseException:
        close_debug_port(port)
        raise


def close_debug_port(port: usb.core.Device) -> None:
    """Give a debug port back; idempotent."""
    import usb.util

    usb.util.dispose_resources(port)


def _on_usb(core: Any, address: str, serial: str) -> usb.core.Device:
    ports = list(core.find(find_all=True, backend=libusb.backend(), idVendor=VENDOR_ID, idProduct=DEBUG_PORT_ID))
    seen: list[str] = []
    locked: list[PermissionDenied] = []
    for port in ports:
        try:
            text = _serial_of(port)
        except PermissionDenied as error:
            locked.append(error)
            continue
        except DeviceLost:  # it went while we looked
            continue
        if text == serial:
            return port
        seen.append(text)
    if locked:
        raise locked[0]
    known = f"; there are: {', '.join(seen)}" if seen else ""
    raise _no_port(address, f"none of that serial number is on USB, and no emulator serves one{known}")


def _serial_of(port: usb.core.Device) -> str:
    """Reading it takes access to the device. Raises PermissionDenied, DeviceLost."""
    import usb.util

    where = f"the debug port on USB bus {port.bus}, address {port.address},"
    with usb_errors(where):
        (language, *_) = usb.util.get_langids(port)  # pyusb's own way hides why it cannot
        return str(usb.util.get_string(port, port.iSerialNumber, language))


def _pyusb() -> Any:
    try:
        import usb.core
    except ModuleNotFoundError as error:
        raise UnsupportedPlatform(
            "debug ports need pyusb, which is not installed",
            subsystem="usb",
            remedy=libusb.EXTRA,
        ) from error
    return usb.core


@contextlib.contextmanager
def usb_errors(address: str) -> Iterator[None]:
    """Turn what pyusb raises into our errors; a refused request (EPIPE) is left to whoever can say why."""
    import usb.core

    try:
        yield
    except usb.core.USBTimeoutError as error:
        raise Timeout(f"{address} does not answer: {error.strerror}", device=address, subsystem="usb") from error
    except usb.core.USBError as error:
        if error.errno == errno.EPIPE:
            raise
        raise _translated(address, error) from error


def _translated(address: str, error: usb.core.USBError) -> NpuError:
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return _denied(address, error)
    if error.errno == errno.EBUSY:
        return DeviceBusy(
            f"{address} is in use: {reason}",
            device=address,
            subsystem="usb",
            remedy="end the program that has it, or detach it: usbip detach",
        )
    if error.errno == errno.ECONNREFUSED:
        return _no_port(address, reason)
    return DeviceLost(
        f"{address} is gone: {reason}",
        device=address,
        subsystem="usb",
        cause=reason,
        remedy="a change between run time and recovery takes it off the bus for a moment: try again",
    )


def _no_port(address: str, why: str) -> DeviceNotFound:
    return DeviceNotFound(
        f"no debug port {address}: {why}",
        device=address,
        subsystem="usb",
        remedy="serve one: npuctl emulate --socket PATH --usbip",
    )


def _denied(address: str, error: BaseException) -> PermissionDenied:
    return PermissionDenied(f"{address} may not be opened: {error}", device=address, subsystem="usb", remedy=_UDEV)
