"""What is shipped of the reference firmware is what its sources give, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driver_shim.protocol.image import DEVELOPMENT_KEY_HASH, TrustedKey
from emulator.management.process.options import FACTORY_IMAGE
from firmware_tools.log_strings import SHIPPED, load, read_elf
from firmware_tools.reference_firmware.release import ELF_NAME, IMAGE_NAME, TOOLS_NAME, release, tools
from firmware_tools.verify import verify_image
from tests.support.reference_firmware import needs_compiler

FOLDER = FACTORY_IMAGE.parent


@needs_compiler
def test_image_and_elf_file_are_rebuilt_to_the_byte(tmp_path: Path) -> None:
    shipped, here = json.loads((FOLDER / TOOLS_NAME).read_text("utf-8")), tools()
    if here != shipped:
        pytest.skip(f"needs the compiler that built what is shipped, {shipped}; here is {here}")
    release(tmp_path)
    for name in (ELF_NAME, IMAGE_NAME):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), f"{name}: see release.py"


def test_the_image_is_signed_with_the_published_key() -> None:
    image, _ = verify_image(FACTORY_IMAGE.read_bytes(), [TrustedKey(DEVELOPMENT_KEY_HASH)])
    assert image.hardware_ids
    assert image.chunk_hashes


def test_its_log_can_be_read_without_the_elf_file() -> None:
    elf = read_elf(FOLDER / ELF_NAME)
    shipped = {build.build_id: dict(build.texts) for build in load(SHIPPED)}
    assert shipped[elf.build_id] == dict(elf.texts)
