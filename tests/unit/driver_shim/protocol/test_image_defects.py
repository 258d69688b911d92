"""Each reason to refuse an image, on an image that has nothing else wrong."""

from __future__ import annotations

import hashlib
import struct

import pytest

from driver_shim.protocol.image import Defect, ImageError, authenticate, parse_image
from firmware_tools.verify import verify_signature
from tests.support.images import OTHER_TRUSTED, PUBLIC, TINY, TRUSTED, area

PAYLOAD = b"\x13\0\0\0"
SPKI = bytes.fromhex("302a300506032b6570032100") + PUBLIC
PROTECTED, UNPROTECTED = 0x6908, 0x6907
SEAL = bytes.fromhex("77c295f360d2ef7f3552500f2cb67980")
SEAL_ALIGNED_16 = bytes.fromhex("10002de15d29410b8d77679c110f1f8a")


def image(
    *,
    magic: int = 0x96F3B83D,
    load_address: int = 0,
    header_size: int = 32,
    protected_size: int | None = None,
    payload: bytes = PAYLOAD,
    flags: int = 0,
    reserved: int = 0,
    padding: bytes = b"",
    protected: bytes = b"",
    unprotected: bytes | None = None,
    behind: bytes = b"",
) -> bytes:
    """An unsigned image with parts replaced."""
    size = len(protected) if protected_size is None else protected_size
    fields = (magic, load_address, header_size, size, len(payload), flags, 1, 0, 0, 0, reserved)
    covered = struct.pack("<IIHHIIBBHII", *fields) + padding + payload + protected
    end = area(UNPROTECTED, (0x10, hashlib.sha256(covered).digest())) if unprotected is None else unprotected
    return covered + end + behind


def protecting(*entries: tuple[int, bytes]) -> bytes:
    return image(protected=area(PROTECTED, *entries))


def ending(*entries: tuple[int, bytes]) -> bytes:
    return image(unprotected=area(UNPROTECTED, *entries))


HASH = (0x10, bytes(32))
KEY = (0x02, SPKI)
KEY_HASH = (0x01, bytes(32))
SIGNATURE = (0x24, bytes(64))
PURE = (0x25, b"\1")


def signed_by(keys: int) -> list[tuple[int, bytes]]:
    """Pairs of as many keys and what could be their signatures."""
    return [entry for key in range(keys) for entry in ((0x02, SPKI[:-1] + bytes([key])), SIGNATURE)]


CASES: list[tuple[Defect, bytes]] = [
    (Defect.NOT_AN_IMAGE, image(magic=0x96F3B83C)),
    (Defect.NOT_AN_IMAGE, b"\x7fELF" + bytes(60)),
    (Defect.BIG_ENDIAN, image(magic=0x3DB8F396)),
    (Defect.TRUNCATED, b""),
    (Defect.TRUNCATED, image()[:31]),
    (Defect.TRUNCATED, image()[:35]),
    (Defect.TRUNCATED, image()[:38]),
    (Defect.TRUNCATED, image()[:-1]),
    (Defect.TRUNCATED, image(protected=area(PROTECTED, (0x50, bytes(4))))[:40]),
    (Defect.RESERVED_FIELD, image(reserved=1)),
    (Defect.HEADER_SIZE, image(header_size=31)),
    (Defect.HEADER_SIZE, image(header_size=0)),
    (Defect.HEADER_PADDING, image(header_size=36, padding=b"\0\xff\0\0")),
    (Defect.EMPTY, image(payload=b"")),
    (Defect.ENCRYPTED, image(flags=0x4)),
    (Defect.ENCRYPTED, image(flags=0x8)),
    (Defect.ENCRYPTED, ending(HASH, KEY, SIGNATURE, (0x32, bytes(113)))),
    (Defect.COMPRESSED, image(flags=0x200)),
    (Defect.COMPRESSED, image(flags=0x400)),
    (Defect.COMPRESSED, image(flags=0x800)),
    (Defect.COMPRESSED, protecting((0x70, bytes(4)))),
    (Defect.UNSUPPORTED_FLAG, image(flags=0x1)),
    (Defect.UNSUPPORTED_FLAG, image(flags=0x8000_0000)),
    (Defect.UNSUPPORTED_FLAG, image(flags=0x120)),
    (Defect.LOAD_ADDRESS, image(load_address=0x8000_0000)),
    (Defect.TLV_AREA, image(protected_size=8)),
    (Defect.TLV_AREA, image(protected_size=8, protected=area(PROTECTED, (0x50, bytes(4))))),
    (Defect.TLV_AREA, image(protected_size=0, protected=area(PROTECTED, (0x50, bytes(4))))),
    (Defect.TLV_AREA, image(unprotected=bytes(8))),
    (Defect.TLV_AREA, image(unprotected=struct.pack("<HH", UNPROTECTED, 3))),
    (Defect.TLV_AREA, image(protected=area(PROTECTED, (0x50, bytes(4))), unprotected=area(PROTECTED, HASH))),
    (Defect.TLV_AREA, image(unprotected=struct.pack("<HHHH", UNPROTECTED, 8, 0x10, 1))),
    (Defect.TLV_AREA, image(unprotected=struct.pack("<HHH", UNPROTECTED, 6, 0x10))),
    (Defect.TLV_AREA, image(protected=struct.pack("<HHHHB", PROTECTED, 9, 0x50, 4, 0))),
    (Defect.PADDED, image(behind=b"\xff" * 64 + SEAL)),
    (Defect.PADDED, image(behind=b"\xff" * 64 + SEAL_ALIGNED_16)),
    (Defect.TRAILING_BYTES, image(behind=b"\xff")),
    (Defect.TRAILING_BYTES, TINY + TINY),
    (Defect.UNKNOWN_TLV, protecting((0x51, bytes(4)))),
    (Defect.UNKNOWN_TLV, protecting((0x10, bytes(32)))),
    (Defect.UNKNOWN_TLV, protecting((0xFFFF, b""))),
    (Defect.UNKNOWN_TLV, ending(HASH, (0xA5, b""))),
    (Defect.UNKNOWN_TLV, ending(HASH, (0x50, bytes(4)))),
    (Defect.UNSUPPORTED_TLV, protecting((0x74, bytes(16)))),
    (Defect.UNSUPPORTED_TLV, protecting((0x75, bytes(16)))),
    (Defect.DUPLICATE_TLV, protecting((0x50, bytes(4)), (0x50, bytes(4)))),
    (Defect.DUPLICATE_TLV, protecting((0xA5, b""), (0xA5, b""))),
    (Defect.DUPLICATE_TLV, ending(HASH, KEY, SIGNATURE, KEY, SIGNATURE)),
    (Defect.DUPLICATE_TLV, ending(HASH, KEY, SIGNATURE, (0x01, hashlib.sha256(SPKI).digest()), SIGNATURE)),
    (Defect.TLV_VALUE, protecting((0x50, bytes(3)))),
    (Defect.TLV_VALUE, protecting((0xA0, b""))),
    (Defect.TLV_VALUE, protecting((0xA0, bytes(6)))),
    (Defect.TLV_VALUE, protecting((0xA0, bytes(8)))),
    (Defect.TLV_VALUE, protecting((0xA1, b""))),
    (Defect.TLV_VALUE, protecting((0xA1, bytes(64)))),
    (Defect.TLV_VALUE, protecting((0x40, bytes(11)))),
    (Defect.TLV_VALUE, protecting((0x40, b"\0\1" + bytes(10)))),
    (Defect.TLV_VALUE, ending((0x10, bytes(31)))),
    (Defect.TLV_VALUE, ending((0x12, bytes(32)))),
    (Defect.TLV_VALUE, ending(HASH, (0x25, b"\2"), KEY, SIGNATURE)),
    (Defect.TLV_VALUE, ending(HASH, (0x25, b""), KEY, SIGNATURE)),
    (Defect.TLV_VALUE, ending(HASH, (0x01, bytes(31)), SIGNATURE)),
    (Defect.TLV_VALUE, ending((0x12, bytes(64)), KEY_HASH, SIGNATURE)),
    (Defect.TLV_VALUE, ending(HASH, KEY, (0x24, bytes(63)))),
    (Defect.MISSING_HASH, ending()),
    (Defect.MISSING_HASH, ending(KEY, SIGNATURE)),
    (Defect.MISSING_HASH, ending(PURE, KEY, SIGNATURE)),
    (Defect.UNSUPPORTED_HASH, ending((0x11, bytes(48)), KEY, SIGNATURE)),
    (Defect.RSA_SIGNATURE, ending(HASH, KEY_HASH, (0x20, bytes(256)))),
    (Defect.RSA_SIGNATURE, ending(HASH, KEY_HASH, (0x23, bytes(384)))),
    (Defect.ECDSA_SIGNATURE, ending(HASH, KEY_HASH, (0x21, bytes(64)))),
    (Defect.ECDSA_SIGNATURE, ending((0x11, bytes(48)), KEY_HASH, (0x22, bytes(70)))),
    (Defect.UNSUPPORTED_KEY, ending(HASH, (0x02, PUBLIC), SIGNATURE)),
    (Defect.UNSUPPORTED_KEY, ending(HASH, (0x02, SPKI + b"\0"), SIGNATURE)),
    (Defect.UNSUPPORTED_KEY, ending(HASH, (0x02, SPKI[:8] + b"\x6e" + SPKI[9:]), SIGNATURE)),
    (Defect.SIGNATURE_PAIR, ending(HASH, KEY)),
    (Defect.SIGNATURE_PAIR, ending(HASH, SIGNATURE)),
    (Defect.SIGNATURE_PAIR, ending(HASH, HASH)),
    (Defect.SIGNATURE_PAIR, ending(HASH, KEY, KEY_HASH, SIGNATURE)),
    (Defect.SIGNATURE_PAIR, ending(HASH, KEY, SIGNATURE, PURE)),
    (Defect.SIGNATURE_PAIR, ending(HASH, PURE)),
    (Defect.TOO_MANY_SIGNATURES, ending(HASH, *signed_by(9))),
    (Defect.TOO_MANY_SIGNATURES, ending(HASH, PURE, *signed_by(9))),
    (Defect.WRONG_HASH, ending(HASH)),
    (Defect.WRONG_HASH, ending(HASH, *signed_by(8))),
    (Defect.UNSIGNED, image()),
]
BEHIND_PARSING = {
    Defect.WRONG_CHUNK_HASH,  # tests/unit/driver_shim/protocol/test_image.py
    Defect.UNKNOWN_KEY,
    Defect.WRONG_SIGNATURE,
}


@pytest.mark.parametrize(
    ("defect", "data"), CASES, ids=[f"{number}-{defect.value}" for number, (defect, _) in enumerate(CASES)]
)
def test_it_is_refused_for_this_reason(defect: Defect, data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        authenticate(parse_image(data), [TRUSTED], verify_signature)
    assert caught.value.defect is defect
    assert caught.value.code == defect.value
    assert str(caught.value)


def test_every_reason_has_a_case() -> None:
    assert {defect for defect, _ in CASES} | BEHIND_PARSING == set(Defect)


def test_a_signature_of_another_image_is_refused() -> None:
    signature = parse_image(TINY).signatures[0].signature
    covered = image()
    end = area(UNPROTECTED, (0x10, hashlib.sha256(covered[:36]).digest()), KEY, (0x24, signature))
    with pytest.raises(ImageError) as caught:
        authenticate(parse_image(image(unprotected=end)), [TRUSTED], verify_signature)
    assert caught.value.defect is Defect.WRONG_SIGNATURE
    with pytest.raises(ImageError) as caught:
        authenticate(parse_image(image(unprotected=end)), [OTHER_TRUSTED], verify_signature)
    assert caught.value.defect is Defect.UNKNOWN_KEY


@pytest.mark.parametrize(
    "data",
    [
        image(flags=0x10),
        image(flags=0x100, load_address=0x1000),
        image(flags=0x20),
        image(header_size=40, padding=bytes(8)),
        image(header_size=40, padding=b"\xff" * 8),
        protecting((0xA5, b"anything"), (0x1A0, b"")),
        protecting((0x60, b"\xa0")),
        protecting((0x40, b"\1" + bytes(3) + b"\2\3\4\0\5\0\0\0"), (0x40, bytes(12))),
    ],
)
def test_what_does_no_harm_is_accepted(data: bytes) -> None:
    assert parse_image(data).data == data


def test_dependencies_are_read() -> None:
    (need,) = parse_image(protecting((0x40, b"\1" + bytes(3) + b"\2\3\4\0\5\0\0\0"))).dependencies
    assert (need.image, str(need.version)) == (1, "2.3.4+5")
