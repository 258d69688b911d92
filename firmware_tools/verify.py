"""Verification of images against trusted keys."""

from __future__ import annotations

from collections.abc import Sequence

from driver_shim.protocol.image import ParsedImage, TrustedKey, authenticate, parse_image
from driver_shim.shared.ed25519 import ed25519_verify
from firmware_tools.errors import extra_missing


def verify_signature(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the raw Ed25519 key made this signature of this message. Raises ExtraMissing."""
    try:
        return ed25519_verify(public_key, signature, message)
    except ImportError as error:
        raise extra_missing(error) from error


def verify_image(data: bytes, keys: Sequence[TrustedKey]) -> tuple[ParsedImage, tuple[TrustedKey, ...]]:
    """The image and the trusted keys that signed it. Raises ImageError when it is not to be trusted."""
    image = parse_image(data)
    return image, authenticate(image, keys, verify_signature)
