"""The state folder: serial number, error log, counters and black box, kept across processes.

Without a folder nothing is kept. Files are replaced whole (written beside, then renamed): a kill leaves the old ones.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from driver_shim.protocol.commands import IDENTIFY_DATA
from driver_shim.shared.whole_file import replace_whole
from emulator.chip.black_box import check_page
from emulator.chip.counters import LAST_COUNT
from emulator.chip.error_log import decode_page
from emulator.state_error import StateError

STATE_VERSION = 1
_SUMMARY = "device.json"
_ERRORS = "errors.bin"
_BLACK_BOX = "black_box.bin"
_LOCK = "lock"


@dataclasses.dataclass
class KeptState:
    """The state that was found, or that of a new device."""

    serial: str
    counters: dict[str, int]
    errors: bytes | None = None
    black_box: bytes | None = None


def _check_summary(serial: str, counters: dict[str, int]) -> None:
    """Raise ValueError for what the device could not show to a host."""
    if not 0 < len(serial.encode()) <= IDENTIFY_DATA.fields["serial"].size or not serial.isprintable():
        raise ValueError(f"serial number {serial!r}")
    for name, value in counters.items():
        if not 0 <= value <= LAST_COUNT:
            raise ValueError(f"counter {name} is {value}")


def new_serial() -> str:
    """A serial number for a device that never had one."""
    return f"EMU{secrets.token_hex(5).upper()}"


class StateFolder:
    """One device's folder, locked while a process uses it."""

    def __init__(self, path: Path) -> None:
        """Open or create the folder. Raises StateError when it is not usable or in use."""
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"state folder {path}: {error.strerror}; name a folder that can be written") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StateError(f"state folder {path} is in use by another emulator; stop it or name another") from error

    def load(self) -> KeptState:
        """The state that an earlier process saved, or that of a new device. Raises StateError for files not ours."""
        summary = self.path / _SUMMARY
        if not summary.exists():
            fresh = KeptState(new_serial(), {})
            self.save(fresh)  # at once: who is killed is the same device afterwards
            return fresh
        try:
            document: dict[str, Any] = json.loads(summary.read_text("utf-8"))
            if document["version"] != STATE_VERSION:
                raise StateError(
                    f"state folder {self.path} has version {document['version']}, this emulator writes {STATE_VERSION};"
                    " name another folder"
                )
            serial = str(document["serial"])
            counters = {str(name): int(value) for name, value in document["counters"].items()}
            _check_summary(serial, counters)
        except OSError as error:
            raise StateError(f"{summary}: {error.strerror}; make it readable, or name another folder") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise self._damaged(_SUMMARY, error) from error
        return KeptState(serial, counters, self._read(_ERRORS, decode_page), self._read(_BLACK_BOX, check_page))

    def save(self, state: KeptState) -> None:
        """Replace what is kept. Raises StateError when the folder cannot be written."""
        document = {"version": STATE_VERSION, "serial": state.serial, "counters": state.counters}
        try:
            if state.errors is not None:
                replace_whole(self.path / _ERRORS, state.errors)
            if state.black_box is not None:
                replace_whole(self.path / _BLACK_BOX, state.black_box)
            replace_whole(self.path / _SUMMARY, json.dumps(document, indent=1).encode())
        except OSError as error:
            raise StateError(f"state folder {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Unlock the folder; idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _read(self, name: str, check: Callable[[bytes], object]) -> bytes | None:
        """A file's bytes, which `check` accepts; None when there is no file. Raises StateError."""
        path = self.path / name
        try:
            data = path.read_bytes()
            check(data)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}; make it readable, or name another folder") from error
        except ValueError as error:
            raise self._damaged(name, error) from error
        return data

    def _damaged(self, name: str, error: Exception) -> StateError:
        return StateError(f"{self.path / name} is damaged ({error}); remove the folder to begin anew, or name another")
