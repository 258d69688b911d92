"""Ed25519, as the silicon's crypto engine and the boot ROM check it."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def ed25519_verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a 64-byte signature by a raw 32-byte public key is good (RFC 8032)."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
