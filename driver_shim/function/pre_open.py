"""A device's state before its driver enabled or reset anything, for a post-mortem.

To open a card resets it (VFIO does), so only what lies in the cold reset domain is still there, and that is read first.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from driver_shim.function.registers import Registers
from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.registers import REGISTERS
from driver_shim.protocol.slugs import slug_of
from driver_shim.shared.runtime_folder import (
    check_runtime_folder,
    device_file_name,
    make_runtime_folder,
    runtime_folder,
)
from driver_shim.shared.whole_file import replace_whole

REGISTERS_READ = (
    "reset_cause",
    "reset_history",
    "black_box",
    "boot_progress",
    "fault_status",
    "fault_count",
    "fault_address",
)
"""Registers of the cold domain that say what happened."""
RECORD_VERSION = 1
_log = logging.getLogger("npu")


@dataclasses.dataclass(frozen=True)
class PreOpenRecord:
    """The cold-domain registers that say what happened, as they were at open."""

    registers: Mapping[str, Mapping[str, int]]
    """Register → field → value."""
    time: float
    """When it was read, in seconds since the epoch."""

    @property
    def reset_causes(self) -> tuple[str, ...]:
        """Why the function was reset the last times, newest first ("flr", "client-lost"); opening may be the first."""
        causes = self.registers["reset_history"]["causes"].to_bytes(REGISTERS["reset_history"].size, "little")
        return tuple(_cause_name(cause) for cause in causes.rstrip(b"\0"))

    @property
    def faults(self) -> tuple[str, ...]:
        """Kinds of faults that nobody has cleared: fields of the fault_status register."""
        return tuple(kind for kind, seen in self.registers["fault_status"].items() if seen)

    @property
    def fault_count(self) -> int:
        """Faults recorded since power-on."""
        return self.registers["fault_count"]["count"]

    @property
    def black_box(self) -> str | None:
        """Why a black box was saved: "client-lost"; None when there is none. `Device.black_box` reads it."""
        box = self.registers["black_box"]
        return _cause_name(box["cause"]) if box["bytes"] else None


def read_pre_open(registers: Registers) -> PreOpenRecord:
    """Read the record. Raises DeviceLost."""
    return PreOpenRecord({name: registers[name].fields() for name in REGISTERS_READ}, time.time())


def save_pre_open(address: str, record: PreOpenRecord, folder: Path | None = None) -> None:
    """Keep the record of a device that others can open too, for those who only ask. Never raises: it is logged."""
    path = _path(address, folder)
    document = {"version": RECORD_VERSION, "address": address, **dataclasses.asdict(record)}
    try:
        make_runtime_folder(path.parent)
        replace_whole(path, json.dumps(document).encode(), shared=True)
    except OSError as error:
        _log.debug("the pre-open record is not kept in %s: %s", path.parent, error.strerror)


def saved_pre_open(address: str, folder: Path | None = None) -> PreOpenRecord | None:
    """What was found when the device was last opened on this machine; None when nothing is known."""
    path = _path(address, folder)
    try:
        check_runtime_folder(path.parent)
        document = json.loads(path.read_text("utf-8"))
        if document["version"] != RECORD_VERSION or document["address"] != address:
            return None
        read = {name: {field: int(v) for field, v in document["registers"][name].items()} for name in REGISTERS_READ}
        record = PreOpenRecord(read, float(document["time"]))
        _ = record.reset_causes, record.faults, record.fault_count, record.black_box
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        _log.debug("%s is no pre-open record: %s", path, error)
        return None
    return record


def _path(address: str, folder: Path | None) -> Path:
    return (folder or runtime_folder()) / f"{device_file_name(address)}.pre-open.json"


def _cause_name(cause: int) -> str:
    return slug_of(ResetCause, cause, f"cause-{cause}")
