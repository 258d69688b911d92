"""docs/firmware.md names every guard with its option, and every boot progress."""

from __future__ import annotations

import re

from driver_shim.firmware.core_state import BootProgress
from driver_shim.protocol.registers import Post
from firmware_tools import flash_plan
from tests.support.paths import DOCS

PAGE = (DOCS / "firmware.md").read_text("utf-8")


def test_the_table_of_guards_is_the_tools() -> None:
    section = PAGE.partition("| guard |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([a-z-]+) \| .+ \| (?:`(--[a-z-]+)`|nothing) \|$", section, re.MULTILINE)
    assert rows == [(check.name, check.override or "") for check in flash_plan._CHECKS]


def test_every_boot_progress_is_explained() -> None:
    section = PAGE.partition("| boot progress |")[2].partition("\n\n")[0]
    named = {name for row in section.splitlines() for name in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    assert named == {BootProgress(post, 1, 0, False).stage for post in Post}
