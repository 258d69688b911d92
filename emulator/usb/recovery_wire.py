"""The recovery port of a management core: the boot ROM in its process, by `management/process/recovery_channel.py`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NamedTuple

from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.mailbox import MailboxResult
from emulator.management.process.recovery_channel import (
    MAX_MESSAGE_BYTES,
    RECOVERY_ANSWER,
    RECOVERY_REQUEST,
    RecoveryRequest,
)
from emulator.management.process.recovery_channel import Outcome as WireOutcome
from emulator.usb.recovery_port import Outcome, SlotUnreadable

_GONE = Outcome(MailboxResult.ABORTED, "the management core's process is gone")
_REFUSALS: dict[int, MailboxResult] = {
    WireOutcome.REFUSED: MailboxResult.BAD_FORMAT,
    WireOutcome.DAMAGED: MailboxResult.FLASH_FAULT,
}
_AWAY = Outcome(MailboxResult.ABORTED, "the management core is not in recovery")


class _Asked(NamedTuple):
    """A request on its way, or answered: reads are told apart by what they ask for."""

    kind: RecoveryRequest
    slot: Slot
    offset: int
    size: int


class RecoveryWire:
    """See RecoveryPort. One request is on its way at a time."""

    def __init__(self, channel: Callable[[], socket.socket | None]) -> None:
        """`channel` gives the socket, another one after the core's process was started anew, None without one."""
        self._channel = channel
        self._used: socket.socket | None = None
        self._waiting: _Asked | None = None
        self._begun = Outcome(MailboxResult.OK)
        """How the last `stage`, `verify` or `install` ended."""
        self._found: tuple[_Asked, Outcome, int, bytes] | None = None
        """The last read until it is fetched: what was asked, how it ended, the size and the data in the answer."""

    def stage(self, offset: int, data: bytes) -> None:
        """See RecoveryPort."""
        self._ask(_Asked(RecoveryRequest.STAGE, Slot.NONE, offset, len(data)), data)

    def verify(self, length: int) -> None:
        """See RecoveryPort."""
        self._ask(_Asked(RecoveryRequest.VERIFY, Slot.NONE, 0, length))

    def install(self, slot: Slot, length: int) -> None:
        """See RecoveryPort."""
        self._ask(_Asked(RecoveryRequest.INSTALL, slot, 0, length))

    def poll(self) -> Outcome | None:
        """See RecoveryPort."""
        self._receive()
        return self._begun if self._waiting is None else None

    def slot_length(self, slot: Slot) -> int | None:
        """See RecoveryPort."""
        found = self._read(_Asked(RecoveryRequest.MEASURE, slot, 0, 0))
        return None if found is None else found[0]

    def read_slot(self, slot: Slot, offset: int, length: int) -> bytes | None:
        """See RecoveryPort."""
        found = self._read(_Asked(RecoveryRequest.READ, slot, offset, length))
        return None if found is None else found[1]

    def _read(self, asked: _Asked) -> tuple[int, bytes] | None:
        self._receive()
        if self._found is not None and self._found[0] == asked:
            _, outcome, size, data = self._found
            self._found = None  # a later read is asked anew: the slot may hold something else by then
            if outcome.result is not MailboxResult.OK:
                raise SlotUnreadable(outcome)
            return size, data
        if self._waiting is None:
            self._ask(asked)
        return None

    def _ask(self, asked: _Asked, data: bytes = b"") -> None:
        request = RECOVERY_REQUEST.build(kind=asked.kind, slot=asked.slot, offset=asked.offset, size=asked.size)
        channel = self._used = self._channel()
        self._waiting = asked
        if channel is None:
            self._conclude(_GONE)
            return
        try:
            channel.send(request + data)
        except OSError:  # also when it is full: nothing but a core that stands still reads nothing
            self._conclude(_GONE)

    def _receive(self) -> None:
        if self._waiting is None:
            return
        channel = self._channel()
        if channel is None or channel is not self._used:
            self._conclude(_GONE)
            return
        try:
            message = channel.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if len(message) < RECOVERY_ANSWER.size:
            self._conclude(_GONE)
            return
        _, outcome, size = RECOVERY_ANSWER.unpack_from(message)
        rest = message[RECOVERY_ANSWER.size :]
        if outcome == WireOutcome.NOT_IN_RECOVERY:
            self._conclude(_AWAY)
        elif outcome in _REFUSALS:
            self._conclude(Outcome(_REFUSALS[outcome], rest.decode("utf-8", "replace")))
        else:
            self._conclude(Outcome(MailboxResult.OK), size, rest)

    def _conclude(self, outcome: Outcome, size: int = 0, data: bytes = b"") -> None:
        asked, self._waiting = self._waiting, None
        if asked is None:
            return
        if asked.kind in (RecoveryRequest.MEASURE, RecoveryRequest.READ):
            self._found = (asked, outcome, size, data)
        else:
            self._begun, self._found = outcome, None
