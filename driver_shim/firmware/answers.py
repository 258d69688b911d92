"""The firmware's answers taken apart. They are not trusted: lengths and enumerations are checked.

Reserved bytes are not: later firmware may use them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from driver_shim.firmware.core_state import image_version, signed
from driver_shim.protocol import mailbox
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.image_layout import ImageVersion
from driver_shim.protocol.layout import Layout
from driver_shim.protocol.mailbox import MailboxResult, UpdateState
from driver_shim.protocol.slugs import slug_of


class BadAnswer(ValueError):
    """An answer that no firmware of ours gives."""


class FirmwareInfo(NamedTuple):
    """Answer of `INFO`."""

    protocol: int
    slot: Slot
    """NONE: an image loaded from outside."""
    on_trial: bool
    version: ImageVersion
    build_id: int
    boot_reason: int
    throttle: int
    boots: int
    uptime_seconds: float
    security_counter: int
    """The device's own."""
    hardware_id: int
    log_first: int
    log_next: int


class SlotInfo(NamedTuple):
    """Answer of `SLOT_INFO`."""

    slot: Slot
    valid: bool
    """It holds an image that this device boots."""
    confirmed: bool
    trial: bool
    """It is booted next, once, or runs on trial."""
    failed: bool
    """Its trial ended without being confirmed."""
    proven: bool
    """Its image was confirmed since it was written."""
    result: int
    """MailboxResult: why `valid` is false."""
    version: ImageVersion
    image_bytes: int
    security_counter: int
    build_id: int
    hash: bytes

    @property
    def empty(self) -> bool:
        """Nothing was written there."""
        return self.image_bytes == 0


class UpdateStatus(NamedTuple):
    """Answer of `UPDATE_STATUS`."""

    state: UpdateState
    result: int
    slot: Slot
    done_bytes: int
    total_bytes: int
    kept_bytes: int
    detail: int

    @property
    def going_on(self) -> bool:
        """Whether the firmware still works on it."""
        return self.state in (UpdateState.VERIFYING, UpdateState.WRITING, UpdateState.READING_BACK)


class Sensors(NamedTuple):
    """Answer of `SENSORS`."""

    temperature_celsius: float
    power_watts: float
    voltage_volts: float
    throttle: int
    updates: int


class LogRecord(NamedTuple):
    """One record of the firmware's log, as it lies in memory: it may be damaged."""

    sequence: int
    build_id: int
    tick: int
    token: int
    level: int
    argument_count: int
    boot: int
    arguments: tuple[int, ...]


class LogBatch(NamedTuple):
    """Answer of `LOG_READ`."""

    next: int
    records: tuple[LogRecord, ...]


def parse_info(body: bytes) -> FirmwareInfo:
    """Raises BadAnswer."""
    found = _fields(mailbox.INFO, body)
    return FirmwareInfo(
        protocol=found.protocol,
        slot=_slot(found.slot),
        on_trial=_flag(found.on_trial, "on_trial"),
        version=image_version(found.version),
        build_id=found.build_id,
        boot_reason=found.boot_reason,
        throttle=found.throttle,
        boots=found.boots,
        uptime_seconds=found.uptime_milliseconds / 1000,
        security_counter=found.security_counter,
        hardware_id=found.hardware_id,
        log_first=found.log_first,
        log_next=found.log_next,
    )


def parse_slot_info(body: bytes, asked: Slot) -> SlotInfo:
    """Raises BadAnswer, also when it is about another slot than `asked`."""
    found = _fields(mailbox.SLOT_INFO, body)
    if found.slot != asked:
        raise BadAnswer(f"it is about slot {found.slot}, asked was {int(asked)}")
    return SlotInfo(
        slot=asked,
        valid=_flag(found.valid, "valid"),
        confirmed=_flag(found.confirmed, "confirmed"),
        trial=_flag(found.trial, "trial"),
        failed=_flag(found.failed, "failed"),
        proven=_flag(found.proven, "proven"),
        result=found.result,
        version=image_version(found.version),
        image_bytes=found.image_bytes,
        security_counter=found.security_counter,
        build_id=found.build_id,
        hash=bytes(found.hash),
    )


def parse_sensors(body: bytes) -> Sensors:
    """Raises BadAnswer."""
    found = _fields(mailbox.SENSORS, body)
    return Sensors(
        temperature_celsius=signed(found.temperature_millicelsius) / 1000,
        power_watts=found.power_milliwatts / 1000,
        voltage_volts=found.voltage_millivolts / 1000,
        throttle=found.throttle,
        updates=found.updates,
    )


def parse_update_status(body: bytes) -> UpdateStatus:
    """Raises BadAnswer."""
    found = _fields(mailbox.UPDATE_STATUS, body)
    try:
        state = UpdateState(found.state)
    except ValueError:
        raise BadAnswer(f"update state {found.state} is not known") from None
    if found.done_bytes > found.total_bytes:
        raise BadAnswer(f"{found.done_bytes} of {found.total_bytes} bytes are done")
    return UpdateStatus(
        state=state,
        result=found.result,
        slot=_slot(found.slot),
        done_bytes=found.done_bytes,
        total_bytes=found.total_bytes,
        kept_bytes=found.kept_bytes,
        detail=found.detail,
    )


def parse_log(body: bytes) -> LogBatch:
    """Raises BadAnswer. Records themselves are taken as they are."""
    head, record = mailbox.LOG_ANSWER, mailbox.LOG_RECORD
    if len(body) < head.size:
        raise BadAnswer(f"{len(body)} bytes, a log answer is at least {head.size}")
    following, count = head.unpack_from(body)
    if count > mailbox.LOG_RECORDS_AT_ONCE or len(body) != head.size + count * record.size:
        raise BadAnswer(f"{len(body)} bytes with {count} log records of {record.size} bytes")
    records = []
    for index in range(count):
        values = record.unpack_from(body, head.size + index * record.size)
        records.append(LogRecord._make([*values[: -mailbox.LOG_ARGUMENTS], values[-mailbox.LOG_ARGUMENTS :]]))
    return LogBatch(following, tuple(records))


def result_slug(result: int) -> str:
    """A result in kebab-case: "bad-signature"; "result-99" for one that is not known."""
    return slug_of(MailboxResult, result, f"result-{result}")


def _fields(layout: Layout, body: bytes) -> Any:
    if len(body) != layout.size:
        raise BadAnswer(f"{len(body)} bytes, a {layout.name} is {layout.size}")
    return layout.parse(body)


def _slot(value: int) -> Slot:
    try:
        return Slot(value)
    except ValueError:
        raise BadAnswer(f"there is no slot {value}") from None


def _flag(value: int, name: str) -> bool:
    if value > 1:
        raise BadAnswer(f"{name} is {value}, neither 0 nor 1")
    return bool(value)
