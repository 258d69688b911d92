"""No byte of an accepted image can be changed unnoticed, and the parser refuses everything else in good order."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_shim.protocol.image import (
    DigestAlgorithm,
    ImageError,
    TrustedKey,
    authenticate,
    measure_image,
    parse_image,
)
from firmware_tools.signing import sign_image
from firmware_tools.verify import verify_signature
from tests.support.images import FUSES, OTHER_SIGNER, SIGNER, TINY, TRUSTED

EXAMPLES = 700
BITS = [*(1 << bit for bit in range(8)), 0xFF]
FORMS = {
    "sha512": functools.partial(sign_image, signers=[SIGNER], algorithm=DigestAlgorithm.SHA512),
    "key hash": functools.partial(sign_image, signers=[SIGNER], embed_key=False),
    "pure": functools.partial(sign_image, signers=[SIGNER], pure=True),
    "pure, sha512, key hash": functools.partial(
        sign_image, signers=[SIGNER], pure=True, algorithm=DigestAlgorithm.SHA512, embed_key=False
    ),
    "two keys": functools.partial(sign_image, signers=[OTHER_SIGNER, SIGNER]),
}


def refused(data: bytes, key: TrustedKey) -> str | None:
    """The reason's code; None when the image is accepted."""
    try:
        authenticate(parse_image(data), [key], verify_signature)
    except ImageError as error:
        return error.code
    return None


def every_change(data: bytes, changes: Iterable[int], key: TrustedKey) -> Counter[str]:
    """How often each reason was given, over all bytes and all of `changes` (xor)."""
    reasons: Counter[str] = Counter()
    for at in range(len(data)):
        for change in changes:
            mutant = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
            reason = refused(mutant, key)
            assert reason is not None, f"byte {at:#x}: {data[at]:02x} may become {mutant[at]:02x}"
            reasons[reason] += 1
    return reasons


@pytest.mark.slow
def test_every_value_of_every_byte_is_refused() -> None:
    assert refused(TINY, FUSES) is None
    reasons = every_change(TINY, range(1, 256), FUSES)
    assert reasons.total() == 255 * len(TINY)
    assert reasons["wrong-signature"] == 255 * 64
    assert {"wrong-hash", "unknown-key", "tlv-area", "truncated", "reserved-field"} <= reasons.keys()


def test_every_bit_of_every_byte_is_refused() -> None:
    reasons = every_change(TINY, BITS, FUSES)
    assert reasons["wrong-signature"] == len(BITS) * 64


@pytest.mark.parametrize("form", FORMS)
def test_every_bit_of_every_byte_is_refused_in_the_other_forms(form: str) -> None:
    data = FORMS[form](parse_image(TINY))
    assert refused(data, TRUSTED) is None
    every_change(data, BITS, TRUSTED)


def test_every_length_but_the_right_one_is_refused() -> None:
    assert all(refused(TINY[:length], FUSES) for length in range(len(TINY)))
    assert all(refused(TINY + bytes(extra), FUSES) for extra in range(1, 64))
    assert all(refused(TINY[:at] + TINY[at + 1 :], FUSES) for at in range(len(TINY)))


def _harmless(data: bytes) -> None:
    """Either read, or refused with a reason; any other exception fails the test."""
    try:
        image = parse_image(data)
    except ImageError as error:
        assert error.code
        return
    assert image.data == data
    assert measure_image(data) == len(data)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_in_good_order(data: bytes) -> None:
    _harmless(data)
    _harmless(TINY[:32] + data)
    _harmless(TINY[:36] + data)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(TINY) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_several_changed_bytes_are_refused_in_good_order(changes: list[tuple[int, int]]) -> None:
    mutant = bytearray(TINY)
    for at, value in changes:
        mutant[at] = value
    _harmless(bytes(mutant))
    if bytes(mutant) != TINY:
        assert refused(bytes(mutant), FUSES)


_ENTRY = st.tuples(
    st.sampled_from([0x01, 0x02, 0x10, 0x11, 0x12, 0x22, 0x24, 0x25, 0x40, 0x50, 0x60, 0xA0, 0xA1, 0xA2, 0xFFFF]),
    st.sampled_from([0, 1, 4, 8, 12, 32, 44, 64, 70]),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(_ENTRY, max_size=5), st.lists(_ENTRY, max_size=6), st.integers(0, 1))
def test_well_formed_areas_of_anything_are_read_or_refused(
    protected: list[tuple[int, int]], unprotected: list[tuple[int, int]], slack: int
) -> None:
    areas = []
    for magic, entries in ((0x6908, protected), (0x6907, unprotected)):
        body = b"".join(
            kind.to_bytes(2, "little") + length.to_bytes(2, "little") + bytes(length) for kind, length in entries
        )
        areas.append(magic.to_bytes(2, "little") + (4 + len(body)).to_bytes(2, "little") + body)
    header = bytearray(TINY[:32])
    header[10:12] = (len(areas[0]) + slack).to_bytes(2, "little")
    _harmless(bytes(header) + TINY[32:36] + areas[0] + areas[1])
