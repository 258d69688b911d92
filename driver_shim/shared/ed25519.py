"""Ed25519 as image formats, boot ROM and crypto engine check it; `cryptography` is imported when it is first asked."""

from __future__ import annotations


def ed25519_verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a 64-byte signature by a raw 32-byte public key is good (RFC 8032). Raises ImportError."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
