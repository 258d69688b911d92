"""USB/IP against bytes written down by hand from Linux's description, cut anywhere, and with hostile fields."""

from __future__ import annotations

import pytest

from driver_shim.protocol import usbip
from driver_shim.protocol.usbip import DevicesRequest, ImportRequest, ProtocolError, RequestFramer, Submit, Unlink

LIST = bytes.fromhex("0111 8005 00000000")
IMPORT = bytes.fromhex("0111 8003 00000000") + b"1-1".ljust(32, b"\0")
READ = bytes.fromhex(
    "00000001 0000000d 00010002 00000001 00000000"
    "00000200 00000040 00000000 00000000 00000000"
    "80 06 0001 0000 4000"
)  # fmt: skip
"""GET_DESCRIPTOR of 64 bytes."""
WRITE = bytes.fromhex(
    "00000001 0000000e 00010002 00000000 00000000"
    "00000000 00000004 00000000 ffffffff 00000000"
    "41 02 a000 0000 0400"
    "deadbeef"
)  # fmt: skip
UNLINK = bytes.fromhex("00000002 0000000f 00010002 00000000 00000000 0000000d") + bytes(24)


def framed(data: bytes, *, imported: bool, chunk: int | None = None) -> list[usbip.Request]:
    """All requests in a stream that arrives in pieces."""
    framer = RequestFramer()
    if imported:
        framer.imported()
    found = []
    for at in range(0, len(data), chunk or len(data)):
        framer.feed(data[at : at + (chunk or len(data))])
        while (request := framer.next_request()) is not None:
            found.append(request)
    assert len(framer) == 0
    return found


@pytest.mark.parametrize("chunk", [None, 1, 7, 49])
def test_a_stream_is_cut_into_requests(chunk: int | None) -> None:
    assert framed(LIST + IMPORT, imported=False, chunk=chunk) == [DevicesRequest(), ImportRequest(b"1-1")]
    assert framed(READ + WRITE + UNLINK, imported=True, chunk=chunk) == [
        Submit(13, 0x10002, 1, 0, 64, bytes.fromhex("8006000100004000"), b""),
        Submit(14, 0x10002, 0, 0, 4, bytes.fromhex("4102a00000000400"), bytes.fromhex("deadbeef")),
        Unlink(15, 13),
    ]


def test_what_our_host_sends_is_these_bytes() -> None:
    (read, write, unlink) = framed(READ + WRITE + UNLINK, imported=True)
    assert isinstance(read, Submit) and isinstance(write, Submit) and isinstance(unlink, Unlink)
    assert usbip.encode_submit(read)[24:] == READ[24:]  # transfer_flags apart
    assert usbip.encode_submit(write) == WRITE.replace(b"\xff" * 4, bytes(4))
    assert usbip.encode_operation(usbip.Operation.REQUEST_DEVICES) == LIST


def test_what_our_server_sends_is_these_bytes() -> None:
    assert usbip.encode_operation(usbip.Operation.REPLY_IMPORT, usbip.OperationStatus.BUSY) == bytes.fromhex(
        "0111 0003 00000002"
    )
    assert usbip.encode_return_submit(13, 0, 2, b"\1\2") == bytes.fromhex(
        "00000003 0000000d 00000000 00000000 0000000000000000 00000002 00000000 00000000 00000000 00000000000000000102"
    )
    assert usbip.encode_return_submit(14, -32, 0)[20:28] == bytes.fromhex("ffffffe0 00000000")
    assert usbip.encode_return_unlink(15, -104) == bytes.fromhex(
        "00000004 0000000f 00000000 00000000 00000000 ffffff98"
    ) + bytes(24)


def changed(message: bytes, at: int, word: str) -> bytes:
    """A message with one big-endian word replaced."""
    data = bytes.fromhex(word)
    return message[:at] + data + message[at + len(data) :]


@pytest.mark.parametrize(
    ("message", "imported"),
    [
        (changed(LIST, 0, "0106"), False),
        (changed(LIST, 2, "8002"), False),
        (changed(LIST, 2, "0005"), False),
        (READ, False),
        (LIST + bytes(40), True),
        (changed(READ, 0, "00000003"), True),
        (changed(READ, 12, "00000002"), True),
        (changed(READ, 24, "00010000"), True),
        (changed(READ, 24, "ffffffff"), True),
        (changed(WRITE, 24, "7fffffff"), True),
        (changed(READ, 32, "00000001"), True),
    ],
    ids=[
        "another version", "unknown operation", "a reply", "a transfer too early", "an operation too late",
        "a reply to a transfer", "unknown direction", "too long", "negative", "much to send", "isochronous",
    ],
)  # fmt: skip
def test_what_is_no_request_ends_the_stream_before_its_data_is_waited_for(message: bytes, imported: bool) -> None:
    with pytest.raises(ProtocolError):
        framed(message, imported=imported)
