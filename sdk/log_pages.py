"""Log pages of a device, decoded."""

from __future__ import annotations

import dataclasses

from driver_shim.protocol.commands import ACTIVITY_LOG, ERROR_ENTRY, ERROR_LOG_HEADER, FaultSource, status_slug


@dataclasses.dataclass(frozen=True)
class ErrorLogEntry:
    """One thing that went wrong on the device."""

    sequence: int
    """Counts all errors since power-on."""
    source: str
    """Part of the device, in lower case: command, register, dma, …"""
    status: str | None
    """The completion status it caused, kebab-case; None when no command was involved."""
    message: str
    address: int
    queue: int
    command_id: int
    command_index: int
    """Position within the program, for executed programs."""
    count: int
    """How often it happened in a row."""
    tick: int


@dataclasses.dataclass(frozen=True)
class Activity:
    """Counters since power-on; names as in the ACTIVITY log page."""

    commands: int
    failed_commands: int
    nop_commands: int
    copy_commands: int
    fill_commands: int
    exec_commands: int
    barrier_commands: int
    admin_commands: int
    bytes_copied: int
    bytes_filled: int
    program_commands: int
    doorbells: int
    interrupts: int
    resets: int
    busy_ticks: int
    fast_program_commands: int


def decode_error_log(page: bytes) -> list[ErrorLogEntry]:
    """The entries of an ERRORS page, newest first."""
    header = ERROR_LOG_HEADER.parse(page[: ERROR_LOG_HEADER.size])
    entries = []
    for index in range(header.entries):
        start = ERROR_LOG_HEADER.size + index * ERROR_ENTRY.size
        raw = ERROR_ENTRY.parse(page[start : start + ERROR_ENTRY.size])
        entries.append(
            ErrorLogEntry(
                raw.sequence,
                _source(raw.source),
                status_slug(raw.status) if raw.status else None,
                raw.message.rstrip(b"\0").decode("utf-8", "replace"),
                raw.address,
                raw.queue,
                raw.command_id,
                raw.command_index,
                raw.count,
                raw.tick,
            )
        )
    return entries


def decode_activity(page: bytes) -> Activity:
    """The counters of an ACTIVITY page."""
    raw = ACTIVITY_LOG.parse(page)
    return Activity(**{field.name: raw[field.name] for field in dataclasses.fields(Activity)})


def _source(value: int) -> str:
    try:
        return FaultSource(value).name.lower()
    except ValueError:
        return f"source-{value}"
