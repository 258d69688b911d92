"""Firmware images in MCUboot's layout: what their bytes are called.

    header · padding to header_size · payload · [protected TLVs] · unprotected TLVs

The hash covers everything before the unprotected TLVs; these hold that hash and the signatures. Numbers are
little-endian. From MCUboot's docs/design.md and boot/bootutil/include/bootutil/image.h; of key hashes and pure
signatures only imgtool says what they cover. `image.py` reads an image.
"""

from __future__ import annotations

import enum
import hashlib
import re
from typing import NamedTuple

from driver_shim.protocol.layout import Layout, reserved, u8, u16, u32

IMAGE_MAGIC = 0x96F3_B83D
PROTECTED_INFO_MAGIC = 0x6908
UNPROTECTED_INFO_MAGIC = 0x6907

IMAGE_HEADER = Layout(
    "image_header",
    32,
    "magic" / u32,
    "load_address" / u32,
    "header_size" / u16,
    "protected_size" / u16,
    "image_size" / u32,
    "flags" / u32,
    "major" / u8,
    "minor" / u8,
    "revision" / u16,
    "build_number" / u32,
    reserved(4),
)
"""`header_size` reaches to the payload, whose length is `image_size`; `protected_size` is 0 or counts its own info."""

TLV_INFO = Layout("image_tlv_info", 4, "magic" / u16, "total_size" / u16)
"""Begins a TLV area; `total_size` counts this structure too."""
TLV_ENTRY = Layout("image_tlv", 4, "kind" / u16, "length" / u16)
"""`length` bytes follow."""

MAX_AREA_BYTES = 0xFFFF
"""A TLV area says its size in 16 bits."""


class ImageFlag(enum.IntFlag):
    """Bits of `image_header.flags`."""

    PIC = 0x001
    ENCRYPTED_AES128 = 0x004
    ENCRYPTED_AES256 = 0x008
    NON_BOOTABLE = 0x010
    RAM_LOAD = 0x020
    """The image, header included, is copied to `load_address` before it runs."""
    ROM_FIXED = 0x100
    """The image runs from the flash address `load_address` and nowhere else."""
    COMPRESSED_LZMA1 = 0x200
    COMPRESSED_LZMA2 = 0x400
    COMPRESSED_ARM_THUMB = 0x800


ENCRYPTED_FLAGS = ImageFlag.ENCRYPTED_AES128 | ImageFlag.ENCRYPTED_AES256
COMPRESSED_FLAGS = ImageFlag.COMPRESSED_LZMA1 | ImageFlag.COMPRESSED_LZMA2 | ImageFlag.COMPRESSED_ARM_THUMB
ADDRESS_FLAGS = ImageFlag.RAM_LOAD | ImageFlag.ROM_FIXED


class TlvKind(enum.IntEnum):
    """Types of TLV entries, MCUboot's and ours."""

    KEY_HASH = 0x01
    """Digest of a public key's DER SubjectPublicKeyInfo, by the algorithm of the image's own hash."""
    PUBLIC_KEY = 0x02
    """A public key as DER SubjectPublicKeyInfo."""
    SHA256 = 0x10
    SHA384 = 0x11
    SHA512 = 0x12
    RSA2048 = 0x20
    ECDSA224 = 0x21
    ECDSA = 0x22
    RSA3072 = 0x23
    ED25519 = 0x24
    """Signature of the digest, or of everything the digest covers when the image is pure."""
    PURE = 0x25
    """One byte, 1: the signatures are of the image itself."""
    ENCRYPTED_RSA2048 = 0x30
    ENCRYPTED_AES_WRAP = 0x31
    ENCRYPTED_EC256 = 0x32
    ENCRYPTED_X25519 = 0x33
    ENCRYPTED_X25519_SHA512 = 0x34
    DEPENDENCY = 0x40
    SECURITY_COUNTER = 0x50
    """u32: a device that has seen a higher one refuses the image."""
    BOOT_RECORD = 0x60
    DECOMPRESSED_SIZE = 0x70
    DECOMPRESSED_HASH = 0x71
    DECOMPRESSED_SIGNATURE = 0x72
    COMPRESSED_DECRYPTED_SIZE = 0x73
    VENDOR_UUID = 0x74
    CLASS_UUID = 0x75
    HARDWARE_IDS = 0xA0
    """u32 each: the hardware the image is for. Without it the image does not say."""
    CHUNK_HASHES = 0xA1
    """SHA-256 of each `chunk_size` bytes of header and payload; the last chunk may be shorter."""


def is_vendor_kind(kind: int) -> bool:
    """Whether MCUboot leaves this TLV type to vendors: low byte 0xA0 and up, but for 0xFFFF, its wildcard."""
    return kind & 0xFF >= 0xA0 and kind != 0xFFFF


IMAGE_DEPENDENCY = Layout(
    "image_dependency",
    12,
    "image" / u8,
    reserved(3),
    "major" / u8,
    "minor" / u8,
    "revision" / u16,
    "build_number" / u32,
)
"""Value of a DEPENDENCY: the least version of another image that this one works with."""


class DigestAlgorithm(enum.Enum):
    """What the image's hash, and the hashes of its keys, are computed with."""

    SHA256 = "sha256"
    SHA512 = "sha512"

    @property
    def kind(self) -> TlvKind:
        """The TLV that holds the hash."""
        return TlvKind[self.name]

    @property
    def size(self) -> int:
        """Bytes of a digest."""
        return hashlib.new(self.value).digest_size

    def digest(self, data: bytes | memoryview) -> bytes:
        """Hash `data`."""
        return hashlib.new(self.value, data).digest()


MIN_CHUNK_BYTES = 4096
MAX_CHUNKS = 1024


def chunk_size(covered_bytes: int) -> int:
    """Bytes per chunk of an image whose header and payload are `covered_bytes` long.

    The smallest power of two, from 4 KiB up, with which 1,024 hashes suffice: 32 KiB of them, half of what a
    protected area holds. The TLV need not state it.
    """
    size = MIN_CHUNK_BYTES
    while size * MAX_CHUNKS < covered_bytes:
        size *= 2
    return size


def hash_chunks(covered: bytes | memoryview) -> tuple[bytes, ...]:
    """The CHUNK_HASHES of an image's header and payload."""
    size = chunk_size(len(covered))
    return tuple(hashlib.sha256(covered[at : at + size]).digest() for at in range(0, len(covered), size))


PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_SIGNATURES = 8
"""Verifying one takes a device time, in which it does nothing else."""
SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
"""What DER puts before the 32 bytes of an Ed25519 key (RFC 8410, section 4)."""


def subject_public_key_info(public_key: bytes) -> bytes:
    """A raw Ed25519 public key as DER, the form that images carry and that key hashes cover."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key is {PUBLIC_KEY_BYTES} bytes, got {len(public_key)}")
    return SPKI_PREFIX + public_key


DEVELOPMENT_KEY_HASH = bytes.fromhex("78446bcd7e471ab11f5dac4cc4a70e532dfea833bddf809db5417dd31392442b")
"""SHA-256 of the published development key (firmware_tools/reference_firmware/development_key.pem).

A device that trusts it runs anybody's firmware.
"""

_VERSION = re.compile(r"(0|[1-9]\d*)(?:\.(0|[1-9]\d*)(?:\.(0|[1-9]\d*)(?:\+(0|[1-9]\d*))?)?)?", re.ASCII)
_VERSION_LIMITS = (0xFF, 0xFF, 0xFFFF, 0xFFFF_FFFF)


class ImageVersion(NamedTuple):
    """A version as the header has it; the order is MCUboot's, build number included."""

    major: int
    minor: int = 0
    revision: int = 0
    build: int = 0

    def __str__(self) -> str:
        """`1.2.3+4`; without a build number when it is 0."""
        text = f"{self.major}.{self.minor}.{self.revision}"
        return f"{text}+{self.build}" if self.build else text

    @classmethod
    def parse(cls, text: str) -> ImageVersion:
        """Read `1`, `1.2`, `1.2.3` or `1.2.3+4`. Raises ValueError for anything else, or a part that does not fit."""
        match = _VERSION.fullmatch(text)
        if match is None:
            raise ValueError(f"version {text!r}: write it as 1.2.3 or 1.2.3+4, parts from the right may be left out")
        version = cls(*(int(part or 0) for part in match.groups()))
        for name, value, limit in zip(cls._fields, version, _VERSION_LIMITS, strict=True):
            if value > limit:
                raise ValueError(f"version {text!r}: the {name} part is {value}, the header holds at most {limit}")
        return version
