"""BAR2: a page of doorbells for each queue."""

from __future__ import annotations

from driver_shim.protocol.commands import FaultSource
from driver_shim.protocol.registers import CQ_HEAD_DOORBELL, DOORBELL_PAGE_BYTES, SQ_TAIL_DOORBELL
from emulator.chip.error_log import ErrorLog
from emulator.function.controller import Controller

DOORBELL_BYTES = 4


class Doorbells:
    """The doorbells of all queues; whether a queue exists is the controller's to know. They read as zeros."""

    def __init__(self, controller: Controller, errors: ErrorLog) -> None:
        self._ring = controller.ring_bell
        self._errors = errors

    def write(self, offset: int, data: bytes) -> None:
        """A store to BAR2; one that is no doorbell's is recorded as a fault."""
        queue_id, register = divmod(offset, DOORBELL_PAGE_BYTES)
        value = int.from_bytes(data, "little")
        if len(data) != DOORBELL_BYTES or register not in (SQ_TAIL_DOORBELL, CQ_HEAD_DOORBELL):
            message = f"doorbell write of {len(data)} bytes at {offset:#x}"
            self._errors.fault(FaultSource.REGISTER, offset, message)
        elif register == SQ_TAIL_DOORBELL:
            self._ring(queue_id, value, None)
        else:
            self._ring(queue_id, None, value)
