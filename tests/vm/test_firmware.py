"""Firmware of a card behind the kernel's VFIO and an IOMMU: the card reads the image out of a guest's memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emulator.management.process.options import FACTORY_IMAGE
from firmware_tools.build import read_program
from tests.support.reference_firmware import signed_image
from tests.vm.conftest import npuctl
from tests.vm.guest import Guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(0)]  # each wait here has a limit of its own
IMAGE = "/exchange/update.bin"
VERSION = "1.1.0"


def test_an_update_is_flashed_tried_and_confirmed(guest: Guest, second: str, note: Callable[[str], None]) -> None:
    payload = read_program(FACTORY_IMAGE.with_suffix(".elf")).payload
    (guest.exchange / Path(IMAGE).name).write_bytes(signed_image(payload, version=VERSION, security_counter=1))
    at = f"-d pci:{second}"
    runs = npuctl(
        guest,
        f"fw info {at}",
        f"fw flash {IMAGE} {at} --yes --activate",
        f"fw confirm {at} --yes",
        f"fw info {at}",
    )
    assert [code for code, _ in runs] == [0] * len(runs), runs
    before, flashed, _, after = (document["devices"][0] for _, document in runs)
    assert before["firmware"]["version"] != VERSION
    assert flashed["outcome"]["verified"] is True
    assert (after["firmware"]["version"], after["firmware"]["on_trial"]) == (VERSION, False)
    note(f"{VERSION} runs from slot {after['firmware']['slot']}")
