"""Making firmware images: the same input gives the same bytes. `driver_shim.protocol.image` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from driver_shim.protocol.image import (
    DigestAlgorithm,
    ImageFlag,
    ImageSignature,
    ImageVersion,
    ParsedImage,
    TlvKind,
)
from driver_shim.protocol.image_layout import (
    IMAGE_HEADER,
    IMAGE_MAGIC,
    MAX_AREA_BYTES,
    PROTECTED_INFO_MAGIC,
    TLV_ENTRY,
    TLV_INFO,
    UNPROTECTED_INFO_MAGIC,
    hash_chunks,
    subject_public_key_info,
)
from firmware_tools.errors import BuildError

DEFAULT_HEADER_SIZE = 0x200
"""Room for the vector table's alignment behind it; the reference firmware is linked with it."""

CODE_ALIGNMENT = 4
MAX_HEADER_BYTES = 0xFFFF
ADDRESS_LIMIT = 1 << 32

_Entries = Sequence[tuple[int, bytes]]


@dataclass(frozen=True)
class ImageContents:
    """What an image is made of."""

    payload: bytes
    version: ImageVersion
    load_address: int | None = None
    """Where header and payload are copied to before they run; None for an image that is not RAM-loaded."""
    header_size: int = DEFAULT_HEADER_SIZE
    security_counter: int | None = 0
    """A device refuses images with less than it has seen; None leaves it out."""
    hardware_ids: tuple[int, ...] = ()
    """The hardware the image is for; empty for any."""
    with_chunk_hashes: bool = True


def build_image(contents: ImageContents) -> bytes:
    """An unsigned image, with its SHA-256. Raises BuildError."""
    if not contents.payload:
        raise BuildError("there is nothing to build an image of: the program is empty")
    if not IMAGE_HEADER.size <= contents.header_size <= MAX_HEADER_BYTES:
        raise BuildError(
            f"a header of {contents.header_size} bytes; {IMAGE_HEADER.size} to {MAX_HEADER_BYTES} are allowed"
        )
    if contents.header_size % CODE_ALIGNMENT:
        raise BuildError(
            f"a header of {contents.header_size} bytes; code follows, so it takes a multiple of {CODE_ALIGNMENT}"
        )
    end = (contents.load_address or 0) + contents.header_size + len(contents.payload)
    if end > ADDRESS_LIMIT:
        raise BuildError(f"the image would be loaded up to {end:#x}; addresses have 32 bits")
    if len(set(contents.hardware_ids)) != len(contents.hardware_ids):
        raise BuildError("a hardware id is named twice")
    loaded_bytes = contents.header_size + len(contents.payload)
    protected_size = len(_protected(contents, bytes(loaded_bytes)))
    header = IMAGE_HEADER.build(
        magic=IMAGE_MAGIC,
        load_address=contents.load_address or 0,
        header_size=contents.header_size,
        protected_size=protected_size,
        image_size=len(contents.payload),
        flags=0 if contents.load_address is None else int(ImageFlag.RAM_LOAD),
        major=contents.version.major,
        minor=contents.version.minor,
        revision=contents.version.revision,
        build_number=contents.version.build,
    )
    loaded = header.ljust(contents.header_size, b"\0") + contents.payload
    return _finish(loaded + _protected(contents, loaded), DigestAlgorithm.SHA256, pure=False, signatures=())


def with_signatures(
    image: ParsedImage, signatures: Sequence[ImageSignature], *, algorithm: DigestAlgorithm, pure: bool
) -> bytes:
    """The image hashed with `algorithm`, and with these signatures in place of those it has."""
    return _finish(bytes(image.signed_region), algorithm, pure, signatures)


def _protected(contents: ImageContents, loaded: bytes) -> bytes:
    """The protected TLVs; their length depends on that of `loaded` alone."""
    entries: list[tuple[int, bytes]] = []
    if contents.security_counter is not None:
        entries.append((TlvKind.SECURITY_COUNTER, _u32(contents.security_counter, "security counter")))
    if contents.hardware_ids:
        ids = b"".join(_u32(hardware_id, "hardware id") for hardware_id in contents.hardware_ids)
        entries.append((TlvKind.HARDWARE_IDS, ids))
    if contents.with_chunk_hashes:
        entries.append((TlvKind.CHUNK_HASHES, b"".join(hash_chunks(loaded))))
    return _area(PROTECTED_INFO_MAGIC, entries) if entries else b""


def _finish(signed: bytes, algorithm: DigestAlgorithm, pure: bool, signatures: Sequence[ImageSignature]) -> bytes:
    entries: list[tuple[int, bytes]] = [(algorithm.kind, algorithm.digest(signed))]
    if pure:
        entries.append((TlvKind.PURE, b"\1"))
    for made in signatures:
        if made.public_key is None:
            entries.append((TlvKind.KEY_HASH, made.key_hash))
        else:
            entries.append((TlvKind.PUBLIC_KEY, subject_public_key_info(made.public_key)))
        entries.append((TlvKind.ED25519, made.signature))
    return signed + _area(UNPROTECTED_INFO_MAGIC, entries)


def _area(magic: int, entries: _Entries) -> bytes:
    size = TLV_INFO.size + sum(TLV_ENTRY.size + len(value) for _, value in entries)
    if size > MAX_AREA_BYTES:
        raise BuildError(f"a TLV area of {size} bytes; {MAX_AREA_BYTES} are the most")
    body = b"".join(TLV_ENTRY.build(kind=kind, length=len(value)) + value for kind, value in entries)
    return TLV_INFO.build(magic=magic, total_size=size) + body


def _u32(value: int, name: str) -> bytes:
    if not 0 <= value <= 0xFFFF_FFFF:
        raise BuildError(f"the {name} {value} does not fit 32 bits")
    return value.to_bytes(4, "little")
