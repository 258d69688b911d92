"""Gathers, scatters, TopK, running sums, determinants, BitCast and bit operations against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType, make_attributes
from driver_shim.protocol.program_commands import (
    BinaryFunction,
    CommandKind,
    CumulateFunction,
    PadMode,
    ReduceFunction,
    ScatterReduction,
    UnaryFunction,
)
from driver_shim.protocol.types import WireType, wire_type_of
from emulator.model.operators import OPERATORS, KernelFault, SemanticError

F32 = np.float32
Array = NDArray[Any]


def outputs(kind: CommandKind, inputs: list[Array], **fields: Any) -> list[Any]:
    """All outputs of a command, as lists."""
    attributes = make_attributes(kind, **fields)
    types = OPERATORS[kind].infer(attributes, [TensorType(wire_type_of(a.dtype), a.shape) for a in inputs])
    results = [np.empty(one.shape, one.dtype.dtype) for one in types]
    for array in inputs:
        array.flags.writeable = False
    with np.errstate(all="ignore"):
        OPERATORS[kind].run(attributes, inputs, results)
    return [result.tolist() for result in results]


def ints(*values: Any) -> Array:
    return np.array(values, np.int64)


# --- gathers --------------------------------------------------------------------------------------------------------


def test_gather_elements_replaces_the_place_along_its_axis() -> None:
    x = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], F32)
    assert outputs(CommandKind.GATHER_ELEMENTS, [x, ints([1, 2, 0], [2, 0, -3])]) == [[[4, 8, 3], [7, 2, 3]]]
    assert outputs(CommandKind.GATHER_ELEMENTS, [x, ints([-1], [0])], axis=1) == [[[3], [4]]]


def test_gather_nd_takes_elements_and_slices() -> None:
    x = np.array([[[0, 1], [2, 3]], [[4, 5], [6, 7]]], np.int8)
    assert outputs(CommandKind.GATHER_ND, [x, ints([0, 1, -1], [-1, 0, 0])]) == [[3, 4]]
    assert outputs(CommandKind.GATHER_ND, [x, ints([0, 1], [1, 0])]) == [[[2, 3], [4, 5]]]
    assert outputs(CommandKind.GATHER_ND, [x, ints([1], [0])], batch_dims=1) == [[[2, 3], [4, 5]]]


@pytest.mark.parametrize("kind", [CommandKind.GATHER_ELEMENTS, CommandKind.GATHER_ND])
@pytest.mark.parametrize("index", [3, -4, (1 << 31) - 1])
def test_a_gather_index_out_of_range_is_a_fault(kind: CommandKind, index: int) -> None:
    with pytest.raises(KernelFault) as caught:
        outputs(kind, [np.ones(3, F32), ints(index)])
    assert caught.value.status is Status.INDEX_OUT_OF_RANGE


# --- scatters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        (ScatterReduction.NONE, [2, 4, 5]),
        (ScatterReduction.ADD, [2, 12, 8]),
        (ScatterReduction.MUL, [2, 48, 15]),
        (ScatterReduction.MAX, [2, 6, 5]),
        (ScatterReduction.MIN, [2, 2, 3]),
    ],
)
@pytest.mark.parametrize("dtype", [F32, np.float16, ml_dtypes.bfloat16, np.int8, np.int64])
def test_scatters_combine_several_updates_of_one_element(reduction: int, expected: list[int], dtype: Any) -> None:
    data, updates = np.array([2, 2, 3], dtype), np.array([6, 5, 4], dtype)
    fields = {"reduction": reduction}
    assert outputs(CommandKind.SCATTER_ELEMENTS, [data, ints(1, 2, -2), updates], **fields) == [expected]
    assert outputs(CommandKind.SCATTER_ND, [data, ints([1], [2], [-2]), updates], **fields) == [expected]


def test_scatter_elements_along_an_axis() -> None:
    data, updates = np.zeros((2, 3), np.int32), np.array([[1], [2]], np.int32)
    assert outputs(CommandKind.SCATTER_ELEMENTS, [data, ints([2], [0]), updates], axis=1) == [[[0, 0, 1], [2, 0, 0]]]


def test_scatter_nd_of_slices() -> None:
    data, updates = np.zeros((3, 2), np.int32), np.array([[1, 2], [3, 4]], np.int32)
    assert outputs(CommandKind.SCATTER_ND, [data, ints([2], [0]), updates]) == [[[3, 4], [0, 0], [1, 2]]]


def test_scattered_bools_are_stored_but_not_combined() -> None:
    data, updates = np.array([True, True]), np.array([False])
    assert outputs(CommandKind.SCATTER_ELEMENTS, [data, ints(1), updates]) == [[True, False]]
    with pytest.raises(SemanticError, match="bool"):
        outputs(CommandKind.SCATTER_ELEMENTS, [data, ints(1), updates], reduction=ScatterReduction.MAX)


@pytest.mark.parametrize("kind", [CommandKind.SCATTER_ELEMENTS, CommandKind.SCATTER_ND])
def test_a_scatter_index_out_of_range_is_a_fault(kind: CommandKind) -> None:
    index = ints(3) if kind is CommandKind.SCATTER_ELEMENTS else ints([3])
    with pytest.raises(KernelFault) as caught:
        outputs(kind, [np.ones(3, F32), index, np.ones(1, F32)])
    assert caught.value.status is Status.INDEX_OUT_OF_RANGE


# --- TopK -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int64])
def test_topk_gives_equal_elements_by_their_place(dtype: Any) -> None:
    x = np.array([1, 7, 0, 7, 1], dtype)
    assert outputs(CommandKind.TOP_K, [x], k=4, largest=1) == [[7, 7, 1, 1], [1, 3, 0, 4]]
    assert outputs(CommandKind.TOP_K, [x], k=3, largest=0) == [[0, 1, 1], [2, 0, 4]]


def test_topk_of_extremes_and_nan() -> None:
    x = np.array([math.inf, math.nan, -math.inf, 0], F32)
    values, indices = outputs(CommandKind.TOP_K, [x], k=4, largest=1)
    assert indices == [1, 0, 3, 2] and math.isnan(values[0])
    least = np.array([-128, 127], np.int8)
    assert outputs(CommandKind.TOP_K, [least], k=1, largest=1) == [[127], [1]]


def test_topk_along_the_first_dimension_and_of_none() -> None:
    x = np.array([[1, 9], [5, 2]], np.int32)
    assert outputs(CommandKind.TOP_K, [x], k=1, largest=1) == [[[5, 9]], [[1, 0]]]
    assert outputs(CommandKind.TOP_K, [x], k=0, largest=1) == [[], []]
    with pytest.raises(SemanticError, match="3 of 2 elements"):
        outputs(CommandKind.TOP_K, [x], k=3)


# --- running sums, determinants, bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exclusive", "reverse", "sums", "products"),
    [
        (0, 0, [2, 5, 9], [2, 6, 24]),
        (1, 0, [0, 2, 5], [1, 2, 6]),
        (0, 1, [9, 7, 4], [24, 12, 4]),
        (1, 1, [7, 4, 0], [12, 4, 1]),
    ],
)
@pytest.mark.parametrize("dtype", [F32, np.float16, np.int32, np.int64])
def test_cumulate(exclusive: int, reverse: int, sums: list[int], products: list[int], dtype: Any) -> None:
    x, flags = np.array([2, 3, 4], dtype), {"exclusive": exclusive, "reverse": reverse}
    assert outputs(CommandKind.CUMULATE, [x], function=CumulateFunction.SUM, **flags) == [sums]
    assert outputs(CommandKind.CUMULATE, [x], function=CumulateFunction.PROD, **flags) == [products]


def test_cumulate_wraps_in_its_type_and_rounds_once() -> None:
    assert outputs(CommandKind.CUMULATE, [np.array([100, 100], np.int8)], function=CumulateFunction.SUM) == [[100, -56]]
    small = np.array([1, *[2**-9] * 4], ml_dtypes.bfloat16)  # a bfloat16 sum would lose each of the small ones
    assert outputs(CommandKind.CUMULATE, [small], function=CumulateFunction.SUM)[0][-1] == 1 + 2**-7


def test_determinant() -> None:
    x = np.array([[[1, 2], [3, 4]], [[2, 0], [0, 2]]], F32)
    np.testing.assert_allclose(outputs(CommandKind.DETERMINANT, [x])[0], [-2, 4], rtol=1e-6)
    assert outputs(CommandKind.DETERMINANT, [np.zeros((1, 0, 0), F32)]) == [[1]]
    with pytest.raises(SemanticError, match="square"):
        outputs(CommandKind.DETERMINANT, [np.zeros((2, 3), F32)])


def test_bitcast() -> None:
    x = np.array([1, -2], F32)
    assert outputs(CommandKind.BITCAST, [x], dtype=WireType.INT32) == [[0x3F80_0000, -0x4000_0000]]
    assert outputs(CommandKind.BITCAST, [np.array(-1, np.int8)], dtype=WireType.UINT8) == [255]
    assert outputs(CommandKind.BITCAST, [np.array([0, 1, 2], np.int8)], dtype=WireType.BOOL) == [[False, True, True]]
    with pytest.raises(SemanticError, match="as wide as"):
        outputs(CommandKind.BITCAST, [np.zeros(2, F32)], dtype=WireType.INT64)


# --- element-wise, reductions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "a", "b", "expected"),
    [
        (BinaryFunction.MOD, [7, -7, 7, -7], [3, 3, -3, -3], [1, 2, -2, -1]),
        (BinaryFunction.FMOD, [7, -7, 7, -7], [3, 3, -3, -3], [1, -1, 1, -1]),
        (BinaryFunction.SHIFT_LEFT, [1, -1, 1, 64], [1, 3, -1, 1], [2, -8, 0, -128]),
        (BinaryFunction.SHIFT_RIGHT, [7, -7, -7, 7], [1, 1, 8, -1], [3, -4, -1, 0]),
        (BinaryFunction.BITWISE_AND, [6, -1, 0, 5], [3, 9, 7, 1], [2, 9, 0, 1]),
        (BinaryFunction.BITWISE_OR, [6, -1, 0, 5], [3, 9, 7, 2], [7, -1, 7, 7]),
        (BinaryFunction.BITWISE_XOR, [6, -1, 0, 5], [3, 9, 7, 1], [5, -10, 7, 4]),
        (BinaryFunction.POW, [3, -2, -1, 5], [4, 3, -3, -1], [81, -8, -1, 0]),
        (BinaryFunction.POW, [2, 2, 1, 0], [7, 8, -9, 0], [-128, 0, 1, 1]),
    ],
)
def test_binary_of_int8(function: BinaryFunction, a: list[int], b: list[int], expected: list[int]) -> None:
    operands = [np.array(a, np.int8), np.array(b, np.int8)]
    assert outputs(CommandKind.BINARY, operands, function=function) == [expected]


@pytest.mark.parametrize("function", [BinaryFunction.MOD, BinaryFunction.FMOD])
def test_a_remainder_of_a_division_by_zero_is_a_fault_of_integers_and_nan_of_floats(function: BinaryFunction) -> None:
    with pytest.raises(KernelFault) as caught:
        outputs(CommandKind.BINARY, [ints(1), ints(0)], function=function)
    assert caught.value.status is Status.DIVISION_BY_ZERO
    real = [np.array([1], F32), np.array([0], F32)]
    assert math.isnan(outputs(CommandKind.BINARY, real, function=function)[0][0])


def test_a_negative_power_of_zero_is_a_fault_of_integers() -> None:
    with pytest.raises(KernelFault) as caught:
        outputs(CommandKind.BINARY, [ints(0), ints(-1)], function=BinaryFunction.POW)
    assert caught.value.status is Status.DIVISION_BY_ZERO


@pytest.mark.parametrize("function", [BinaryFunction.BITWISE_AND, BinaryFunction.SHIFT_LEFT])
def test_bits_of_floats_are_refused(function: BinaryFunction) -> None:
    with pytest.raises(SemanticError, match="float32"):
        outputs(CommandKind.BINARY, [np.ones(1, F32), np.ones(1, F32)], function=function)


@pytest.mark.parametrize("dtype", [F32, np.float16, ml_dtypes.bfloat16])
def test_tests_of_floats_give_bool(dtype: Any) -> None:
    x = np.array([math.nan, math.inf, -math.inf, 1], dtype)
    assert outputs(CommandKind.UNARY, [x], function=UnaryFunction.IS_NAN) == [[True, False, False, False]]
    for negative, positive in ((1, 1), (1, 0), (0, 1), (0, 0)):
        fields = {"function": UnaryFunction.IS_INF, "alpha": negative, "beta": positive}
        assert outputs(CommandKind.UNARY, [x], **fields) == [[False, bool(positive), bool(negative), False]]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (UnaryFunction.TAN, math.tan),
        (UnaryFunction.ASIN, math.asin),
        (UnaryFunction.ACOS, math.acos),
        (UnaryFunction.ATAN, math.atan),
        (UnaryFunction.SINH, math.sinh),
        (UnaryFunction.COSH, math.cosh),
        (UnaryFunction.ASINH, math.asinh),
        (UnaryFunction.ATANH, math.atanh),
    ],
)
def test_trigonometry(function: UnaryFunction, expected: Any) -> None:
    x = [-0.75, 0.0, 0.5]
    np.testing.assert_allclose(
        outputs(CommandKind.UNARY, [np.array(x, F32)], function=function)[0], list(map(expected, x)), rtol=1e-6
    )


def test_acosh_and_shrink_and_bitwise_not() -> None:
    x = np.array([1, 2], F32)
    near = outputs(CommandKind.UNARY, [x], function=UnaryFunction.ACOSH)[0]
    np.testing.assert_allclose(near, [0, math.acosh(2)], rtol=1e-6)
    x = np.array([-2, -0.5, 0.5, 2], F32)
    fields = {"function": UnaryFunction.SHRINK, "alpha": 0.5, "beta": 0.25}
    assert outputs(CommandKind.UNARY, [x], **fields) == [[-1.75, 0, 0, 1.75]]
    assert outputs(CommandKind.UNARY, [np.array([0, 5], np.uint8)], function=UnaryFunction.BITWISE_NOT) == [[255, 250]]


@pytest.mark.parametrize(
    ("function", "expected", "nothing"),
    [
        (ReduceFunction.SUM, -6, 0),
        (ReduceFunction.PROD, 0, 1),
        (ReduceFunction.MEAN, -1, 0),
        (ReduceFunction.MAX, 3, -(1 << 31)),
        (ReduceFunction.MIN, -9, (1 << 31) - 1),
        (ReduceFunction.SUM_SQUARE, 90, 0),
        (ReduceFunction.L1, 12, 0),
        (ReduceFunction.L2, 9, 0),
        (ReduceFunction.LOG_SUM_EXP, 3, -(1 << 31)),
    ],
)
def test_reductions_of_integers_and_of_none(function: ReduceFunction, expected: int, nothing: int) -> None:
    x, fields = np.array([[-9, 3, 0, 0]], np.int32), {"function": function, "axes": 0b10}
    assert outputs(CommandKind.REDUCE, [x], **fields) == [[expected]]
    assert outputs(CommandKind.REDUCE, [x[:, :0]], **fields) == [[nothing]]


def test_reductions_of_no_floats() -> None:
    none = np.zeros((0, 2), F32)
    expected = {
        ReduceFunction.SUM: 0,
        ReduceFunction.PROD: 1,
        ReduceFunction.MEAN: math.nan,
        ReduceFunction.MAX: -math.inf,
        ReduceFunction.MIN: math.inf,
        ReduceFunction.SUM_SQUARE: 0,
        ReduceFunction.L1: 0,
        ReduceFunction.L2: 0,
        ReduceFunction.LOG_SUM_EXP: -math.inf,
    }
    for function, value in expected.items():
        found = outputs(CommandKind.REDUCE, [none], function=function, axes=1, keep=1)
        np.testing.assert_array_equal(found, [[[value, value]]])


def test_extremes_of_bools() -> None:
    x, axes = np.array([[True, False], [False, False]]), {"axes": 0b10}
    assert outputs(CommandKind.REDUCE, [x], function=ReduceFunction.MAX, **axes) == [[True, False]]
    assert outputs(CommandKind.REDUCE, [x], function=ReduceFunction.MIN, **axes) == [[False, False]]
    assert outputs(CommandKind.REDUCE, [x[:, :0]], function=ReduceFunction.MIN, **axes) == [[True, True]]
    with pytest.raises(SemanticError, match="bool"):
        outputs(CommandKind.REDUCE, [x], function=ReduceFunction.SUM)


def test_products_of_integers_have_neither_factors_nor_an_activation() -> None:
    a, b, bias = np.array([[1, 2], [3, 4]], np.int32), np.array([[5, 6], [7, 8]], np.int32), np.array([1, 2], np.int32)
    assert outputs(CommandKind.MATMUL, [a, b, bias], alpha=1, beta=1) == [[[20, 24], [44, 52]]]
    large = np.array([[1 << 30]], np.int32)
    assert outputs(CommandKind.MATMUL, [large, large * 0 + 2], alpha=1) == [[[-(1 << 31)]]]
    with pytest.raises(SemanticError, match="neither factors"):
        outputs(CommandKind.MATMUL, [a, b], alpha=0.5)


def test_pad_goes_on_at_the_other_end() -> None:
    fields = {"mode": PadMode.WRAP, "begins": [2, *[0] * 7], "ends": [4, *[0] * 7]}
    assert outputs(CommandKind.PAD, [ints(1, 2, 3)], **fields) == [[2, 3, 1, 2, 3, 1, 2, 3, 1]]
