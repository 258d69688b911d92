"""Reasons why a device would not start an image, however it is signed; the device itself looks again."""

from __future__ import annotations

from driver_shim.protocol.firmware_slots import LOAD_ADDRESS, SLOT_BYTES
from driver_shim.protocol.image import ImageFlag, ParsedImage
from driver_shim.protocol.slugs import slug


def unbootable(image: ParsedImage) -> str | None:
    """The reason; None where there is none to be seen."""
    if not image.ram_load:
        return "it is not made to be loaded into RAM"
    others = [slug(flag) for flag in image.flags if flag is not ImageFlag.RAM_LOAD]
    if others:
        return f"it has the flag {', '.join(others)}"
    start, end = image.load_address, image.load_address + len(image.loaded_region)
    if start < LOAD_ADDRESS or end > LOAD_ADDRESS + SLOT_BYTES:
        return (
            f"it would be loaded to {start:#x}..{end:#x}; devices load images to"
            f" {LOAD_ADDRESS:#x}..{LOAD_ADDRESS + SLOT_BYTES:#x}"
        )
    return None
