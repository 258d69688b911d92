"""Requests to the firmware as typed calls: `Firmware(Mailbox(transport)).info()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from driver_shim.errors import ContractMismatch
from driver_shim.firmware.answers import (
    BadAnswer,
    FirmwareInfo,
    LogBatch,
    Sensors,
    SlotInfo,
    UpdateStatus,
    parse_info,
    parse_log,
    parse_sensors,
    parse_slot_info,
    parse_update_status,
)
from driver_shim.firmware.mailbox import Mailbox, bad_answer
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.mailbox import (
    LOG_QUERY,
    MAILBOX_VERSION,
    SLOT_QUERY,
    STAGE_WRITE,
    UPDATE_BEGIN,
    MailboxCommand,
    UpdateFlag,
)

_Answer = TypeVar("_Answer")
_NO_BODY = b""
NO_FLAGS = UpdateFlag(0)


class Firmware:
    """The firmware of one open device. Every call raises FirmwareError, Timeout and DeviceLost as `Mailbox.request`."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.address = mailbox.address

    def ping(self, data: bytes = b"") -> None:
        """See whether it answers. Raises FirmwareError, also when it does not give `data` back."""
        if self.mailbox.request(MailboxCommand.PING, data) != data:
            raise bad_answer(self.address, MailboxCommand.PING, "it is not what was sent")

    def info(self) -> FirmwareInfo:
        """What runs. Raises ContractMismatch when it speaks another version of the mailbox protocol."""
        info = self._ask(MailboxCommand.INFO, parse_info)
        if info.protocol != MAILBOX_VERSION:
            raise ContractMismatch(
                f"{self.address}: the firmware speaks mailbox protocol {info.protocol}, this tool {MAILBOX_VERSION}",
                device=self.address,
                subsystem="firmware",
                remedy="install the SDK that goes with the device's firmware",
            )
        return info

    def slot_info(self, slot: Slot) -> SlotInfo:
        """What a slot holds."""
        body = SLOT_QUERY.build(slot=int(slot))
        return self._ask(MailboxCommand.SLOT_INFO, lambda answer: parse_slot_info(answer, slot), body)

    def sensors(self) -> Sensors:
        """Readings taken for this answer."""
        return self._ask(MailboxCommand.SENSORS, parse_sensors)

    def read_log(self, first: int) -> LogBatch:
        """Some records of the log from number `first` on, oldest first."""
        return self._ask(MailboxCommand.LOG_READ, parse_log, LOG_QUERY.build(first=first))

    def stage(self, offset: int, data: bytes) -> None:
        """Put bytes of an image (at most STAGE_BYTES) into the device's staging memory."""
        self._ask(MailboxCommand.STAGE_WRITE, _empty, STAGE_WRITE.build(offset=offset) + data)

    def update_begin(self, image_bytes: int, address: int = 0, flags: UpdateFlag = NO_FLAGS) -> None:
        """Start an update with what was staged (flag STAGED), or with what lies at the bus address `address`."""
        body = UPDATE_BEGIN.build(address=address, image_bytes=image_bytes, flags=int(flags))
        self._ask(MailboxCommand.UPDATE_BEGIN, _empty, body)

    def update_status(self) -> UpdateStatus:
        """How far the last update is."""
        return self._ask(MailboxCommand.UPDATE_STATUS, parse_update_status)

    def update_abort(self) -> None:
        """End an update in order."""
        self._ask(MailboxCommand.UPDATE_ABORT, _empty)

    def confirm(self) -> None:
        """Keep the running image, which is on trial."""
        self._ask(MailboxCommand.CONFIRM, _empty)

    def rollback(self) -> None:
        """Have the other slot's image boot next; where its trial is due and has not begun, withdraw that instead."""
        self._ask(MailboxCommand.ROLLBACK, _empty)

    def reset(self) -> None:
        """Reset the core; the firmware answers first."""
        self._ask(MailboxCommand.RESET, _empty)

    def _ask(self, command: MailboxCommand, parse: Callable[[bytes], _Answer], body: bytes = _NO_BODY) -> _Answer:
        answer = self.mailbox.request(command, body)
        try:
            return parse(answer)
        except BadAnswer as error:
            raise bad_answer(self.address, command, str(error)) from error


def _empty(answer: bytes) -> None:
    if answer:
        raise BadAnswer(f"{len(answer)} bytes where none were expected")
