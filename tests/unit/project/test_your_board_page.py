"""docs/your-board.md agrees with the code, and what it links to and names exists."""

from __future__ import annotations

import re

from driver_shim import timeouts
from driver_shim.protocol import commands
from driver_shim.protocol.registers import (
    BAR0_BYTES,
    DOORBELL_PAGE_BYTES,
    IDENTITY,
    MSIX_PBA_OFFSET,
    MSIX_TABLE_OFFSET,
    REGISTERS,
    Feature,
)
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "your-board.md").read_text("utf-8")


def test_what_it_links_to_and_names_exists() -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", PAGE)
    assert links
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]
    named = re.findall(r"`((?:driver_shim|udev|tests)/[\w./-]+\.\w+)`", PAGE)
    named += [f"tests/contract/{name}" for name in re.findall(r"`(test_\w+\.py)`", PAGE)]
    assert not [path for path in named if not (ROOT / path).exists()]


def test_its_numbers_are_the_protocols() -> None:
    sizes = f"queue entries {commands.SUBMISSION_BYTES} and {commands.COMPLETION_BYTES} bytes, feature bit 0"
    assert Feature.SHADOW_DOORBELLS == 1 << 0
    for fact in (
        f"`identity` must read {IDENTITY:#010x}",
        sizes,
        f"100 ms or {timeouts.READY_S:g} s",
        f"| 0, 32-bit | {BAR0_BYTES >> 10} KiB |",
        f"| 2, 32-bit | {DOORBELL_PAGE_BYTES >> 10} KiB a queue pair |",
        f"MSI-X table at {MSIX_TABLE_OFFSET:#06X}".replace("0X", "0x"),
        f"pending bits at {MSIX_PBA_OFFSET:#06X}".replace("0X", "0x"),
    ):
        assert fact in PAGE


def test_the_registers_it_shows_exist() -> None:
    (shown,) = re.findall(r"npuctl regs -d sysfs:\S+ ([\w ]+)`", PAGE)
    known = {register.name for register in REGISTERS}
    assert set(shown.split()) <= known
