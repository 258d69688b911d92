"""Blocks of every type stand for the numbers that the package `gguf` makes of them."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from sdk.gguf.blocks import LAYOUTS, quantised
from tests.support.gguf_files import random_blocks

Array = NDArray[Any]
ROWS = 5
WRITTEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Types that the package quantises to."""


def floats(kind: str, data: Array, columns: int) -> Array:
    """What the codes, scales and offsets come to."""
    layout, (codes, scales, offsets) = LAYOUTS[kind], quantised(kind, data, columns)
    assert codes.max() < 1 << layout.bits
    blocks = codes.astype(np.float32).reshape(*scales.shape, layout.block) - layout.centre
    real = blocks * scales[..., None]
    return np.asarray(real if offsets is None else real + offsets[..., None]).reshape(len(data), columns)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_any_bytes_stand_for_the_same_numbers(kind: str) -> None:
    columns = 3 * LAYOUTS[kind].weights
    data = random_blocks(np.random.default_rng(1), kind, ROWS, columns)
    expected = gguf.dequantize(data, gguf.GGMLQuantizationType[kind])
    found = floats(kind, data, columns)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-7 * np.abs(expected).max())
    assert np.ptp(expected) > 0.5


@pytest.mark.parametrize("kind", WRITTEN)
def test_quantised_numbers_come_back(kind: str) -> None:
    columns = 2 * LAYOUTS[kind].weights
    real = np.random.default_rng(2).normal(size=(ROWS, columns)).astype(np.float32)
    data = gguf.quantize(real, gguf.GGMLQuantizationType[kind])
    np.testing.assert_allclose(floats(kind, data, columns), real, atol=0.3)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_block_is_as_large_as_the_format_says(kind: str) -> None:
    layout = LAYOUTS[kind]
    assert (layout.weights, layout.dtype.itemsize) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
