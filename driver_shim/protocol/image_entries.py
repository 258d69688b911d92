"""The TLV entries of a firmware image: which there may be, and what their values mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from driver_shim.protocol.image_layout import (
    IMAGE_DEPENDENCY,
    MAX_SIGNATURES,
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    SPKI_PREFIX,
    DigestAlgorithm,
    ImageVersion,
    TlvKind,
    chunk_size,
    is_vendor_kind,
)
from driver_shim.protocol.image_model import Defect, Dependency, ImageError, ImageSignature, Tlv

_FOREIGN: dict[int, tuple[Defect, str]] = {
    TlvKind.RSA2048: (Defect.RSA_SIGNATURE, "signed with RSA; this device takes Ed25519"),
    TlvKind.RSA3072: (Defect.RSA_SIGNATURE, "signed with RSA; this device takes Ed25519"),
    TlvKind.ECDSA224: (Defect.ECDSA_SIGNATURE, "signed with ECDSA; this device takes Ed25519"),
    TlvKind.ECDSA: (Defect.ECDSA_SIGNATURE, "signed with ECDSA; this device takes Ed25519"),
    **{
        kind: (Defect.ENCRYPTED, "the image holds an encryption key; this device takes plain images")
        for kind in TlvKind
        if kind.name.startswith("ENCRYPTED")
    },
    **{
        kind: (Defect.COMPRESSED, "the image is compressed; this device takes plain ones")
        for kind in TlvKind
        if kind.name.startswith(("DECOMPRESSED", "COMPRESSED"))
    },
    TlvKind.VENDOR_UUID: (Defect.UNSUPPORTED_TLV, "names its hardware by UUID; this device goes by TLV 0xa0"),
    TlvKind.CLASS_UUID: (Defect.UNSUPPORTED_TLV, "names its hardware by UUID; this device goes by TLV 0xa0"),
}
"""What MCUboot knows and this device does not take, and how to say so."""


def refuse_foreign(entries: Iterable[Tlv]) -> None:
    """Refuse what MCUboot allows and this device does not, before anything less telling is found."""
    for entry in entries:
        if entry.kind in _FOREIGN:
            raise ImageError(*_FOREIGN[entry.kind])


_PROTECTED_KINDS = frozenset({TlvKind.DEPENDENCY, TlvKind.SECURITY_COUNTER, TlvKind.BOOT_RECORD})


def check_protected(entries: Sequence[Tlv]) -> None:
    """Refuse protected entries that are not known or there twice."""
    seen = set()
    for entry in entries:
        if entry.kind not in _PROTECTED_KINDS and not is_vendor_kind(entry.kind):
            raise ImageError(Defect.UNKNOWN_TLV, f"TLV {entry.name} is not known in the protected area")
        if entry.kind in seen and entry.kind != TlvKind.DEPENDENCY:
            raise ImageError(Defect.DUPLICATE_TLV, f"TLV {entry.name} is there twice")
        seen.add(entry.kind)


def _value(entries: Iterable[Tlv], kind: TlvKind) -> bytes | None:
    return next((entry.value for entry in entries if entry.kind == kind), None)


def security_counter(protected: Sequence[Tlv]) -> int | None:
    """The security counter, if there is one."""
    value = _value(protected, TlvKind.SECURITY_COUNTER)
    if value is None:
        return None
    if len(value) != 4:
        raise ImageError(Defect.TLV_VALUE, f"the security counter is {len(value)} bytes, it must be 4")
    return int.from_bytes(value, "little")


def hardware_ids(protected: Sequence[Tlv]) -> tuple[int, ...]:
    """The hardware ids; none when the image does not say."""
    value = _value(protected, TlvKind.HARDWARE_IDS)
    if value is None:
        return ()
    if not value or len(value) % 4:
        raise ImageError(Defect.TLV_VALUE, f"the hardware ids are {len(value)} bytes, they must be 4 each")
    ids = tuple(int.from_bytes(value[at : at + 4], "little") for at in range(0, len(value), 4))
    if len(set(ids)) != len(ids):
        raise ImageError(Defect.TLV_VALUE, "a hardware id is there twice")
    return ids


def chunk_hashes(protected: Sequence[Tlv], covered_bytes: int) -> tuple[bytes, ...]:
    """The hashes of the chunks of `covered_bytes` of header and payload, if there are any."""
    value = _value(protected, TlvKind.CHUNK_HASHES)
    if value is None:
        return ()
    size = DigestAlgorithm.SHA256.size
    needed = -(-covered_bytes // chunk_size(covered_bytes))
    if len(value) != needed * size:
        raise ImageError(
            Defect.TLV_VALUE,
            f"the chunk hashes are {len(value)} bytes; header and payload have {needed} chunks, {needed * size} bytes",
        )
    return tuple(value[at : at + size] for at in range(0, len(value), size))


def dependencies(protected: Sequence[Tlv]) -> tuple[Dependency, ...]:
    """The images that this one needs."""
    found = []
    for entry in protected:
        if entry.kind != TlvKind.DEPENDENCY:
            continue
        if len(entry.value) != IMAGE_DEPENDENCY.size or not IMAGE_DEPENDENCY.reserved_clear(entry.value):
            raise ImageError(Defect.TLV_VALUE, f"a dependency is {IMAGE_DEPENDENCY.size} bytes with zeros in 1 to 3")
        image, *version = IMAGE_DEPENDENCY.unpack_from(entry.value)
        found.append(Dependency(image, ImageVersion(*version)))
    return tuple(found)


def parse_hash(unprotected: Sequence[Tlv]) -> tuple[DigestAlgorithm, bytes]:
    """The algorithm and the hash, which must come first, as it does from imgtool."""
    if not unprotected:
        raise ImageError(Defect.MISSING_HASH, "the image has no hash")
    first = unprotected[0]
    if first.kind == TlvKind.SHA384:
        raise ImageError(Defect.UNSUPPORTED_HASH, "hashed with SHA-384; with Ed25519 it is SHA-256 or SHA-512")
    algorithm = next((each for each in DigestAlgorithm if each.kind == first.kind), None)
    if algorithm is None:
        raise ImageError(Defect.MISSING_HASH, f"the unprotected TLVs begin with {first.name}, not with the hash")
    if len(first.value) != algorithm.size:
        raise ImageError(Defect.TLV_VALUE, f"the {algorithm.value} hash is {len(first.value)} bytes")
    return algorithm, first.value


def parse_pure(entries: Sequence[Tlv]) -> tuple[bool, Sequence[Tlv]]:
    """Whether signatures are pure, and the entries behind the mark that says so."""
    if not entries or entries[0].kind != TlvKind.PURE:
        return False, entries
    if entries[0].value != b"\1":
        raise ImageError(Defect.TLV_VALUE, f"the mark of pure signatures is {entries[0].value.hex()!r}, it must be 01")
    if len(entries) == 1:
        raise ImageError(Defect.SIGNATURE_PAIR, "marked as purely signed, but not signed")
    return True, entries[1:]


def parse_signatures(entries: Sequence[Tlv], algorithm: DigestAlgorithm) -> tuple[ImageSignature, ...]:
    """Pairs: what names the key, then the signature."""
    found: list[ImageSignature] = []
    for at in range(0, len(entries), 2):
        if len(found) == MAX_SIGNATURES:
            raise ImageError(Defect.TOO_MANY_SIGNATURES, f"signed more than {MAX_SIGNATURES} times")
        public_key, key_hash = _parse_key(entries[at], algorithm)
        if at + 1 == len(entries) or entries[at + 1].kind != TlvKind.ED25519:
            raise ImageError(Defect.SIGNATURE_PAIR, f"TLV {entries[at].name} is not followed by an Ed25519 signature")
        signature = entries[at + 1].value
        if len(signature) != SIGNATURE_BYTES:
            raise ImageError(
                Defect.TLV_VALUE, f"a signature is {len(signature)} bytes, Ed25519's are {SIGNATURE_BYTES}"
            )
        if any(key_hash == other.key_hash for other in found):
            raise ImageError(Defect.DUPLICATE_TLV, f"key {key_hash.hex()} signed twice")
        found.append(ImageSignature(public_key, key_hash, signature))
    return tuple(found)


_UNPROTECTED_KINDS = frozenset(
    {
        TlvKind.KEY_HASH,
        TlvKind.PUBLIC_KEY,
        TlvKind.SHA256,
        TlvKind.SHA384,
        TlvKind.SHA512,
        TlvKind.ED25519,
        TlvKind.PURE,
    }
)


def _parse_key(entry: Tlv, algorithm: DigestAlgorithm) -> tuple[bytes | None, bytes]:
    """The raw key, if it is there, and its hash."""
    if entry.kind == TlvKind.KEY_HASH:
        if len(entry.value) != algorithm.size:
            raise ImageError(
                Defect.TLV_VALUE, f"the key's hash is {len(entry.value)} bytes, {algorithm.value} has {algorithm.size}"
            )
        return None, entry.value
    if entry.kind == TlvKind.PUBLIC_KEY:
        public_key = entry.value.removeprefix(SPKI_PREFIX)
        if entry.value[: len(SPKI_PREFIX)] != SPKI_PREFIX or len(public_key) != PUBLIC_KEY_BYTES:
            raise ImageError(Defect.UNSUPPORTED_KEY, "the image's public key is not an Ed25519 key")
        return public_key, algorithm.digest(entry.value)
    if entry.kind in _UNPROTECTED_KINDS:
        raise ImageError(Defect.SIGNATURE_PAIR, f"TLV {entry.name} stands where a key should")
    raise ImageError(Defect.UNKNOWN_TLV, f"TLV {entry.name} is not known in the unprotected area")
