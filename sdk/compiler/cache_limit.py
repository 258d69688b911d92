"""How large the compile cache may become: where it is larger, the entries go that nobody used for longest."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

LIMIT_BYTES = 4 << 30
"""Of all entries together."""
LEFT_BEHIND_S = 3600.0
"""Files that were begun longer ago belong to writers that were ended: none takes as long."""

_log = logging.getLogger("npu")


class _Entry(NamedTuple):
    used: float
    size_bytes: int
    path: Path


def note_use(path: Path) -> None:
    """The entry was used now. It is by its file's time that entries are told apart."""
    with contextlib.suppress(OSError):  # a cache that others may read alone
        os.utime(path)


def trim(folder: Path, limit_bytes: int | None = None) -> None:
    """Remove what nobody used for longest until the rest fits. Programs that others have mapped stay whole for them."""
    limit = LIMIT_BYTES if limit_bytes is None else limit_bytes
    _remove_left_behind(folder)
    entries = sorted(_entries(folder, "*/*.program"))
    total = sum(entry.size_bytes for entry in entries)
    for entry in entries:
        if total <= limit:
            return
        _remove(entry, f"{total} bytes are kept, {limit} may be")
        total -= entry.size_bytes


def _remove_left_behind(folder: Path) -> None:
    for entry in _entries(folder, "*/.*.part"):
        if entry.used < time.time() - LEFT_BEHIND_S:
            _remove(entry, "its writer did not finish it")


def _entries(folder: Path, pattern: str) -> list[_Entry]:
    entries = []
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            status = path.stat()
            entries.append(_Entry(status.st_mtime, status.st_size, path))
    return entries


def _remove(entry: _Entry, why: str) -> None:
    try:
        entry.path.unlink(missing_ok=True)
    except OSError as error:
        _log.debug("compile cache: %s stays: %s", entry.path, error)
        return
    _log.debug("compile cache: %s is removed: %s", entry.path, why)
    with contextlib.suppress(OSError):  # it holds others
        entry.path.parent.rmdir()
