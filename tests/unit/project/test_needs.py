"""Tests that a machine cannot run are left out by name, with the command that brings what is missing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.paths import ROOT

TESTS = ROOT / "tests"
SKIPS = re.compile(r"importorskip\(|mark\.skipif\(|pytest\.skip\(")
SKIP_FOR_ANOTHER_REASON = {
    "contract/test_reset_matrix.py",  # the device under test has no such part
    "interop/test_libvfio_user.py",  # a peer that no package brings; the reason names the variable
    "support/coverage.py",  # parts of a module were asked for
    "support/needs.py",
    "unit/firmware_tools/reference_firmware/test_release.py",  # another version of the compiler is no fault
    "vm/test_usb.py",  # the kernel that was asked for has no USB
}


def test_a_reason_names_programs_and_the_command_that_brings_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert needs.missing_programs("gcc", "lspci") == "needs gcc, lspci: apt-get install gcc libc6-dev pciutils"


def test_nothing_is_missing_where_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert needs.missing_programs(*needs.PACKAGES) is None


def test_a_missing_module_is_named_with_the_extra() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"needs no_such_module: pip install 'npu-sdk\[usb\]'"):
        needs.module_of_extra("no_such_module", "usb")


def test_every_test_that_may_be_left_out_says_so_in_one_way() -> None:
    found = {str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py") if SKIPS.search(path.read_text("utf-8"))} - {
        str(Path(__file__).relative_to(TESTS))
    }
    assert found == SKIP_FOR_ANOTHER_REASON
