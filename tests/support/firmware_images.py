"""Firmware images for tests: small, of chosen version, signed with the development key."""

from __future__ import annotations

from driver_shim.protocol.firmware_slots import LOAD_ADDRESS
from driver_shim.protocol.image import parse_image
from driver_shim.protocol.image_layout import ImageVersion
from driver_shim.protocol.management_registers import HARDWARE_ID
from firmware_tools.image import ImageContents, build_image
from firmware_tools.keys import DEVELOPMENT_KEY, load_private_key
from firmware_tools.signing import KeySigner, sign_image


def image(
    version: str,
    *,
    hardware_ids: tuple[int, ...] = (HARDWARE_ID,),
    security_counter: int | None = 0,
    payload: bytes = bytes(range(256)) * 40,
    embed_key: bool = True,
) -> bytes:
    """A signed image. Its payload does not run anywhere."""
    contents = ImageContents(
        payload + version.encode(),
        ImageVersion.parse(version),
        load_address=LOAD_ADDRESS,
        security_counter=security_counter,
        hardware_ids=hardware_ids,
    )
    signer = KeySigner(load_private_key(DEVELOPMENT_KEY))
    return sign_image(parse_image(build_image(contents)), [signer], embed_key=embed_key)
