"""The runtime folder in the temporary directory, where anybody may have been first."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from driver_shim.cards.discovery import find_served
from driver_shim.cards.holder import claim, holder_of
from driver_shim.shared.runtime_folder import UnsafeFolder, make_runtime_folder, runtime_folder
from emulator.publication import PublishedEmulator
from tests.support.needs import require_root

ADDRESS = "pci:0000:7f:00.0"


@pytest.fixture
def fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our folder in a temporary directory of the test's own; not made yet."""
    for name in ("NPU_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("driver_shim.shared.runtime_folder.SYSTEM_FOLDER", tmp_path / "absent")
    folder = runtime_folder()
    assert folder.parent == tmp_path
    return folder


def link(folder: Path) -> None:
    target = folder.with_name("target")
    target.mkdir()
    folder.symlink_to(target)


def dangling_link(folder: Path) -> None:
    folder.symlink_to(folder.with_name("target"))


def open_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def somebody_elses(folder: Path) -> None:
    require_root()
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)


TRAPS = [link, dangling_link, open_to_others, somebody_elses]


@pytest.mark.parametrize("trap", TRAPS)
def test_a_folder_that_others_laid_out_is_not_used(
    fallback: Path, trap: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    trap(fallback)
    with caplog.at_level(logging.WARNING, "npu"):
        claim(ADDRESS, "fail", time.monotonic()).release()
        assert holder_of(ADDRESS) is None
        assert find_served() == []
        PublishedEmulator(fallback.with_name("npu.sock"), "generic", "serial", "auto").withdraw()
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) >= 2 and all(str(fallback) in warning for warning in warnings)
    target = fallback.with_name("target")
    for folder in (fallback, target):
        assert not folder.exists() or list(folder.iterdir()) == []


def test_our_own_folder_is_made_and_used(fallback: Path) -> None:
    held = claim(ADDRESS, "fail", time.monotonic())
    assert holder_of(ADDRESS) is not None
    assert fallback.stat().st_mode & 0o777 == 0o700
    held.release()


def test_a_folder_that_was_named_is_the_users_choice(fallback: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link(fallback)
    named = fallback.with_name("named")
    named.symlink_to(fallback.with_name("target"))
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(named))
    make_runtime_folder(runtime_folder())
    with pytest.raises(UnsafeFolder, match="symbolic link"):
        make_runtime_folder(fallback)
