"""The wire between the USB controller, which is the PCI function's process's, and the boot ROM in recovery mode.

One datagram a request, one an answer. Requests are answered in order; outside recovery mode with NOT_IN_RECOVERY.
"""

from __future__ import annotations

import enum
import socket

from driver_shim.protocol.firmware_slots import SLOT_BYTES, Slot
from driver_shim.protocol.layout import Layout, reserved, u8, u32
from emulator.management.npu.recovery import Recovery, RecoveryError, SlotDamaged

MAX_DATA_BYTES = 4096
TEXT_BYTES = 512

RECOVERY_REQUEST = Layout("recovery_request", 12, "kind" / u8, "slot" / u8, reserved(2), "offset" / u32, "size" / u32)
"""Heads a request; STAGE is followed by its data, for the others `size` counts bytes of the slot or image."""
RECOVERY_ANSWER = Layout("recovery_answer", 8, "kind" / u8, "outcome" / u8, reserved(2), "size" / u32)
"""Heads an answer: followed by data, or by a text when it was refused."""
MAX_MESSAGE_BYTES = max(RECOVERY_REQUEST.size, RECOVERY_ANSWER.size) + max(MAX_DATA_BYTES, TEXT_BYTES)


class RecoveryRequest(enum.IntEnum):
    """`recovery_request.kind`."""

    STAGE = 1
    """Put data at `offset` of the image."""
    INSTALL = 2
    """Verify `size` staged bytes and write them to `slot`."""
    MEASURE = 3
    """How long the image in `slot` is: in the answer's `size`."""
    READ = 4
    """`size` bytes of the image in `slot` from `offset` on."""
    VERIFY = 5
    """Verify `size` staged bytes, and write nothing."""


class Outcome(enum.IntEnum):
    """`recovery_answer.outcome`."""

    DONE = 0
    REFUSED = 1
    NOT_IN_RECOVERY = 2
    DAMAGED = 3
    """Flash failed while a slot was written; followed by a text as well."""


def answer_requests(channel: socket.socket, recovery: Recovery | None) -> bool:
    """Answer all requests that have come; None outside recovery mode. False when the other end is gone."""
    while True:
        try:
            message = channel.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        if not message:
            return False
        try:
            channel.send(_answer(message, recovery))
        except BlockingIOError:
            pass  # it asks on and on and reads nothing: what it misses is its loss
        except ConnectionError:
            return False


def _answer(message: bytes, recovery: Recovery | None) -> bytes:
    request = RECOVERY_REQUEST.parse(message[: RECOVERY_REQUEST.size])
    if recovery is None:
        return _head(request.kind, Outcome.NOT_IN_RECOVERY)
    try:
        if request.kind == RecoveryRequest.STAGE:
            recovery.stage(request.offset, message[RECOVERY_REQUEST.size :])
            return _head(request.kind, Outcome.DONE)
        if request.kind == RecoveryRequest.VERIFY:
            recovery.verify(request.size)
            return _head(request.kind, Outcome.DONE)
        slot = Slot(request.slot)
        if request.kind == RecoveryRequest.INSTALL:
            recovery.install(slot, request.size)
            return _head(request.kind, Outcome.DONE)
        image = recovery.slot_image(slot)
        if request.kind == RecoveryRequest.MEASURE:
            return _head(request.kind, Outcome.DONE, size=len(image))
        data = image[request.offset : request.offset + min(request.size, MAX_DATA_BYTES)]
        return _head(request.kind, Outcome.DONE, size=len(data)) + data
    except RecoveryError as error:
        text = str(error).encode()[:TEXT_BYTES]
        outcome = Outcome.DAMAGED if isinstance(error, SlotDamaged) else Outcome.REFUSED
        return _head(request.kind, outcome, size=len(text)) + text


def _head(kind: int, outcome: Outcome, *, size: int = 0) -> bytes:
    return RECOVERY_ANSWER.build(kind=kind, outcome=int(outcome), size=min(size, SLOT_BYTES))
