"""The debug port on USB/IP: loopback only, one host at a time, in the event loop of the PCI function's server."""

from __future__ import annotations

import errno
import logging
import math
import select
import socket
import time
from collections import deque

from driver_shim.protocol import usbip
from driver_shim.protocol.usb import DEVICE_DESCRIPTOR, Setup
from driver_shim.protocol.usbip import DevicesRequest, ImportRequest, OperationStatus, Request, Submit, Unlink
from emulator import timeouts
from emulator.server.listener import BACKLOG, ListenError
from emulator.server.usbip_connection import ConnectionLost, UsbipConnection
from emulator.usb import descriptors
from emulator.usb.device import DebugPort
from emulator.usb.transfer import Answer, Ending

_logger = logging.getLogger("npu.emulator.usb")

LOOPBACK = "127.0.0.1"
BUS_ID = b"1-1"
BUS, DEVICE = 1, 2
DEVICE_ID = BUS << 16 | DEVICE
"""devid of its transfers."""
DEVICE_PATH = b"/sys/devices/emulated/usb1/1-1"
MAX_NEWCOMERS = 16
"""Connections that may be about to ask for something at a time; more are closed at once."""
MAX_OPERATIONS = 16
"""Lists and imports that a connection may ask for at once: nobody else is served meanwhile."""
MAX_TRANSFERS = 64
"""Transfers that may wait at a time; usbcore queues a few."""
_STALL = -errno.EPIPE
_TOOK_BACK = -errno.ECONNRESET


def listen(port: int) -> socket.socket:
    """A socket that listens on this machine alone; port 0 takes a free one. Raises ListenError."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((LOOPBACK, port))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ListenError(f"port {port}: cannot listen there: {reason}; choose another one, or 0 for any") from error
    return listening


class UsbipServer:
    """A companion of the loop. A host that has imported the device keeps it until it hangs up or the mode changes."""

    def __init__(self, listening: socket.socket, port: DebugPort) -> None:
        """Serve whoever connects to `listening`, which is taken over."""
        self._listening = listening
        self._port = port
        self._poller: select.poll | None = None
        self._newcomers: dict[int, tuple[UsbipConnection, float]] = {}
        self._host: UsbipConnection | None = None
        self._transfers: deque[Submit] = deque()
        self._look_at = math.inf
        self._retry_at = math.inf
        self._accept_at = math.inf
        """When to look at the listening socket again, while there are no descriptors."""
        self._due = math.inf

    # --- Companion ---------------------------------------------------------------------------------------------

    def attach(self, poller: select.poll) -> None:
        """See Companion."""
        self._poller = poller
        poller.register(self._listening, select.POLLIN)

    def __contains__(self, fd: int) -> bool:
        host = self._host
        return fd in self._newcomers or fd == self._listening.fileno() or (host is not None and fd == host.fileno())

    def serve(self, fd: int, event: int) -> None:
        """See Companion."""
        if fd == self._listening.fileno():
            self._accept()
        elif fd in self._newcomers:
            self._serve_newcomer(fd)
        elif self._host is not None:
            self._serve_host(self._host, event)
        self._plan()

    def expire(self) -> None:
        """See Companion."""
        now = time.monotonic()
        if now < self._due:
            return
        for fd, (_, deadline) in list(self._newcomers.items()):
            if deadline <= now:
                self._drop(fd, "it asked for nothing in time")
        if now >= self._retry_at and self._host is not None:
            self._attempt(self._host)
            if self._host is not None:
                self._serve_host(self._host, 0)
        if now >= self._look_at:
            self._look()
        if now >= self._accept_at:
            self._accept_at = math.inf
            self._watch(self._listening, select.POLLIN)
        self._plan()

    def next_deadline(self) -> float | None:
        """See Companion."""
        return None if self._due == math.inf else self._due

    def close(self) -> None:
        """See Companion."""
        for fd in list(self._newcomers):
            self._drop(fd, "the device is switched off")
        self._lose_host("the device is switched off")
        if self._listening.fileno() >= 0 and self._accept_at == math.inf:
            self._unwatch(self._listening)
        self._listening.close()

    # --- newcomers ---------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # it stays readable: do not spin on it
                _logger.warning("a USB/IP connection could not be accepted: %s", error.strerror)
                self._unwatch(self._listening)
                self._accept_at = time.monotonic() + timeouts.ACCEPT_PAUSE_S
            return
        if len(self._newcomers) >= MAX_NEWCOMERS:
            sock.close()
            return
        connection = UsbipConnection(sock)
        self._newcomers[connection.fileno()] = (connection, time.monotonic() + timeouts.USBIP_REQUEST_S)
        self._watch(connection, select.POLLIN)

    def _serve_newcomer(self, fd: int) -> None:
        connection, _ = self._newcomers[fd]
        try:
            connection.receive()
            for count, request in enumerate(connection.requests()):
                if count >= MAX_OPERATIONS:
                    raise ConnectionLost(f"it asked for more than {MAX_OPERATIONS} things at once")
                if isinstance(request, DevicesRequest):
                    connection.send(_device_list(self._export(), self._interfaces()))
                elif isinstance(request, ImportRequest) and self._import(connection, request):
                    return
        except ConnectionLost as lost:
            self._drop(fd, str(lost))

    def _import(self, connection: UsbipConnection, request: ImportRequest) -> bool:
        """Give the device to a host, unless another one has it. Raises ConnectionLost."""
        if self._host is not None:
            self._serve_host(self._host, select.POLLIN)  # it may have hung up since the sockets were looked at
        status = OperationStatus.OK if request.busid == BUS_ID else OperationStatus.NO_DEVICE
        if status is OperationStatus.OK and self._host is not None:
            status = OperationStatus.BUSY
        if status is not OperationStatus.OK:
            _logger.debug("a host asked for %r and was told: %s", request.busid, status.name)
            connection.send(usbip.encode_operation(usbip.Operation.REPLY_IMPORT, status))
            return False
        self._look()
        connection.send(usbip.encode_operation(usbip.Operation.REPLY_IMPORT, status, self._export()))
        connection.imported()
        del self._newcomers[connection.fileno()]
        self._host = connection
        _logger.debug("the debug port was imported (%s)", self._port.mode.name)
        self._serve_host(connection, 0)  # transfers may have come with the request
        return True

    def _drop(self, fd: int, why: str) -> None:
        connection, _ = self._newcomers.pop(fd)
        self._unwatch(connection)
        connection.close()
        _logger.debug("a USB/IP connection ended: %s", why)

    # --- the host that has the device --------------------------------------------------------------------------

    def _serve_host(self, host: UsbipConnection, event: int) -> None:
        try:
            if event & select.POLLOUT:
                host.flush()
            if event & ~select.POLLOUT:
                host.receive()
            for request in host.requests():
                self._carry_out(host, request)
                if self._host is not host:
                    return
        except ConnectionLost as lost:
            self._lose_host(str(lost))
            return
        if self._poller is not None:
            self._poller.modify(host, select.POLLIN | (select.POLLOUT if host.backlog_bytes else 0))

    def _carry_out(self, host: UsbipConnection, request: Request) -> None:
        """Take one request in. Raises ConnectionLost."""
        if isinstance(request, Unlink):
            kept = deque(transfer for transfer in self._transfers if transfer.seqnum != request.unlinked)
            status = _TOOK_BACK if len(kept) < len(self._transfers) else 0
            self._transfers = kept
            host.send(usbip.encode_return_unlink(request.seqnum, status))
        elif isinstance(request, Submit):
            if request.devid != DEVICE_ID:
                raise ConnectionLost(f"it names device {request.devid:#x}; it imported {DEVICE_ID:#x}")
            if len(self._transfers) >= MAX_TRANSFERS:
                raise ConnectionLost(f"it has more than {MAX_TRANSFERS} transfers wait")
            self._transfers.append(request)
            if len(self._transfers) == 1:
                self._attempt(host)

    def _attempt(self, host: UsbipConnection) -> None:
        """Carry out transfers in their order, up to one that the device is not ready for."""
        self._retry_at = math.inf
        try:
            while self._transfers:
                transfer = self._transfers[0]
                answer = self._answer(transfer)
                if answer is Ending.LATER:
                    self._retry_at = time.monotonic() + timeouts.TRANSFER_RETRY_S
                    return
                self._transfers.popleft()
                host.send(_returned(transfer, answer))
        except ConnectionLost as lost:
            self._lose_host(str(lost))

    def _answer(self, transfer: Submit) -> Answer:
        setup = Setup.parse(transfer.setup)
        wrong_way = bool(setup.length) and setup.is_in != (transfer.direction == usbip.Direction.IN)
        if transfer.endpoint or wrong_way or transfer.length != setup.length:
            return Ending.STALL
        return self._port.answer(setup, transfer.data)

    def _look(self) -> None:
        """Follow the core: a device that leaves the bus ends the connection, and its host imports it anew."""
        if self._port.look():
            _logger.info("the debug port left the bus and is back: %s", self._port.mode.name)
            self._lose_host("the device left the bus")
        self._look_at = time.monotonic() + timeouts.CORE_MODE_POLL_S

    def _lose_host(self, why: str) -> None:
        host = self._host
        if host is None:
            return
        self._host = None
        self._transfers.clear()
        self._retry_at = math.inf
        self._unwatch(host)
        host.close()
        self._port.unplug()
        _logger.debug("the debug port is free: %s", why)

    # --- helpers -----------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """When `expire` has something to do."""
        if self._host is None and not self._port.leaving:
            self._look_at = math.inf
        newcomers = min((deadline for _, deadline in self._newcomers.values()), default=math.inf)
        self._due = min(newcomers, self._retry_at, self._look_at, self._accept_at)

    def _watch(self, connection: UsbipConnection | socket.socket, events: int) -> None:
        if self._poller is not None:
            self._poller.register(connection, events)

    def _unwatch(self, connection: UsbipConnection | socket.socket) -> None:
        if self._poller is not None:
            self._poller.unregister(connection)

    def _export(self) -> bytes:
        """The device as the list of devices and the reply to an import have it."""
        device = DEVICE_DESCRIPTOR.parse(descriptors.device_descriptor())
        return usbip.DEVICE.build(
            path=DEVICE_PATH,
            busid=BUS_ID,
            busnum=BUS,
            devnum=DEVICE,
            speed=usbip.SPEED_HIGH,
            idVendor=device.idVendor,
            idProduct=device.idProduct,
            bcdDevice=device.bcdDevice,
            bDeviceClass=device.bDeviceClass,
            bDeviceSubClass=device.bDeviceSubClass,
            bDeviceProtocol=device.bDeviceProtocol,
            bConfigurationValue=self._port.configuration,
            bNumConfigurations=device.bNumConfigurations,
            bNumInterfaces=descriptors.INTERFACES,
        )

    def _interfaces(self) -> bytes:
        """Class, subclass and protocol of each interface, as they are at the moment."""
        self._look()
        return b"".join(
            usbip.INTERFACE.build(bInterfaceClass=kind, bInterfaceSubClass=subclass, bInterfaceProtocol=protocol)
            for kind, subclass, protocol in descriptors.interface_kinds(self._port.mode)
        )


def _device_list(export: bytes, interfaces: bytes) -> bytes:
    count = usbip.DEVICE_COUNT.build(count=1)
    return usbip.encode_operation(usbip.Operation.REPLY_DEVICES, payload=count + export + interfaces)


def _returned(transfer: Submit, answer: Answer) -> bytes:
    """The reply that says how a transfer ended."""
    if not isinstance(answer, bytes):
        return usbip.encode_return_submit(transfer.seqnum, _STALL, 0)
    if transfer.direction == usbip.Direction.OUT:
        return usbip.encode_return_submit(transfer.seqnum, 0, transfer.length)
    data = answer[: transfer.length]
    return usbip.encode_return_submit(transfer.seqnum, 0, len(data), data)
