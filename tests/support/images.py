"""A tiny signed firmware image written out by hand, and the key that signed it."""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driver_shim.protocol.image import ImageVersion, TrustedKey
from firmware_tools.image import ImageContents
from firmware_tools.signing import KeySigner

SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
"""The first test vector of RFC 8032, section 7.1."""
KEY = Ed25519PrivateKey.from_private_bytes(SECRET)
SIGNER = KeySigner(KEY)
TRUSTED = TrustedKey.of_public_key(PUBLIC)
FUSES = TrustedKey(TRUSTED.key_hash)
"""The same key as a device knows it: by its hash alone."""
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_SIGNER = KeySigner(OTHER_KEY)
OTHER_TRUSTED = TrustedKey.of_public_key(OTHER_SIGNER.public_key)

TINY_CONTENTS = ImageContents(
    payload=b"\x01\x45\x01\xa0",
    version=ImageVersion(1, 2, 3, 4),
    load_address=0x8000_0000,
    header_size=32,
    security_counter=7,
    hardware_ids=(0x4E50,),
)

TINY_HEADER = bytes.fromhex(
    "3db8f396"  # magic
    "00000080"  # load address
    "2000"  # header size
    "3800"  # protected TLVs: 4 + 8 + 8 + 36
    "04000000"  # payload
    "20000000"  # RAM load
    "01020300"  # 1.2.3
    "04000000"  # build number
    "00000000"  # reserved
)
TINY_PAYLOAD = bytes.fromhex("014501a0")
TINY_PROTECTED = bytes.fromhex(
    "0869 3800"
    "5000 0400 07000000"
    "a000 0400 504e0000"
    "a100 2000 ccaf588e83fd7e0a4639e2f08af47f07050d5f4ad9b6b6645f2fef884fa8039c"
)
TINY_UNPROTECTED = bytes.fromhex(
    "0769 9c00"  # 4 + 36 + 48 + 68
    "1000 2000 d66dda8b5372635cbafcc6446cca77907adce8fbce8b9823db6286c1aaf1499c"
    "0200 2c00 302a300506032b6570032100"  # what DER puts before the key
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    "2400 4000 e7cb9c9340863eb225df4e2a97f51dbbfea715f8b256250f46f9cc677f73313d"
    "76e9e88c7c88334e96f288e05f3b299a547c08a5f441b8bd9e4d920c9de4460f"
)
TINY = TINY_HEADER + TINY_PAYLOAD + TINY_PROTECTED + TINY_UNPROTECTED


def area(magic: int, *entries: tuple[int, bytes]) -> bytes:
    """A TLV area, packed by hand."""
    body = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in entries)
    return struct.pack("<HH", magic, 4 + len(body)) + body
