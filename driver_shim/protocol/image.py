"""Reading a firmware image: everything about its form, its hashes and its signatures is checked.

`parse_image` takes bytes apart, `check_integrity` compares hashes, `authenticate` asks whether a trusted key signed.
Each defect is an `ImageError` with a `Defect` of its own. Stricter than MCUboot: no byte of an accepted image can be
changed unnoticed, the unprotected TLVs included, and only Ed25519 counts. Elliptic curves are the caller's: this
module is handed a function that verifies one signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from driver_shim.protocol.image_container import find_areas, parse_entries, parse_header, trailing
from driver_shim.protocol.image_entries import (
    check_protected,
    chunk_hashes,
    dependencies,
    hardware_ids,
    parse_hash,
    parse_pure,
    parse_signatures,
    refuse_foreign,
    security_counter,
)
from driver_shim.protocol.image_layout import (
    DEVELOPMENT_KEY_HASH,
    DigestAlgorithm,
    ImageFlag,
    ImageVersion,
    TlvKind,
    chunk_size,
    hash_chunks,
    subject_public_key_info,
)
from driver_shim.protocol.image_model import Defect, Dependency, ImageError, ImageSignature, ParsedImage, Tlv

__all__ = [
    "parse_image",
    "measure_image",
    "check_integrity",
    "authenticate",
    "Verify",
    "TrustedKey",
    "ParsedImage",
    "ImageVersion",
    "ImageFlag",
    "ImageSignature",
    "Dependency",
    "DigestAlgorithm",
    "Tlv",
    "TlvKind",
    "ImageError",
    "Defect",
    "DEVELOPMENT_KEY_HASH",
]

Verify = Callable[[bytes, bytes, bytes], bool]
"""`verify(public_key, signature, message)`: whether the raw Ed25519 key made this signature of this message."""


@dataclass(frozen=True)
class TrustedKey:
    """A key whose signature counts: known in full, or by the hash that a device's fuses hold."""

    key_hash: bytes
    """SHA-256 of the DER SubjectPublicKeyInfo."""
    public_key: bytes | None = None
    """The 32 bytes of the Ed25519 key. Without them, only images that carry the key can be verified."""

    def __post_init__(self) -> None:
        if len(self.key_hash) != DigestAlgorithm.SHA256.size:
            raise ValueError(f"a key hash is {DigestAlgorithm.SHA256.size} bytes, got {len(self.key_hash)}")

    @classmethod
    def of_public_key(cls, public_key: bytes) -> TrustedKey:
        """Trust a raw Ed25519 public key."""
        return cls(hashlib.sha256(subject_public_key_info(public_key)).digest(), public_key)

    def made(self, signature: ImageSignature, algorithm: DigestAlgorithm) -> bool:
        """Whether the image names this key as the signature's; says nothing of the signature itself."""
        if signature.public_key is not None:
            return hashlib.sha256(subject_public_key_info(signature.public_key)).digest() == self.key_hash
        if self.public_key is None:
            return signature.key_hash == self.key_hash
        return signature.key_hash == algorithm.digest(subject_public_key_info(self.public_key))


def parse_image(data: bytes | bytearray | memoryview) -> ParsedImage:
    """Take apart an image that fills `data` exactly. Raises ImageError for anything malformed, nothing else.

    Time and memory are bounded by the size of `data`.
    """
    whole = bytes(data)
    header = parse_header(whole)
    areas = find_areas(whole, header)
    if areas.end != len(whole):
        raise trailing(whole, areas.end)
    protected = parse_entries(whole, header.payload_end, areas.signed_size, "protected")
    unprotected = parse_entries(whole, areas.signed_size, areas.end, "unprotected")
    refuse_foreign(protected + unprotected)
    check_protected(protected)
    algorithm, stated = parse_hash(unprotected)
    pure, pairs = parse_pure(unprotected[1:])
    return ParsedImage(
        data=whole,
        version=header.version,
        load_address=header.load_address,
        header_size=header.header_size,
        image_size=header.image_size,
        flags=header.flags,
        protected=protected,
        unprotected=unprotected,
        security_counter=security_counter(protected),
        hardware_ids=hardware_ids(protected),
        chunk_hashes=chunk_hashes(protected, header.payload_end),
        dependencies=dependencies(protected),
        signed_size=areas.signed_size,
        algorithm=algorithm,
        stated_digest=stated,
        pure=pure,
        signatures=parse_signatures(pairs, algorithm),
    )


def measure_image(data: bytes | bytearray | memoryview) -> int:
    """Length of the image that `data`, a flash slot for example, begins with.

    Raises ImageError when header and TLV areas do not fit into `data`.
    """
    whole = bytes(data)
    return find_areas(whole, parse_header(whole)).end


def check_integrity(image: ParsedImage) -> None:
    """Compare the image with the hashes it states. Raises ImageError naming the damaged part when it can."""
    damaged = _first_damaged_chunk(image)
    if image.digest != image.stated_digest:
        found, stated = image.digest.hex(), image.stated_digest.hex()
        where = f"; {damaged} differ" if damaged else ""
        raise ImageError(
            Defect.WRONG_HASH, f"the image's {image.algorithm.value} is {found}, it states {stated}{where}"
        )
    if damaged:
        raise ImageError(Defect.WRONG_CHUNK_HASH, f"{damaged} do not match their chunk hash")


def authenticate(image: ParsedImage, keys: Iterable[TrustedKey], verify: Verify) -> tuple[TrustedKey, ...]:
    """Check hashes and signatures; returns the trusted keys that signed, at least one.

    Every signature must hold, also those of keys that are not trusted: a file with a broken one was tampered with.
    Raises ImageError.
    """
    check_integrity(image)
    if not image.signatures:
        raise ImageError(Defect.UNSIGNED, "the image is not signed")
    known = tuple(keys)
    makers = [next((key for key in known if key.made(made, image.algorithm)), None) for made in image.signatures]
    trusted = tuple(key for key in makers if key is not None)
    if not trusted:
        named = ", ".join(made.key_hash.hex() for made in image.signatures)
        raise ImageError(Defect.UNKNOWN_KEY, f"signed by a key that is not trusted ({image.algorithm.value} {named})")
    for made, maker in zip(image.signatures, makers, strict=True):
        public_key = made.public_key or (maker.public_key if maker else None)
        if public_key is None:
            raise ImageError(
                Defect.UNKNOWN_KEY,
                f"the signature of key {made.key_hash.hex()} cannot be checked: the image holds only the key's hash",
            )
        if not verify(public_key, made.signature, image.signed_message):
            raise ImageError(Defect.WRONG_SIGNATURE, f"the signature of key {made.key_hash.hex()} is wrong")
    return trusted


def _first_damaged_chunk(image: ParsedImage) -> str | None:
    """Which bytes differ from their chunk hash, in words; None when none do."""
    if not image.chunk_hashes:
        return None
    covered = image.loaded_region
    size = chunk_size(len(covered))
    for index, (found, stated) in enumerate(zip(hash_chunks(covered), image.chunk_hashes, strict=True)):
        if found != stated:
            return f"bytes {index * size:#x} to {min((index + 1) * size, len(covered)) - 1:#x}"
    return None
