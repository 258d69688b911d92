"""An image as a document's keys, and as lines within 80 columns."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from driver_shim.protocol.image import (
    DEVELOPMENT_KEY_HASH,
    DigestAlgorithm,
    ImageFlag,
    ImageSignature,
    ParsedImage,
    TrustedKey,
)
from driver_shim.protocol.image_layout import chunk_size
from driver_shim.protocol.image_model import tlv_name
from driver_shim.protocol.slugs import slug

_LABEL_COLUMNS = 14
_WIDTH = 80
_HEX_COLUMNS = 64
_UNCHECKED = "(not checked here: npuctl fw verify)"


def facts(path: Path, image: ParsedImage) -> dict[str, Any]:
    """The keys of `image` in a document."""
    return {
        "path": str(path),
        "size_bytes": len(image.data),
        "version": str(image.version),
        "load_address": f"{image.load_address:#010x}" if image.flags & _ADDRESSED else None,
        "entry_address": f"{image.entry_address:#010x}" if image.ram_load else None,
        "header_size_bytes": image.header_size,
        "payload_size_bytes": image.image_size,
        "flags": [flag_name(flag) for flag in image.flags],
        "security_counter": image.security_counter,
        "hardware_ids": [f"{hardware_id:#010x}" for hardware_id in image.hardware_ids],
        "chunk_size_bytes": chunk_size(len(image.loaded_region)) if image.chunk_hashes else None,
        "chunk_hashes": len(image.chunk_hashes),
        "dependencies": [{"image": need.image, "version": str(need.version)} for need in image.dependencies],
        "digest_algorithm": image.algorithm.value,
        "digest": image.digest.hex(),
        "digest_matches": image.digest == image.stated_digest,
        "pure": image.pure,
        "signatures": [
            {
                "key_hash": made.key_hash.hex(),
                "key_embedded": made.public_key is not None,
                "development_key": made_with_development_key(made, image.algorithm),
            }
            for made in image.signatures
        ],
        "tlvs": [
            {"type": f"{entry.kind:#06x}", "name": entry.name, "size_bytes": len(entry.value), "protected": protected}
            for entries, protected in ((image.protected, True), (image.unprotected, False))
            for entry in entries
        ],
    }


def lines(path: Path, image: ParsedImage) -> list[str]:
    """An image for people; paths alone may be longer than a line."""
    matches = "correct" if image.digest == image.stated_digest else "WRONG: the image is damaged"
    shown = [
        f"{path}: {len(image.data):,} bytes",
        *_row("version", str(image.version)),
        *_row("address", _address(image)),
        *_row("header", f"{image.header_size:,} bytes"),
        *_row("payload", f"{image.image_size:,} bytes"),
        *_row("flags", ", ".join(flag_name(flag) for flag in image.flags) or "none"),
        *_row("counter", "none" if image.security_counter is None else f"{image.security_counter} (security counter)"),
        *_row("hardware", ", ".join(f"{each:#010x}" for each in image.hardware_ids) or "any"),
        *_row("chunks", _chunks(image)),
    ]
    for need in image.dependencies:
        shown += _row("needs", f"image {need.image}, version {need.version} or later")
    shown += [*_row("hash", f"{image.algorithm.value}, {matches}"), *_hex(image.digest)]
    for made in image.signatures:
        shown += [*_row("signature", _signature(image, made)), *_hex(made.key_hash)]
    shown += _row("", _UNCHECKED) if image.signatures else _row("signature", "none")
    for entries, area in ((image.protected, "protected"), (image.unprotected, "unprotected")):
        listed = ", ".join(f"{tlv_name(entry.kind)} ({len(entry.value):,})" for entry in entries)
        shown += _row(area, listed or "none")
    return shown


def made_with_development_key(made: ImageSignature, algorithm: DigestAlgorithm) -> bool | None:
    """Whether anybody could have signed this; None when the image does not show it."""
    if made.public_key is None and algorithm is not DigestAlgorithm.SHA256:
        return None
    return TrustedKey(DEVELOPMENT_KEY_HASH).made(made, algorithm)


def flag_name(flag: ImageFlag) -> str:
    """`ram-load` and the like."""
    return slug(flag)


_ADDRESSED = ImageFlag.RAM_LOAD | ImageFlag.ROM_FIXED


def _address(image: ParsedImage) -> str:
    if image.ram_load:
        return f"loaded to {image.load_address:#010x}, runs from {image.entry_address:#010x}"
    return f"fixed at {image.load_address:#010x}" if image.flags & _ADDRESSED else "none"


def _chunks(image: ParsedImage) -> str:
    if not image.chunk_hashes:
        return "no hashes"
    return f"{len(image.chunk_hashes):,} hashed, of up to {chunk_size(len(image.loaded_region)):,} bytes"


def _signature(image: ParsedImage, made: ImageSignature) -> str:
    subject = "the image itself" if image.pure else "the hash"
    key = "the image holds the key" if made.public_key is not None else "the image holds only the key's hash"
    known = " (development key)" if made_with_development_key(made, image.algorithm) else ""
    return f"of {subject}; {key}{known}"


def _row(label: str, text: str) -> list[str]:
    start = " " * _LABEL_COLUMNS
    wrapped = textwrap.wrap(text, _WIDTH - _LABEL_COLUMNS, break_on_hyphens=False)
    first, *more = wrapped or [""]
    return [f"  {label}".ljust(_LABEL_COLUMNS) + first, *(start + line for line in more)]


def _hex(digest: bytes) -> list[str]:
    text = digest.hex()
    return [" " * _LABEL_COLUMNS + text[at : at + _HEX_COLUMNS] for at in range(0, len(text), _HEX_COLUMNS)]
