"""Firmware images: a tiny one against literal bytes, what is read from it, and whose signature counts."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver_shim.protocol.image import (
    DEVELOPMENT_KEY_HASH,
    Defect,
    DigestAlgorithm,
    ImageError,
    ImageFlag,
    ImageVersion,
    TrustedKey,
    authenticate,
    check_integrity,
    measure_image,
    parse_image,
)
from driver_shim.protocol.image_layout import MAX_CHUNKS, MIN_CHUNK_BYTES, chunk_size, hash_chunks, is_vendor_kind
from firmware_tools.image import build_image
from firmware_tools.keys import DEVELOPMENT_KEY, load_public_key
from firmware_tools.signing import sign_image
from firmware_tools.verify import verify_signature
from tests.support.images import (
    FUSES,
    OTHER_SIGNER,
    OTHER_TRUSTED,
    PUBLIC,
    SIGNER,
    TINY,
    TINY_CONTENTS,
    TINY_HEADER,
    TINY_PAYLOAD,
    TINY_PROTECTED,
    TINY_UNPROTECTED,
    TRUSTED,
)

UNSIGNED = build_image(TINY_CONTENTS)


def signed(*signers: object, **options: object) -> bytes:
    return sign_image(parse_image(UNSIGNED), signers, **options)  # type: ignore[arg-type]


def refusal(data: bytes, *keys: TrustedKey) -> str:
    with pytest.raises(ImageError) as caught:
        authenticate(parse_image(data), keys, verify_signature)
    return caught.value.code


def test_what_is_built_and_signed_is_what_was_laid_out_by_hand() -> None:
    assert signed(SIGNER) == TINY


def test_building_and_signing_again_gives_the_same_bytes() -> None:
    assert build_image(TINY_CONTENTS) == UNSIGNED
    assert sign_image(parse_image(TINY), [SIGNER]) == TINY


def test_everything_an_image_says_is_read() -> None:
    image = parse_image(TINY)
    assert (image.version, str(image.version)) == ((1, 2, 3, 4), "1.2.3+4")
    assert (image.load_address, image.entry_address, image.ram_load) == (0x8000_0000, 0x8000_0020, True)
    assert (image.header_size, image.image_size, image.flags) == (32, 4, ImageFlag.RAM_LOAD)
    assert (image.security_counter, image.hardware_ids) == (7, (0x4E50,))
    assert bytes(image.payload) == TINY_PAYLOAD
    assert bytes(image.loaded_region) == TINY_HEADER + TINY_PAYLOAD
    assert bytes(image.signed_region) == TINY_HEADER + TINY_PAYLOAD + TINY_PROTECTED
    assert image.chunk_hashes == (hashlib.sha256(TINY_HEADER + TINY_PAYLOAD).digest(),)
    assert image.digest == image.stated_digest == image.signed_message == TINY_UNPROTECTED[8:40]
    assert (image.algorithm, image.pure) == (DigestAlgorithm.SHA256, False)
    assert [made.public_key for made in image.signatures] == [PUBLIC]
    assert [entry.name for entry in image.protected] == [
        "0x50 security counter",
        "0xa0 hardware ids",
        "0xa1 chunk hashes",
    ]


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_is_read_and_none_is_kept_that_can_change(wrap: type) -> None:
    assert parse_image(wrap(TINY)) == parse_image(TINY)
    assert isinstance(parse_image(wrap(TINY)).data, bytes)


def test_an_image_is_measured_in_its_slot() -> None:
    slot = TINY.ljust(4096, b"\xff")
    assert measure_image(slot) == len(TINY)
    assert authenticate(parse_image(slot[: measure_image(slot)]), [FUSES], verify_signature) == (FUSES,)


def test_an_empty_slot_is_not_an_image() -> None:
    with pytest.raises(ImageError) as caught:
        measure_image(b"\xff" * 4096)
    assert caught.value.defect is Defect.NOT_AN_IMAGE


@pytest.mark.parametrize("key", [TRUSTED, FUSES])
def test_the_key_in_the_image_is_trusted_by_its_hash(key: TrustedKey) -> None:
    assert authenticate(parse_image(TINY), [OTHER_TRUSTED, key], verify_signature) == (key,)


@pytest.mark.parametrize("algorithm", list(DigestAlgorithm))
@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("embed_key", [False, True])
def test_every_form_of_signature_verifies(algorithm: DigestAlgorithm, pure: bool, embed_key: bool) -> None:
    data = signed(SIGNER, algorithm=algorithm, pure=pure, embed_key=embed_key)
    image = parse_image(data)
    assert (image.algorithm, image.pure, image.signatures[0].public_key is not None) == (algorithm, pure, embed_key)
    assert authenticate(image, [TRUSTED], verify_signature) == (TRUSTED,)
    assert refusal(data, OTHER_TRUSTED) == "unknown-key"
    if embed_key:
        assert authenticate(image, [FUSES], verify_signature) == (FUSES,)
    else:
        assert refusal(data, FUSES) == "unknown-key"


def test_no_key_is_trusted_where_none_is_given() -> None:
    assert refusal(TINY) == "unknown-key"


def test_an_unsigned_image_is_whole_but_not_authentic() -> None:
    check_integrity(parse_image(UNSIGNED))
    assert refusal(UNSIGNED, TRUSTED) == "unsigned"


def test_several_keys_may_sign_and_one_of_them_suffices() -> None:
    data = signed(SIGNER, OTHER_SIGNER)
    image = parse_image(data)
    assert authenticate(image, [OTHER_TRUSTED], verify_signature) == (OTHER_TRUSTED,)
    assert authenticate(image, [FUSES, OTHER_TRUSTED], verify_signature) == (FUSES, OTHER_TRUSTED)


def test_a_broken_signature_of_a_key_that_is_not_trusted_counts_too() -> None:
    data = bytearray(signed(OTHER_SIGNER, SIGNER))
    data[data.index(parse_image(bytes(data)).signatures[0].signature)] ^= 1
    assert refusal(bytes(data), TRUSTED) == "wrong-signature"


def test_a_signature_that_cannot_be_checked_is_refused_beside_a_good_one() -> None:
    assert refusal(signed(SIGNER, OTHER_SIGNER, embed_key=False), TRUSTED) == "unknown-key"


def test_damage_is_located_by_chunk() -> None:
    contents = TINY_CONTENTS.__class__(bytes(3 * MIN_CHUNK_BYTES), ImageVersion(1), 0x8000_0000)
    data = bytearray(build_image(contents))
    data[2 * MIN_CHUNK_BYTES] ^= 1
    with pytest.raises(ImageError, match="bytes 0x2000 to 0x2fff differ"):
        check_integrity(parse_image(data))


def test_chunk_hashes_are_checked_though_the_hash_is_right() -> None:
    wrong = TINY_PROTECTED[:-1] + bytes([TINY_PROTECTED[-1] ^ 1])
    digest = hashlib.sha256(TINY_HEADER + TINY_PAYLOAD + wrong).digest()
    data = TINY_HEADER + TINY_PAYLOAD + wrong + bytes.fromhex("07692800 10002000") + digest
    with pytest.raises(ImageError) as caught:
        check_integrity(parse_image(data))
    assert caught.value.code == "wrong-chunk-hash"


@pytest.mark.parametrize(
    ("covered", "size"),
    [(1, 4096), (4 << 20, 4096), ((4 << 20) + 1, 8192), (8 << 20, 8192), ((8 << 20) + 1, 16384)],
)
def test_chunks_are_as_small_as_1024_hashes_allow(covered: int, size: int) -> None:
    assert chunk_size(covered) == size
    assert -(-covered // size) <= MAX_CHUNKS


def test_the_last_chunk_may_be_shorter() -> None:
    data = bytes(4096) + b"\1"
    assert hash_chunks(data) == (hashlib.sha256(bytes(4096)).digest(), hashlib.sha256(b"\1").digest())


def test_the_published_key_is_the_one_whose_hash_is_in_the_protocol() -> None:
    assert TrustedKey.of_public_key(load_public_key(DEVELOPMENT_KEY)).key_hash == DEVELOPMENT_KEY_HASH
    assert b"published" in DEVELOPMENT_KEY.read_bytes()


@pytest.mark.parametrize(
    ("text", "version"),
    [("1", (1, 0, 0, 0)), ("0.2", (0, 2, 0, 0)), ("1.2.3", (1, 2, 3, 0)), ("255.255.65535+4294967295", None)],
)
def test_versions_are_written_as_imgtool_takes_them(text: str, version: tuple[int, ...] | None) -> None:
    assert ImageVersion.parse(text) == (version or (255, 255, 65535, 0xFFFF_FFFF))


@pytest.mark.parametrize(
    "text", ["", "v1", "1.2.3.4", "01", "1.", "1.2+3", "1.2.3+", "-1", "1.2.3 ", "256", "1.2.65536", "²"]
)
def test_other_versions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="version"):
        ImageVersion.parse(text)


@given(st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535), st.integers(0, 0xFFFF_FFFF)))
def test_a_version_is_read_as_it_is_written(parts: tuple[int, int, int, int]) -> None:
    assert ImageVersion.parse(str(ImageVersion(*parts))) == parts


@pytest.mark.parametrize(
    ("kind", "vendors"), [(0xA0, True), (0xFF, True), (0x1A0, True), (0x9F, False), (0x150, False)]
)
def test_vendors_have_the_upper_part_of_every_page(kind: int, vendors: bool) -> None:
    assert is_vendor_kind(kind) is vendors
    assert not is_vendor_kind(0xFFFF)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_another_length_are_a_mistake_of_the_caller(length: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        TrustedKey.of_public_key(bytes(length))
    with pytest.raises(ValueError, match="bytes"):
        TrustedKey(bytes(length))
