"""The error log: a bounded list of records, a fault word and a counter, all surviving resets."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

from driver_shim.protocol.commands import (
    ERROR_ENTRY,
    ERROR_LOG_ENTRIES,
    ERROR_LOG_HEADER,
    ERROR_MESSAGE_BYTES,
    FaultSource,
)
from driver_shim.protocol.registers import REGISTERS

_FAULT_BIT = {
    FaultSource.REGISTER: "register",
    FaultSource.CONFIG: "register",
    FaultSource.APERTURE: "aperture",
    FaultSource.DMA: "dma",
    FaultSource.QUEUE: "queue",
    FaultSource.COMMAND: "command",
    FaultSource.ENGINE: "engine",
    FaultSource.CLIENT: "client",
}


@dataclasses.dataclass
class ErrorRecord:
    """One entry; equal neighbours are merged and counted."""

    source: FaultSource
    message: str
    address: int = 0
    status: int = 0
    opcode: int = 0
    queue: int = 0
    command_id: int = 0
    command_index: int = 0
    sequence: int = 0
    tick: int = 0
    wall_nanoseconds: int = 0
    count: int = 1

    def same_cause(self, other: ErrorRecord) -> bool:
        """Whether `other` reports the same misuse at the same place."""
        return _cause(self) == _cause(other)

    def encode(self) -> bytes:
        """The entry as ERROR_ENTRY bytes; a long message is cut."""
        values = dataclasses.asdict(self)
        values["message"] = self.message.encode("utf-8", "replace")[:ERROR_MESSAGE_BYTES]
        values["source"] = int(self.source)
        values["count"] = min(self.count, 0xFFFF_FFFF)
        return ERROR_ENTRY.build(**values)


def _cause(record: ErrorRecord) -> tuple[object, ...]:
    return (record.source, record.address, record.status, record.opcode, record.queue, record.message)


class ErrorLog:
    """Keeps the newest ERROR_LOG_ENTRIES records; `clocks` returns (tick, wall nanoseconds) of a moment."""

    def __init__(self, clocks: Callable[[], tuple[int, int]]) -> None:
        self._clocks = clocks
        self._records: deque[ErrorRecord] = deque(maxlen=ERROR_LOG_ENTRIES)
        self.total = 0
        self.fault_bits = 0
        """Value of the fault_status register."""
        self.fault_address = 0

    def record(self, record: ErrorRecord) -> None:
        """Add a record, or count it onto the newest one when that has the same cause."""
        self.total += 1
        self.fault_bits |= REGISTERS["fault_status"].fields[_FAULT_BIT[record.source]].mask
        self.fault_address = record.address
        tick, wall = self._clocks()
        if self._records and self._records[-1].same_cause(record):
            newest = self._records[-1]
            newest.count += 1
            newest.command_id = record.command_id
        else:
            newest = record
            self._records.append(newest)
        newest.tick, newest.wall_nanoseconds, newest.sequence = tick, wall, self.total

    def fault(self, source: FaultSource, address: int, message: str) -> None:
        """Record what went wrong at `address` and belongs to no command."""
        self.record(ErrorRecord(source, message, address=address))

    def entries(self) -> list[bytes]:
        """All records as ERROR_ENTRY bytes, newest first."""
        return [record.encode() for record in reversed(self._records)]

    def page(self) -> bytes:
        """The ERRORS log page."""
        entries = self.entries()
        header = ERROR_LOG_HEADER.build(total=self.total, entries=len(entries))
        return header + b"".join(entries)

    def restore(self, page: bytes) -> None:
        """Take over a page that an earlier process of the same device saved. Raises ValueError if it is not one."""
        self.total, records = decode_page(page)
        self._records.extend(records)


def decode_page(page: bytes) -> tuple[int, list[ErrorRecord]]:
    """Total and records, oldest first, of an ERRORS page. Raises ValueError for bytes that are none."""
    header = ERROR_LOG_HEADER.parse(page[: ERROR_LOG_HEADER.size])
    size = ERROR_LOG_HEADER.size + header.entries * ERROR_ENTRY.size
    if header.entries > ERROR_LOG_ENTRIES or len(page) != size:
        raise ValueError(f"an error log of {header.entries} entries in {len(page)} bytes")
    starts = range(ERROR_LOG_HEADER.size, size, ERROR_ENTRY.size)
    return header.total, [_decode(page[start : start + ERROR_ENTRY.size]) for start in reversed(starts)]


def _decode(data: bytes) -> ErrorRecord:
    entry = ERROR_ENTRY.parse(data)
    return ErrorRecord(
        source=FaultSource(entry.source),
        message=entry.message.rstrip(b"\0").decode("utf-8", "replace"),
        **{name: entry[name] for name in ERROR_ENTRY.fields if name not in ("source", "message")},
    )
