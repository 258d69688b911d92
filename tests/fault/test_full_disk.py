"""A disk that fills up while the state folder is written: what was there stays, and nothing is left beside it."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.chip.state import KeptState, StateFolder
from emulator.management.npu.storage import STORAGE_BYTES, STORAGE_FILE, open_storage
from emulator.state_error import StateError


@contextlib.contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """Writes beyond this size fail, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_flash_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with files_limited_to(STORAGE_BYTES // 2), pytest.raises(StateError, match=STORAGE_FILE):
        open_storage(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_state_that_cannot_be_saved_leaves_the_old_one_alone(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    try:
        serial = folder.load().serial
        names = {path.name for path in tmp_path.iterdir()}
        with files_limited_to(16), pytest.raises(StateError, match="state folder"):
            folder.save(KeptState("another", {}))
        assert folder.load().serial == serial
        assert {path.name for path in tmp_path.iterdir()} == names
    finally:
        folder.close()
