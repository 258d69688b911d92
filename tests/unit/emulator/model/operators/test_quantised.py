"""Quantised commands against values worked out by hand: the arithmetic that must be right to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.program_commands import CommandKind
from emulator.model.operators.shapes import SemanticError
from tests.support.programs import golden, window

F32 = np.float32


def qmatmul(
    x: list[list[int]],
    w: list[list[int]],
    *,
    scales: tuple[Any, Any, Any] = (1, 1, 1),
    zeros: tuple[Any, Any, Any] = (0, 0, 0),
    dtype: Any = np.int8,
    bias: list[int] | None = None,
    relu: int = 0,
) -> list[list[int]]:
    data, weights = np.array(x, dtype), np.array(w, np.int8)
    x_scale, w_scale, y_scale = (np.asarray(s, F32) for s in scales)
    x_zero, w_zero, y_zero = np.asarray(zeros[0], dtype), np.asarray(zeros[1], np.int8), np.asarray(zeros[2], dtype)
    operands: list[NDArray[Any] | None] = [data, weights, x_scale, x_zero, w_scale, w_zero, y_scale, y_zero]
    if bias is not None:
        operands.append(np.array(bias, np.int32))
    shape = (len(x), len(w[0]))
    result: list[list[int]] = golden(CommandKind.QMATMUL, operands, shape, dtype, relu=relu).tolist()
    return result


def test_sums_scaled_and_shifted() -> None:
    # (3-1)·(5-2) + (4-1)·(6-2) = 18; 18 · (0.5·0.25)/0.75 = 3; + 7 = 10
    assert qmatmul([[3, 4]], [[5], [6]], scales=(0.5, 0.25, 0.75), zeros=(1, 2, 7)) == [[10]]


@pytest.mark.parametrize(("value", "expected"), [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2), (-5, -2)])
def test_halves_round_to_even(value: int, expected: int) -> None:
    assert qmatmul([[value]], [[1]], scales=(1, 1, 2)) == [[expected]]


def test_results_saturate() -> None:
    assert qmatmul([[127], [-128]], [[127]]) == [[127], [-128]]
    assert qmatmul([[255], [0]], [[127]], zeros=(100, 0, 3), dtype=np.uint8) == [[255], [0]]


def test_relu_is_a_clamp_at_the_zero_point() -> None:
    assert qmatmul([[-50], [20]], [[1]], zeros=(0, 0, 10), relu=1) == [[10], [30]]


def test_bias_joins_the_sum_before_scaling() -> None:
    assert qmatmul([[2]], [[3]], scales=(1, 1, 4), bias=[10]) == [[4]]


def test_one_scale_a_column() -> None:
    assert qmatmul([[10]], [[1, 1]], scales=(1, [0.5, 2], 1), zeros=(0, [0, -1], 0)) == [[5, 40]]


def test_scales_combine_in_float32_in_the_stated_order() -> None:
    x_scale, w_scale, y_scale = F32(0.1), F32(0.3), F32(0.7)
    multiplier = F32(F32(x_scale * w_scale) / y_scale)
    for total in range(-16129, 16130, 127):
        factor = total // 127
        expected = int(np.clip(np.rint(F32(total) * multiplier), -128, 127))
        assert qmatmul([[factor]], [[127]], scales=(x_scale, w_scale, y_scale)) == [[expected]]


def test_the_accumulator_is_exact_beyond_float32() -> None:
    # 40000 products of 127 · 127, then one of 1: 645160001 needs 30 bits, the last one counts.
    x = np.full((1, 40001), 127, np.int8)
    w = np.full((40001, 1), 127, np.int8)
    x[0, -1] = w[-1, 0] = 1
    one, zero = np.ones((), F32), np.zeros((), np.int8)
    for y_zero in (-1, 0):
        bias = np.array([-40000 * 127 * 127], np.int32)
        operands: list[Any] = [x, w, one, zero, one, zero, one, np.asarray(y_zero, np.int8), bias]
        assert golden(CommandKind.QMATMUL, operands, (1, 1), np.int8).tolist() == [[1 + y_zero]]


def test_padding_of_a_quantised_convolution_is_real_zero() -> None:
    x = np.array([[[9]]], np.uint8)
    w = np.ones((1, 1, 3), np.int8)
    one, none = np.ones((), F32), np.zeros((), np.int8)
    operands: list[Any] = [x, w, one, np.asarray(5, np.uint8), one, none, one, np.asarray(100, np.uint8)]
    result = golden(CommandKind.QCONV, operands, (1, 1, 3), np.uint8, group=1, **window(pads_begin=[2], pads_end=[2]))
    assert result.tolist() == [[[104, 104, 104]]]


def test_quantize_rounds_half_to_even_and_saturates() -> None:
    x = np.array([0, 0.25, 0.75, 1.25, -0.25, 1e9, -1e9, np.inf, -np.inf, np.nan], F32)
    result = golden(CommandKind.QUANTIZE, [x, np.asarray(0.5, F32), np.asarray(1, np.int8)], (10,), np.int8)
    assert result.tolist() == [1, 1, 3, 3, 1, 127, -128, 127, -128, 1]


def test_quantize_along_an_axis() -> None:
    x = np.full((2, 2), 6, F32)
    scale, zero = np.array([1, 2], F32), np.array([0, 1], np.uint8)
    assert golden(CommandKind.QUANTIZE, [x, scale, zero], (2, 2), np.uint8, axis=0).tolist() == [[6, 6], [4, 4]]
    assert golden(CommandKind.QUANTIZE, [x, scale, zero], (2, 2), np.uint8, axis=1).tolist() == [[6, 4], [6, 4]]


def test_dequantize() -> None:
    x = np.array([0, 128, 255], np.uint8)
    result = golden(CommandKind.DEQUANTIZE, [x, np.asarray(0.5, F32), np.asarray(128, np.uint8)], (3,), F32)
    assert result.tolist() == [-64, 0, 63.5]
    whole = np.array([-(1 << 31), 1 << 24], np.int32)
    assert golden(CommandKind.DEQUANTIZE, [whole, np.asarray(2, F32)], (2,), F32).tolist() == [-(2.0**32), 2.0**25]


@pytest.mark.parametrize(
    ("position", "wrong"),
    [
        (0, np.zeros((1, 1), np.int32)),
        (2, np.ones(2, F32)),
        (3, np.zeros((), np.uint8)),
        (4, np.ones(3, F32)),
        (5, np.zeros((), np.uint8)),
        (7, np.zeros((), np.uint8)),
        (8, np.zeros(1, F32)),
        (8, np.zeros(2, np.int32)),
    ],
)
def test_operands_that_do_not_go_together_are_refused(position: int, wrong: NDArray[Any]) -> None:
    one, zero = np.ones((), F32), np.zeros((), np.int8)
    data = np.zeros((1, 1), np.int8)
    operands: list[NDArray[Any] | None] = [data, data, one, zero, one, zero, one, zero, np.zeros(1, np.int32)]
    golden(CommandKind.QMATMUL, operands, (1, 1), np.int8)
    operands[position] = wrong
    with pytest.raises(SemanticError):
        golden(CommandKind.QMATMUL, operands, (1, 1), np.int8)
