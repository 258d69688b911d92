"""A firmware image taken apart, and the defects for which one is refused."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import NamedTuple

from driver_shim.protocol.image_layout import DigestAlgorithm, ImageFlag, ImageVersion, TlvKind


class Defect(enum.StrEnum):
    """Why an image is refused: the stable `.code` of an ImageError."""

    NOT_AN_IMAGE = "not-an-image"
    BIG_ENDIAN = "big-endian"
    TRUNCATED = "truncated"
    RESERVED_FIELD = "reserved-field"
    HEADER_SIZE = "header-size"
    HEADER_PADDING = "header-padding"
    EMPTY = "empty"
    ENCRYPTED = "encrypted"
    COMPRESSED = "compressed"
    UNSUPPORTED_FLAG = "unsupported-flag"
    LOAD_ADDRESS = "load-address"
    TLV_AREA = "tlv-area"
    PADDED = "padded"
    TRAILING_BYTES = "trailing-bytes"
    UNKNOWN_TLV = "unknown-tlv"
    UNSUPPORTED_TLV = "unsupported-tlv"
    DUPLICATE_TLV = "duplicate-tlv"
    TLV_VALUE = "tlv-value"
    MISSING_HASH = "missing-hash"
    UNSUPPORTED_HASH = "unsupported-hash"
    RSA_SIGNATURE = "rsa-signature"
    ECDSA_SIGNATURE = "ecdsa-signature"
    UNSUPPORTED_KEY = "unsupported-key"
    SIGNATURE_PAIR = "signature-pair"
    TOO_MANY_SIGNATURES = "too-many-signatures"
    WRONG_HASH = "wrong-hash"
    WRONG_CHUNK_HASH = "wrong-chunk-hash"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown-key"
    WRONG_SIGNATURE = "wrong-signature"


class ImageError(ValueError):
    """An image is not acceptable; the message says what was found and what is allowed."""

    def __init__(self, defect: Defect, message: str) -> None:
        super().__init__(message)
        self.defect = defect
        self.code = defect.value


class Tlv(NamedTuple):
    """One entry of a TLV area."""

    kind: int
    value: bytes

    @property
    def name(self) -> str:
        """`0x50 security counter`, or the number alone."""
        return tlv_name(self.kind)


class Dependency(NamedTuple):
    """The least version of image number `image` that this image works with."""

    image: int
    version: ImageVersion


class ImageSignature(NamedTuple):
    """One signature and what the image says of the key that made it."""

    public_key: bytes | None
    """The raw Ed25519 key when the image carries it."""
    key_hash: bytes
    """Hash of the key's SubjectPublicKeyInfo by the image's digest algorithm."""
    signature: bytes


@dataclass(frozen=True)
class ParsedImage:
    """An image of good form. Its hashes and signatures are stated, not yet checked."""

    data: bytes
    version: ImageVersion
    load_address: int
    header_size: int
    image_size: int
    """Bytes of payload: of the file between header and TLVs."""
    flags: ImageFlag
    protected: tuple[Tlv, ...]
    unprotected: tuple[Tlv, ...]
    security_counter: int | None
    hardware_ids: tuple[int, ...]
    """What hardware the image is for; empty when it does not say."""
    chunk_hashes: tuple[bytes, ...]
    """Empty when the image has none."""
    dependencies: tuple[Dependency, ...]
    signed_size: int
    """Bytes that hash and pure signatures cover: header, payload and protected TLVs."""
    algorithm: DigestAlgorithm
    stated_digest: bytes
    pure: bool
    """Signatures are of the image itself rather than of its digest."""
    signatures: tuple[ImageSignature, ...]

    @property
    def payload(self) -> memoryview:
        """What the header describes, without copying."""
        return memoryview(self.data)[self.header_size : self.header_size + self.image_size]

    @property
    def loaded_region(self) -> memoryview:
        """Header and payload: what RAM loading copies to `load_address`, and what the chunk hashes cover."""
        return memoryview(self.data)[: self.header_size + self.image_size]

    @property
    def signed_region(self) -> memoryview:
        """What the hash covers."""
        return memoryview(self.data)[: self.signed_size]

    @property
    def entry_address(self) -> int:
        """Where a RAM-loaded image begins to run: behind its header."""
        return self.load_address + self.header_size

    @property
    def ram_load(self) -> bool:
        """Whether the image is copied to `load_address` before it runs."""
        return ImageFlag.RAM_LOAD in self.flags

    @functools.cached_property
    def digest(self) -> bytes:
        """The hash of `signed_region` as it is, whatever the image states."""
        return self.algorithm.digest(self.signed_region)

    @property
    def signed_message(self) -> bytes:
        """What a signature of this image is of."""
        return bytes(self.signed_region) if self.pure else self.digest


def tlv_name(kind: int) -> str:
    """How a TLV type is called in messages and reports."""
    try:
        return f"{kind:#04x} {TlvKind(kind).name.lower().replace('_', ' ')}"
    except ValueError:
        return f"{kind:#06x}"
