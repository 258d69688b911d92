"""Whether an image is signed by a key that one trusts."""

from __future__ import annotations

from collections.abc import Sequence

from driver_shim.protocol.image import ParsedImage, TrustedKey, authenticate, parse_image
from firmware_tools.errors import extra_missing


def verify_signature(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the raw Ed25519 key made this signature of this message."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise extra_missing(error) from error
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def verify_image(data: bytes, keys: Sequence[TrustedKey]) -> tuple[ParsedImage, tuple[TrustedKey, ...]]:
    """The image and the trusted keys that signed it. Raises ImageError when it is not to be trusted."""
    image = parse_image(data)
    return image, authenticate(image, keys, verify_signature)
