"""USB/IP 1.1.1: USB over TCP, big-endian (Linux, Documentation/usb/usbip_protocol.rst; drivers/usb/usbip).

A connection begins with operations: the list of devices, or the import of one of them. After an import it carries that
device's transfers (URBs). Only control transfers are taken apart here; the devices of ours have no others.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from driver_shim.protocol.layout import Layout, i32be, raw, reserved, u8, u16be, u32be

VERSION = 0x0111
DEFAULT_PORT = 3240
SPEED_HIGH = 3
"""enum usb_device_speed."""
MAX_TRANSFER_BYTES = 0xFFFF
"""What wLength can ask for."""
MAX_DEVICES = 64
"""A list is not believed to be longer."""


class Operation(enum.IntEnum):
    """Code of an operation; a reply's is that of its request without the highest bit."""

    REQUEST_IMPORT = 0x8003
    REPLY_IMPORT = 0x0003
    REQUEST_DEVICES = 0x8005
    REPLY_DEVICES = 0x0005


class OperationStatus(enum.IntEnum):
    """Status of a reply, as Linux's usbip tool names it."""

    OK = 0
    NOT_AVAILABLE = 1
    BUSY = 2
    """Somebody else has imported it."""
    DEVICE_ERROR = 3
    NO_DEVICE = 4
    ERROR = 5


class Command(enum.IntEnum):
    """Command of a transfer's header."""

    SUBMIT = 1
    UNLINK = 2
    RETURN_SUBMIT = 3
    RETURN_UNLINK = 4


class Direction(enum.IntEnum):
    """Which way the data of a transfer goes."""

    OUT = 0
    IN = 1


OPERATION = Layout("usbip_operation", 8, "version" / u16be, "code" / u16be, "status" / u32be)
BUS_ID_BYTES = 32
IMPORT = Layout("usbip_import", BUS_ID_BYTES, "busid" / raw(BUS_ID_BYTES))
"""Follows REQUEST_IMPORT; NUL-padded ASCII."""
DEVICE_COUNT = Layout("usbip_device_count", 4, "count" / u32be)
"""Follows REPLY_DEVICES."""
DEVICE = Layout(
    "usbip_device",
    312,
    "path" / raw(256),
    "busid" / raw(BUS_ID_BYTES),
    "busnum" / u32be,
    "devnum" / u32be,
    "speed" / u32be,
    "idVendor" / u16be,
    "idProduct" / u16be,
    "bcdDevice" / u16be,
    "bDeviceClass" / u8,
    "bDeviceSubClass" / u8,
    "bDeviceProtocol" / u8,
    "bConfigurationValue" / u8,
    "bNumConfigurations" / u8,
    "bNumInterfaces" / u8,
)
"""Follows a good REPLY_IMPORT; in a list of devices, its interfaces come behind it."""
INTERFACE = Layout(
    "usbip_interface",
    4,
    "bInterfaceClass" / u8,
    "bInterfaceSubClass" / u8,
    "bInterfaceProtocol" / u8,
    reserved(1),
)
BASIC = Layout(
    "usbip_header_basic",
    20,
    "command" / u32be,
    "seqnum" / u32be,
    "devid" / u32be,
    "direction" / u32be,
    "ep" / u32be,
)
"""Heads every transfer message; a body of BODY_BYTES follows."""
BODY_BYTES = 28
SUBMIT = Layout(
    "usbip_submit",
    BODY_BYTES,
    "transfer_flags" / u32be,
    "transfer_buffer_length" / i32be,
    "start_frame" / i32be,
    "number_of_packets" / i32be,
    "interval" / i32be,
    "setup" / raw(8),
)
"""OUT data follows."""
RETURN_SUBMIT = Layout(
    "usbip_return_submit",
    BODY_BYTES,
    "status" / i32be,
    "actual_length" / i32be,
    "start_frame" / i32be,
    "number_of_packets" / i32be,
    "error_count" / i32be,
    reserved(8),
)
"""IN data follows; `status` is a negative errno of Linux."""
UNLINK = Layout("usbip_unlink", BODY_BYTES, "unlink_seqnum" / u32be, reserved(24))
RETURN_UNLINK = Layout("usbip_return_unlink", BODY_BYTES, "status" / i32be, reserved(24))
HEADER_BYTES = BASIC.size + BODY_BYTES
NOT_ISOCHRONOUS = (0, -1)
"""number_of_packets of other transfers: Linux sends 0, its documentation asks for 0xffffffff."""


class ProtocolError(Exception):
    """The other side sent what no message of the protocol is; the connection cannot be used any more."""


class DevicesRequest(NamedTuple):
    """The client asks for the list of devices."""


class ImportRequest(NamedTuple):
    """The client wants a device's transfers on this connection."""

    busid: bytes


class Submit(NamedTuple):
    """A transfer."""

    seqnum: int
    devid: int
    direction: int
    endpoint: int
    length: int
    """Bytes asked for (IN), or sent in `data` (OUT)."""
    setup: bytes
    data: bytes


class Unlink(NamedTuple):
    """The client wants a transfer back."""

    seqnum: int
    unlinked: int
    """The transfer's seqnum."""


Request = DevicesRequest | ImportRequest | Submit | Unlink


def encode_operation(code: int, status: int = OperationStatus.OK, payload: bytes = b"") -> bytes:
    """An operation's request or reply."""
    return OPERATION.build(version=VERSION, code=code, status=status) + payload


def encode_submit(request: Submit) -> bytes:
    """A transfer."""
    head = BASIC.build(
        command=Command.SUBMIT,
        seqnum=request.seqnum,
        devid=request.devid,
        direction=request.direction,
        ep=request.endpoint,
    )
    return head + SUBMIT.build(transfer_buffer_length=request.length, setup=request.setup) + request.data


def encode_return_submit(seqnum: int, status: int, actual_length: int, data: bytes = b"") -> bytes:
    """The end of a transfer; `data` of IN transfers only."""
    head = BASIC.build(command=Command.RETURN_SUBMIT, seqnum=seqnum)
    return head + RETURN_SUBMIT.build(status=status, actual_length=actual_length) + data


def encode_return_unlink(seqnum: int, status: int) -> bytes:
    """Whether the transfer was still there (-ECONNRESET) or had ended already (0)."""
    return BASIC.build(command=Command.RETURN_UNLINK, seqnum=seqnum) + RETURN_UNLINK.build(status=status)


class RequestFramer:
    """Cuts what a client sends into requests. Sans I/O; holds at most one message more than what was fed at once.

    `feed` what arrived, then call `next_request` until it returns None; call `imported` once an import was granted.
    After a ProtocolError the stream cannot be trusted any more.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._next: Callable[[], Request | None] = self._operation

    def __len__(self) -> int:
        """Bytes fed that belong to no request taken yet."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> None:
        """Take in what arrived."""
        self._buffer += data

    def imported(self) -> None:
        """From here on the stream carries transfers."""
        self._next = self._transfer

    def next_request(self) -> Request | None:
        """The next complete request, or None until more is fed. Raises ProtocolError."""
        return self._next()

    def _operation(self) -> Request | None:
        if len(self._buffer) < OPERATION.size:
            return None
        version, code, _ = OPERATION.unpack_from(self._buffer)
        if version != VERSION:
            raise ProtocolError(f"the client speaks USB/IP {version:#06x}, we {VERSION:#06x}")
        if code == Operation.REQUEST_DEVICES:
            self._take(OPERATION.size)
            return DevicesRequest()
        if code != Operation.REQUEST_IMPORT:
            raise ProtocolError(f"there is no operation {code:#06x}")
        if len(self._buffer) < OPERATION.size + IMPORT.size:
            return None
        busid = self._take(OPERATION.size + IMPORT.size)[OPERATION.size :]
        return ImportRequest(busid.partition(b"\0")[0])

    def _transfer(self) -> Request | None:
        if len(self._buffer) < HEADER_BYTES:
            return None
        command, seqnum, devid, direction, endpoint = BASIC.unpack_from(self._buffer)
        if command == Command.UNLINK:
            (unlinked,) = UNLINK.unpack_from(self._buffer, BASIC.size)
            self._take(HEADER_BYTES)
            return Unlink(seqnum, unlinked)
        if command != Command.SUBMIT:
            raise ProtocolError(f"there is no request {command:#x}")
        _, length, _, packets, _, setup = SUBMIT.unpack_from(self._buffer, BASIC.size)
        if not 0 <= length <= MAX_TRANSFER_BYTES:
            raise ProtocolError(f"a control transfer of {length} bytes; 0 to {MAX_TRANSFER_BYTES} are possible")
        if packets not in NOT_ISOCHRONOUS:
            raise ProtocolError(f"an isochronous transfer of {packets} packets")
        if direction not in (Direction.OUT, Direction.IN):
            raise ProtocolError(f"there is no direction {direction}")
        sent = length if direction == Direction.OUT else 0
        if len(self._buffer) < HEADER_BYTES + sent:
            return None
        data = self._take(HEADER_BYTES + sent)[HEADER_BYTES:]
        return Submit(seqnum, devid, direction, endpoint, length, setup, data)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken
