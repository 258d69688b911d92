"""POOL and UNPOOL by values worked out by hand. (More of POOL is in test_products.py.)"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType, make_attributes
from driver_shim.protocol.program_commands import CommandKind, PoolFunction
from driver_shim.protocol.types import wire_type_of
from emulator.model.operators import OPERATORS, KernelFault, SemanticError
from tests.support.programs import golden, window

F32 = np.float32


def maxima(x: Any, kernel: list[int], **changes: Any) -> tuple[Any, Any]:
    """The maxima of POOL and their places."""
    column_major = changes.pop("column_major", 0)
    fields = make_attributes(
        CommandKind.POOL, function=PoolFunction.MAX, kernel=kernel, column_major=column_major, **window(**changes)
    )
    types = OPERATORS[CommandKind.POOL].infer(fields, [TensorType(wire_type_of(x.dtype), x.shape)])
    outputs = [np.empty(t.shape, t.dtype.dtype) for t in types]
    OPERATORS[CommandKind.POOL].run(fields, [x], outputs)
    return outputs[0].tolist(), outputs[1].tolist()


def test_places_of_maxima_count_through_batch_and_channels() -> None:
    x = np.array([[[1, 5, 2, 3]], [[9, 8, 7, 9]]], F32)
    assert maxima(x, [2, 1, 1], strides=[2]) == ([[[5, 3]], [[9, 9]]], [[[1, 3]], [[4, 7]]])


def test_the_first_of_equal_maxima_is_the_one() -> None:
    assert maxima(np.zeros((1, 1, 2, 2), np.int8), [2, 2, 1]) == ([[[[0]]]], [[[[0]]]])


def test_places_count_down_columns_when_told() -> None:
    x = np.arange(6, dtype=F32).reshape(1, 1, 2, 3)
    assert maxima(x, [2, 2, 1], column_major=1)[1] == [[[[3, 5]]]]


def test_padding_has_no_place_even_among_the_lowest() -> None:
    lowest = np.full((1, 1, 2), -np.inf, F32)
    assert maxima(lowest, [2, 1, 1], pads_begin=[1], pads_end=[1])[1] == [[[0, 0, 1]]]
    bottom = np.full((1, 1, 2), -128, np.int8)
    assert maxima(bottom, [2, 1, 1], pads_begin=[1])[1] == [[[0, 0]]]


def test_what_is_no_number_is_the_largest() -> None:
    values, places = maxima(np.array([[[1, np.nan, 3]]], F32), [3, 1, 1])
    assert np.isnan(values).all() and places == [[[1]]]


@pytest.mark.parametrize(("p", "expected"), [(1, [7, 7]), (2, [5, 5]), (3, [91 ** (1 / 3), 91 ** (1 / 3)])])
def test_lp_pool_is_a_norm_of_what_is_under_the_window(p: int, expected: list[float]) -> None:
    x = np.array([[[3, -4, 3]]], F32)
    fields = {"function": PoolFunction.LP, "p": p, "kernel": [2, 1, 1], **window()}
    np.testing.assert_allclose(golden(CommandKind.POOL, [x], (1, 1, 2), F32, **fields), [[expected]], rtol=1e-6)


@pytest.mark.parametrize(("function", "p"), [(PoolFunction.LP, 0), (PoolFunction.AVERAGE, 2)])
def test_p_goes_with_lp_pool_alone(function: PoolFunction, p: int) -> None:
    with pytest.raises(SemanticError, match=f"p is {p} for {function.name}"):
        golden(CommandKind.POOL, [np.ones((1, 1, 2), F32)], (1, 1, 2), F32, function=function, p=p, kernel=[1, 1, 1])


def unpooled(x: Any, places: Any, shape: tuple[int, ...]) -> Any:
    return golden(CommandKind.UNPOOL, [x, np.array(places, np.int64)], shape, x.dtype).tolist()


def test_unpooled_elements_are_at_their_places_among_zeros() -> None:
    assert unpooled(np.array([[[7, 8]]], F32), [[[3, 0]]], (1, 1, 4)) == [[[8, 0, 0, 7]]]


@pytest.mark.parametrize("place", [-1, 4])
def test_a_place_outside_of_the_output_fails_the_command(place: int) -> None:
    with pytest.raises(KernelFault, match=r"an index lies outside \[0, 3\]") as caught:
        unpooled(np.array([[[7]]], F32), [[[place]]], (1, 1, 4))
    assert caught.value.status is Status.INDEX_OUT_OF_RANGE
