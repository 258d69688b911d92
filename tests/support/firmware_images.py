"""Firmware images for tests that run none: small, of chosen version, signed with the development key."""

from __future__ import annotations

from typing import Any

from tests.support.reference_firmware import signed_image

_PAYLOAD = bytes(range(256)) * 40


def image(version: str, *, payload: bytes = _PAYLOAD, **options: Any) -> bytes:
    """A signed image, of other content for another version; options are those of `signed_image`."""
    return signed_image(payload + version.encode(), version=version, **options)
