"""A pyusb backend that reaches the debug port of a served emulator over USB/IP, without a kernel's help.

Control transfers only: the device has no other endpoints. Every exchange has a time limit; what does not end in time
ends the connection.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import usb.backend
import usb.core

from driver_shim import timeouts
from driver_shim.protocol import usbip
from driver_shim.protocol.layout import Layout
from driver_shim.protocol.usb import (
    CONFIGURATION_DESCRIPTOR,
    DESCRIPTOR_HEADER,
    DEVICE_DESCRIPTOR,
    INTERFACE_DESCRIPTOR,
    DescriptorType,
    Direction,
    Recipient,
    Setup,
    StandardRequest,
)

_LOOPBACK = "127.0.0.1"
_MS_PER_S = 1000
_LONGEST_DESCRIPTOR = 0xFFFF


class _Stream:
    """A connection to the server: whole messages, each within a time limit. Failures are USBErrors and close it."""

    def __init__(self, port: int, limit_s: float) -> None:
        """`limit_s` holds for every message whose own limit is not stated."""
        self._limit_s = limit_s
        try:
            self._socket = socket.create_connection((_LOOPBACK, port), min(timeouts.USB_CONNECT_S, limit_s))
        except OSError as error:
            raise _failed(f"nobody serves a debug port on port {port}", error.errno or errno.ENODEV) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(self, message: bytes, reply: Layout | int, timeout_s: float | None = None) -> bytes:
        """Send, then receive this much."""
        timeout_s = self._limit_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(message)
        except OSError as error:
            raise self._ended(error, timeout_s) from error
        return self.receive(reply.size if isinstance(reply, Layout) else reply, timeout_s, deadline)

    def receive(self, size: int, timeout_s: float | None = None, deadline: float | None = None) -> bytes:
        """Exactly this many bytes; with `deadline` the limit began earlier."""
        timeout_s = self._limit_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s if deadline is None else deadline
        parts = bytearray()
        while len(parts) < size:
            try:
                self._socket.settimeout(max(timeouts.SOCKET_LEAST_S, deadline - time.monotonic()))
                part = self._socket.recv(size - len(parts))
            except OSError as error:
                raise self._ended(error, timeout_s) from error
            if not part:
                raise self._ended(ConnectionResetError(errno.ECONNRESET, "it hung up"), timeout_s)
            parts += part
        return bytes(parts)

    def broken(self, why: str) -> usb.core.USBError:
        """The server says what it may not."""
        self.close()
        return _failed(f"the USB/IP server breaks the protocol: {why}", errno.EPROTO)

    def close(self) -> None:
        """Hang up; idempotent."""
        self._socket.close()

    def _ended(self, error: OSError, timeout_s: float) -> usb.core.USBError:
        self.close()
        if isinstance(error, TimeoutError):
            return usb.core.USBTimeoutError(f"no answer within {timeout_s:.3g} s", errno.ETIMEDOUT, errno.ETIMEDOUT)
        return _failed("the device left the bus", errno.ENODEV)


class RemoteDevice:
    """The exported device; identifies it among others to pyusb."""

    def __init__(self, port: int, fields: Any, limit_s: float) -> None:
        self.port = port
        self.limit_s = limit_s
        self.busid = fields.busid.rstrip(b"\0")
        self.bus: int = fields.busnum
        self.address: int = fields.devnum
        self.speed: int = fields.speed
        self._device: Any = None
        self._configuration = b""

    def device_descriptor(self) -> Any:
        """Read once, by a connection of its own. Raises USBError."""
        if self._device is None:
            with Handle(self) as handle:
                device = handle.descriptor(DescriptorType.DEVICE, DEVICE_DESCRIPTOR)
                self._configuration = handle.descriptor(DescriptorType.CONFIGURATION, CONFIGURATION_DESCRIPTOR)
            self._device = DEVICE_DESCRIPTOR.parse(device[: DEVICE_DESCRIPTOR.size])
        return self._device

    def configuration(self) -> bytes:
        """The configuration with all that belongs to it."""
        self.device_descriptor()
        return self._configuration

    def interfaces(self) -> list[tuple[Any, bytes]]:
        """Its interface descriptors, each with what follows up to the next one."""
        found: list[tuple[Any, bytes]] = []
        for kind, data in _walk(self.configuration()):
            if kind == DescriptorType.INTERFACE and len(data) == INTERFACE_DESCRIPTOR.size:
                found.append((INTERFACE_DESCRIPTOR.parse(data), b""))
            elif found:
                found[-1] = (found[-1][0], found[-1][1] + data)
        return found


class Handle:
    """The device, imported: nobody else can have it meanwhile."""

    def __init__(self, device: RemoteDevice) -> None:
        """Import. Raises USBError: EBUSY when another host has the device, ECONNREFUSED when nobody serves."""
        self.device = device
        self._numbers = itertools.count(1)
        self._stream = _Stream(device.port, device.limit_s)
        request = usbip.encode_operation(usbip.Operation.REQUEST_IMPORT, payload=usbip.IMPORT.build(busid=device.busid))
        try:
            status = _operation_status(self._stream, request, usbip.Operation.REPLY_IMPORT)
            if status == usbip.OperationStatus.BUSY:
                raise _failed("another host has the debug port", errno.EBUSY)
            if status != usbip.OperationStatus.OK:
                raise _failed(f"the import was refused with status {status}", errno.ENODEV)
            self._stream.receive(usbip.DEVICE.size)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def transfer(self, setup: Setup, data: bytes, timeout_s: float) -> bytes:
        """One control transfer; the data of an IN transfer. Raises USBError (EPIPE: refused), USBTimeoutError."""
        number = next(self._numbers)
        inward = setup.is_in and setup.length > 0
        direction = usbip.Direction.IN if inward else usbip.Direction.OUT
        devid = self.device.bus << 16 | self.device.address
        submit = usbip.Submit(number, devid, direction, 0, setup.length, setup.build(), data)
        head = self._stream.exchange(usbip.encode_submit(submit), usbip.HEADER_BYTES, timeout_s)
        command, answered, *_ = usbip.BASIC.unpack_from(head)
        if (command, answered) != (usbip.Command.RETURN_SUBMIT, number):
            raise self._stream.broken(f"message {command:#x} for transfer {answered} instead of {number}")
        status, length, *_ = usbip.RETURN_SUBMIT.unpack_from(head, usbip.BASIC.size)
        if not 0 <= length <= setup.length:
            raise self._stream.broken(f"{length} bytes where {setup.length} were asked for")
        answer = self._stream.receive(length, timeout_s) if inward else b""
        if status:
            raise _failed("the device refused the request", -status)
        return answer

    def standard(
        self, recipient: Recipient, request: StandardRequest, value: int, index: int, length: int = 0, least: int = 0
    ) -> bytes:
        """A standard request without data, or an IN one of at most `length` bytes and `least` at the least."""
        direction = Direction.IN if length else Direction.OUT
        setup = Setup(direction | recipient, request, value, index, length)
        data = self.transfer(setup, b"", self.device.limit_s)
        if len(data) < least:
            raise self._stream.broken(f"{len(data)} bytes for request {request.name}, which has {least} at least")
        return data

    def descriptor(self, kind: DescriptorType, layout: Layout) -> bytes:
        """The first descriptor of a kind, which begins with `layout`."""
        return self.standard(
            Recipient.DEVICE, StandardRequest.GET_DESCRIPTOR, kind << 8, 0, _LONGEST_DESCRIPTOR, layout.size
        )

    def close(self) -> None:
        """Give the device back; idempotent."""
        self._stream.close()


class UsbipBackend(usb.backend.IBackend):  # type: ignore[misc]
    """pyusb's backend interface over one USB/IP server of this machine."""

    def __init__(self, port: int, limit_s: float) -> None:
        """`limit_s` bounds what is exchanged, but for transfers that come with a limit of their own."""
        self._port = port
        self._limit_s = limit_s

    def enumerate_devices(self) -> Iterator[RemoteDevice]:
        """The devices that the server exports. Raises USBError."""
        stream = _Stream(self._port, self._limit_s)
        try:
            request = usbip.encode_operation(usbip.Operation.REQUEST_DEVICES)
            if _operation_status(stream, request, usbip.Operation.REPLY_DEVICES) != usbip.OperationStatus.OK:
                return
            (count,) = usbip.DEVICE_COUNT.unpack_from(stream.receive(usbip.DEVICE_COUNT.size))
            if count > usbip.MAX_DEVICES:
                raise stream.broken(f"it lists {count} devices")
            found = []
            for _ in range(count):
                fields = usbip.DEVICE.parse(stream.receive(usbip.DEVICE.size))
                stream.receive(fields.bNumInterfaces * usbip.INTERFACE.size)
                found.append(RemoteDevice(self._port, fields, self._limit_s))
        finally:
            stream.close()
        yield from found

    def get_parent(self, dev: RemoteDevice) -> None:
        """There is no hub."""

    def get_device_descriptor(self, dev: RemoteDevice) -> Any:
        """The device descriptor, and where the device is."""
        fields = _values(dev.device_descriptor())
        place = {"bus": dev.bus, "address": dev.address, "port_number": 1, "port_numbers": (1,), "speed": dev.speed}
        return SimpleNamespace(**fields, **place)

    def get_configuration_descriptor(self, dev: RemoteDevice, config: int) -> Any:
        """The configuration descriptor."""
        if config:
            raise IndexError(f"there is no configuration {config}")
        fields = CONFIGURATION_DESCRIPTOR.parse(dev.configuration()[: CONFIGURATION_DESCRIPTOR.size])
        return SimpleNamespace(**_values(fields), extra_descriptors=array("B"))

    def get_interface_descriptor(self, dev: RemoteDevice, intf: int, alt: int, config: int) -> Any:
        """An interface descriptor with what follows it."""
        settings = [(fields, more) for fields, more in dev.interfaces() if fields.bInterfaceNumber == intf]
        fields, more = settings[alt]  # pyusb counts up to the IndexError
        return SimpleNamespace(**_values(fields), extra_descriptors=array("B", more))

    def open_device(self, dev: RemoteDevice) -> Handle:
        """Import it. Raises USBError."""
        return Handle(dev)

    def close_device(self, dev_handle: Handle) -> None:
        """Give it back."""
        dev_handle.close()

    def set_configuration(self, dev_handle: Handle, config_value: int) -> None:
        """Standard request."""
        dev_handle.standard(Recipient.DEVICE, StandardRequest.SET_CONFIGURATION, config_value, 0)

    def get_configuration(self, dev_handle: Handle) -> int:
        """Standard request."""
        return dev_handle.standard(Recipient.DEVICE, StandardRequest.GET_CONFIGURATION, 0, 0, 1, 1)[0]

    def set_interface_altsetting(self, dev_handle: Handle, intf: int, altsetting: int) -> None:
        """Standard request."""
        dev_handle.standard(Recipient.INTERFACE, StandardRequest.SET_INTERFACE, altsetting, intf)

    def claim_interface(self, dev_handle: Handle, intf: int) -> None:
        """Whoever has imported the device has all of it."""

    def release_interface(self, dev_handle: Handle, intf: int) -> None:
        """See claim_interface."""

    def is_kernel_driver_active(self, dev_handle: Handle, intf: int) -> bool:
        """No kernel has anything to do with it."""
        return False

    def ctrl_transfer(
        self,
        dev_handle: Handle,
        bmRequestType: int,  # noqa: N803 - the names are pyusb's
        bRequest: int,  # noqa: N803
        wValue: int,  # noqa: N803
        wIndex: int,  # noqa: N803
        data: array[int],
        timeout: int,
    ) -> int:
        """A control transfer; IN data is put into `data`. How many bytes moved. `timeout` is in milliseconds."""
        setup = Setup(bmRequestType, bRequest, wValue, wIndex, len(data))
        sent = b"" if setup.is_in else data.tobytes()
        answer = dev_handle.transfer(setup, sent, timeout / _MS_PER_S)
        if not setup.is_in:
            return len(data)
        data[: len(answer)] = array("B", answer)
        return len(answer)


def _failed(what: str, number: int) -> usb.core.USBError:
    return usb.core.USBError(f"{what} ({os.strerror(number)})", number, number)


def _operation_status(stream: _Stream, request: bytes, code: usbip.Operation) -> int:
    """Carry out an operation; the status in the reply's head."""
    head = stream.exchange(request, usbip.OPERATION)
    version, found, status = usbip.OPERATION.unpack_from(head)
    if (version, found) != (usbip.VERSION, code):
        raise stream.broken(f"operation {found:#x} of version {version:#x}")
    return int(status)


def _walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each descriptor in a row; what is cut short ends it."""
    at = 0
    while at + DESCRIPTOR_HEADER.size <= len(data):
        length, kind = DESCRIPTOR_HEADER.unpack_from(data, at)
        if length < DESCRIPTOR_HEADER.size or at + length > len(data):
            return
        yield kind, data[at : at + length]
        at += length


def _values(parsed: Any) -> dict[str, Any]:
    """The fields of a parsed structure, without Construct's own."""
    return {name: value for name, value in parsed.items() if not name.startswith("_")}
