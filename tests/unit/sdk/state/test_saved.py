"""A saved state is read as it was written, or refused: any byte of it may be damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sdk.compiler.states import StateInfo, StateKind
from sdk.state.saved import HEADER, decode, encode

LENGTH = 20
STATES = (
    StateInfo("past", "present", (2, 3), "float32", StateKind.APPEND, 24, "by name"),
    StateInfo("h", "h_next", (1, 4), "float16", StateKind.REPLACE, 0, "as named"),
)
TENSORS: list[NDArray[Any]] = [
    np.arange(LENGTH * 6, dtype=np.float32).reshape(LENGTH, 2, 3),
    np.ones((1, 4), np.float16),
]
SAVED = encode(STATES, LENGTH, TENSORS)


def test_what_was_written_is_read() -> None:
    found = decode(SAVED, STATES)
    assert found.length == LENGTH
    for tensor, expected in zip(found.tensors, TENSORS, strict=True):
        np.testing.assert_array_equal(tensor, expected)


@given(st.integers(0, 8 * len(SAVED) - 1))
def test_a_bit_that_flips_is_noticed_or_says_nothing(bit: int) -> None:
    damaged = bytearray(SAVED)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        found = decode(bytes(damaged), STATES)
    except ValueError:
        return
    assert found.length == LENGTH  # it was one that says nothing
    for tensor, expected in zip(found.tensors, TENSORS, strict=True):
        np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize("length", [0, 4, LENGTH - 1, LENGTH + 1, 1 << 63])
def test_another_length_than_was_written_is_noticed(length: int) -> None:
    head = HEADER.parse(SAVED[: HEADER.size])
    fields = {name: getattr(head, name) for name in ("magic", "major", "minor", "checksum", "description_bytes")}
    with pytest.raises(ValueError, match="damaged"):
        decode(HEADER.build(**fields, length=length) + SAVED[HEADER.size :], STATES)
