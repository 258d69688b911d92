"""LAYER_NORM against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from driver_shim.protocol.program_commands import CommandKind
from emulator.model.operators import SemanticError
from tests.support.programs import golden_outputs

F32 = np.float32


def layer_norm(inputs: list[Any], outputs: int = 1, **attributes: Any) -> list[Any]:
    return golden_outputs(CommandKind.LAYER_NORM, inputs, outputs, **attributes)


def test_rows_by_hand() -> None:
    x = np.array([[1, 3], [10, 20]], F32)  # means 2 and 15, variances 1 and 25
    y, mean, inverse = layer_norm([x], 3, axes=0b10, epsilon=0)
    assert y.tolist() == [[-1, 1], [-1, 1]]
    assert mean.tolist() == [[2], [15]]
    np.testing.assert_allclose(inverse.reshape(-1), [1, 0.2], rtol=1e-7)


def test_scale_and_bias_broadcast_to_the_data() -> None:
    x = np.array([[1, 3], [10, 20]], F32)
    (y,) = layer_norm([x, np.array([2, 4], F32), np.array([[1], [-1]], F32)], axes=0b10, epsilon=0)
    assert y.tolist() == [[-1, 5], [-3, 3]]


def test_epsilon_is_added_to_the_variance() -> None:
    (y,) = layer_norm([np.array([1, 3], F32)], axes=1, epsilon=3)
    assert y.tolist() == [-0.5, 0.5]


def test_any_dimensions_can_be_normalised_over() -> None:
    x = np.arange(24, dtype=F32).reshape(2, 3, 4)
    (y,) = layer_norm([x], axes=0b101, epsilon=0)
    expected = (x - x.mean((0, 2), keepdims=True)) / x.std((0, 2), keepdims=True)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_a_root_mean_square_takes_no_mean_away() -> None:
    y, mean, inverse = layer_norm([np.array([1, 7], F32)], 3, axes=1, epsilon=0, root_mean_square=1)
    np.testing.assert_allclose(y, [0.2, 1.4], rtol=1e-6)  # √((1 + 49) / 2) = 5
    assert mean.tolist() == [0] and math.isclose(inverse.item(), 0.2, rel_tol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_computed_with_in_float32(dtype: Any) -> None:
    x = np.array([256, 258], dtype)  # their square does not fit float16
    y, mean, _ = layer_norm([x], 3, axes=1, epsilon=0)
    assert y.dtype == dtype and y.tolist() == [-1, 1]
    assert mean.dtype == F32 and mean.tolist() == [257]


def test_no_dimensions_normalise_every_element_by_itself() -> None:
    y, mean, _ = layer_norm([np.array(5, F32)], 3, axes=0, epsilon=1)
    assert y.shape == () and y.item() == 0 and mean.item() == 5


def test_statistics_of_no_elements_are_not_a_number() -> None:
    y, mean, _ = layer_norm([np.zeros((2, 0), F32)], 3, axes=0b10, epsilon=1)
    assert y.shape == (2, 0) and np.isnan(mean).all()


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ([np.zeros(3, F32)], {"axes": 0b10}, "axes mask"),
        ([np.zeros(3, F32), np.zeros((2, 3), F32)], {"axes": 1}, "operand 1 is"),
        ([np.zeros(3, F32), None, np.zeros(2, F32)], {"axes": 1}, "do not broadcast"),
        ([np.zeros(3, F32), np.zeros(3, np.float16)], {"axes": 1}, "different types"),
        ([np.zeros(3, np.int32)], {"axes": 1}, "int32"),
        ([np.zeros(3, F32)], {"axes": 1, "epsilon": -1}, "epsilon"),
        ([np.zeros(3, F32)], {"axes": 1, "root_mean_square": 2}, "flag"),
    ],
)
def test_operands_that_do_not_go_together_are_refused(
    inputs: list[Any], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SemanticError, match=message):
        layer_norm(inputs, **attributes)
