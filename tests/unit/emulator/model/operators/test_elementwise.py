"""Element-wise commands, reductions and movement against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program_commands import (
    ArgumentFunction,
    BinaryFunction,
    CommandKind,
    PadMode,
    ReduceFunction,
    UnaryFunction,
)
from driver_shim.protocol.types import WireType
from emulator.model.operators import KernelFault
from emulator.model.operators.shapes import SemanticError
from tests.support.programs import golden

F32 = np.float32
X = np.array([-2.5, -0.5, 0, 0.5, 1.5], F32)


def unary(function: UnaryFunction, x: NDArray[Any] = X, **fields: float) -> list[Any]:
    result: list[Any] = golden(CommandKind.UNARY, [x], x.shape, x.dtype, function=function, **fields).tolist()
    return result


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (UnaryFunction.ABS, [2.5, 0.5, 0, 0.5, 1.5]),
        (UnaryFunction.NEG, [2.5, 0.5, 0, -0.5, -1.5]),
        (UnaryFunction.SIGN, [-1, -1, 0, 1, 1]),
        (UnaryFunction.FLOOR, [-3, -1, 0, 0, 1]),
        (UnaryFunction.CEIL, [-2, 0, 0, 1, 2]),
        (UnaryFunction.ROUND, [-2, 0, 0, 0, 2]),
        (UnaryFunction.RELU, [0, 0, 0, 0.5, 1.5]),
        (UnaryFunction.EXP, [math.exp(v) for v in X.tolist()]),
        (UnaryFunction.TANH, [math.tanh(v) for v in X.tolist()]),
        (UnaryFunction.SIGMOID, [1 / (1 + math.exp(-v)) for v in X.tolist()]),
        (UnaryFunction.ERF, [math.erf(v) for v in X.tolist()]),
        (UnaryFunction.SOFTPLUS, [math.log1p(math.exp(v)) for v in X.tolist()]),
        (UnaryFunction.SIN, [math.sin(v) for v in X.tolist()]),
        (UnaryFunction.COS, [math.cos(v) for v in X.tolist()]),
        (UnaryFunction.GELU, [v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in X.tolist()]),
        (UnaryFunction.HARD_SWISH, [-2.5 * 0.5 / 6, -0.5 * 2.5 / 6, 0, 0.5 * 3.5 / 6, 1.5 * 4.5 / 6]),
        (UnaryFunction.MISH, [v * math.tanh(math.log1p(math.exp(v))) for v in X.tolist()]),
        (UnaryFunction.SOFTSIGN, [-2.5 / 3.5, -0.5 / 1.5, 0, 0.5 / 1.5, 1.5 / 2.5]),
    ],
)
def test_unary(function: UnaryFunction, expected: list[float]) -> None:
    np.testing.assert_allclose(unary(function), expected, rtol=1e-6)


def test_unary_with_parameters() -> None:
    assert unary(UnaryFunction.LEAKY_RELU, alpha=0.5) == [-1.25, -0.25, 0, 0.5, 1.5]
    assert unary(UnaryFunction.CLIP, alpha=-1, beta=1) == [-1, -0.5, 0, 0.5, 1]
    assert unary(UnaryFunction.HARD_SIGMOID, alpha=0.5, beta=0.5) == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(
        unary(UnaryFunction.ELU, alpha=2), [2 * math.expm1(-2.5), 2 * math.expm1(-0.5), 0, 0.5, 1.5], rtol=1e-6
    )


def test_gated_functions_with_parameters() -> None:
    assert unary(UnaryFunction.THRESHOLDED_RELU, alpha=0.5) == [0, 0, 0, 0, 1.5]
    swish = [v / (1 + math.exp(-2 * v)) for v in X.tolist()]
    np.testing.assert_allclose(unary(UnaryFunction.SWISH, alpha=2), swish, rtol=1e-6)
    by_tanh = [v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in X.tolist()]
    np.testing.assert_allclose(unary(UnaryFunction.GELU_TANH), by_tanh, rtol=1e-5)
    selu = [3 * 2 * math.expm1(-2.5), 3 * 2 * math.expm1(-0.5), 0, 1.5, 4.5]
    np.testing.assert_allclose(unary(UnaryFunction.SELU, alpha=2, beta=3), selu, rtol=1e-6)
    celu = [2 * math.expm1(-1.25), 2 * math.expm1(-0.25), 0, 0.5, 1.5]
    np.testing.assert_allclose(unary(UnaryFunction.CELU, alpha=2), celu, rtol=1e-6)


def test_unary_of_positive_numbers() -> None:
    x = np.array([0.25, 1, 4], F32)
    assert unary(UnaryFunction.SQRT, x) == [0.5, 1, 2]
    assert unary(UnaryFunction.RECIPROCAL, x) == [4, 1, 0.25]
    np.testing.assert_allclose(unary(UnaryFunction.LOG, x), [math.log(0.25), 0, math.log(4)], rtol=1e-6)


def test_unary_of_integers_and_bools() -> None:
    assert unary(UnaryFunction.ABS, np.array([-3, 4], np.int32)) == [3, 4]
    assert unary(UnaryFunction.RELU, np.array([-3, 4], np.int8)) == [0, 4]
    assert unary(UnaryFunction.NOT, np.array([True, False])) == [False, True]
    with pytest.raises(SemanticError):
        unary(UnaryFunction.EXP, np.array([1], np.int32))


def test_sigmoid_of_huge_numbers_is_exact() -> None:
    assert unary(UnaryFunction.SIGMOID, np.array([-1000, 1000], F32)) == [0, 1]


@pytest.mark.parametrize("kind", [WireType.FLOAT16, WireType.BFLOAT16])
def test_narrow_floats_are_computed_in_float32(kind: WireType) -> None:
    x = np.array([0.1, 1, 3], kind.dtype)
    expected = np.exp(x.astype(F32)).astype(kind.dtype)
    assert unary(UnaryFunction.EXP, x) == expected.tolist()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (BinaryFunction.ADD, [4, -5]),
        (BinaryFunction.SUB, [10, -9]),
        (BinaryFunction.MUL, [-21, -14]),
        (BinaryFunction.MIN, [-3, -7]),
        (BinaryFunction.MAX, [7, 2]),
        (BinaryFunction.PRELU, [7, -14]),
        (BinaryFunction.DIV, [-2, -3]),
        (BinaryFunction.EQUAL, [False, False]),
        (BinaryFunction.LESS, [False, True]),
        (BinaryFunction.LESS_OR_EQUAL, [False, True]),
        (BinaryFunction.GREATER, [True, False]),
        (BinaryFunction.GREATER_OR_EQUAL, [True, False]),
    ],
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int16])
def test_binary_of_integers(function: BinaryFunction, expected: list[Any], dtype: Any) -> None:
    a, b = np.array([7, -7], dtype), np.array([-3, 2], dtype)
    result_type = np.bool_ if isinstance(expected[0], bool) else dtype
    result = golden(CommandKind.BINARY, [a, b], (2,), result_type, function=function)
    assert result.tolist() == expected


def test_binary_broadcasts() -> None:
    a, b = np.array([[1], [2]], F32), np.array([10, 20, 30], F32)
    result = golden(CommandKind.BINARY, [a, b], (2, 3), F32, function=BinaryFunction.ADD)
    assert result.tolist() == [[11, 21, 31], [12, 22, 32]]


def test_binary_of_floats_and_bools() -> None:
    a, b = np.array([2, 9], F32), np.array([3, 0.5], F32)
    assert golden(CommandKind.BINARY, [a, b], (2,), F32, function=BinaryFunction.POW).tolist() == [8, 3]
    assert golden(CommandKind.BINARY, [a, a * 0], (2,), F32, function=BinaryFunction.DIV).tolist() == [math.inf] * 2
    p, q = np.array([True, True, False, False]), np.array([True, False, True, False])
    tables = {BinaryFunction.AND: [1, 0, 0, 0], BinaryFunction.OR: [1, 1, 1, 0], BinaryFunction.XOR: [0, 1, 1, 0]}
    for function, expected in tables.items():
        assert golden(CommandKind.BINARY, [p, q], (4,), np.bool_, function=function).tolist() == expected


def test_integer_division_by_zero_is_a_fault() -> None:
    a = np.array([1], np.int32)
    with pytest.raises(KernelFault) as caught:
        golden(CommandKind.BINARY, [a, a * 0], (1,), np.int32, function=BinaryFunction.DIV)
    assert caught.value.status is Status.DIVISION_BY_ZERO


def test_int32_sums_wrap() -> None:
    a = np.array([(1 << 31) - 1], np.int32)
    result = golden(CommandKind.BINARY, [a, np.ones(1, np.int32)], (1,), np.int32, function=BinaryFunction.ADD)
    assert result.tolist() == [-(1 << 31)]


def test_where() -> None:
    condition = np.array([[True], [False]])
    result = golden(CommandKind.WHERE, [condition, np.array([1, 2], F32), np.array(0, F32)], (2, 2), F32)
    assert result.tolist() == [[1, 2], [0, 0]]


@pytest.mark.parametrize(
    ("source", "target", "values", "expected"),
    [
        (np.float32, np.int32, [1.9, -1.9, 3e9, -3e9, math.nan], [1, -1, (1 << 31) - 1, -(1 << 31), 0]),
        (np.float32, np.uint8, [-1, 255.9, 300], [0, 255, 255]),
        (np.int32, np.int8, [127, 128, -129, 256], [127, -128, 127, 0]),
        (np.int64, np.int32, [5, -5], [5, -5]),
        (np.float32, np.bool_, [0, 0.5, math.nan], [False, True, True]),
        (np.bool_, np.float32, [True, False], [1, 0]),
        (np.float32, np.float16, [1 + 2**-11, 1 + 3 * 2**-11, 1e9], [1, 1 + 2**-9, math.inf]),
        (np.float32, np.int64, [2147483520, -2147483648], [2147483520, -2147483648]),
    ],
)
def test_cast(source: Any, target: Any, values: list[Any], expected: list[Any]) -> None:
    assert golden(CommandKind.CAST, [np.array(values, source)], (len(values),), target).tolist() == expected


@pytest.mark.parametrize("value", [2147483648.0, math.nan, math.inf, -1e30])
def test_a_cast_to_int64_that_does_not_fit_is_a_fault(value: float) -> None:
    with pytest.raises(KernelFault) as caught:
        golden(CommandKind.CAST, [np.array([value], F32)], (1,), np.int64)
    assert caught.value.status is Status.VALUE_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (ReduceFunction.SUM, [2, 10]),
        (ReduceFunction.MEAN, [2 / 3, 10 / 3]),
        (ReduceFunction.MAX, [3, 5]),
        (ReduceFunction.MIN, [-2, 1]),
        (ReduceFunction.SUM_SQUARE, [14, 42]),
        (ReduceFunction.L1, [6, 10]),
        (ReduceFunction.L2, [math.sqrt(14), math.sqrt(42)]),
        (ReduceFunction.LOG_SUM_EXP, [math.log(sum(map(math.exp, r))) for r in ([1, -2, 3], [4, 5, 1])]),
    ],
)
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_reduce(function: ReduceFunction, expected: list[float], shape: tuple[int, ...]) -> None:
    x = np.array([[1, -2, 3], [4, 5, 1]], F32)
    result = golden(CommandKind.REDUCE, [x], shape, F32, function=function, axes=0b10)
    np.testing.assert_allclose(result.reshape(-1), expected, rtol=1e-6)


def test_reduce_all_and_none() -> None:
    x = np.array([[1, 2], [3, 4]], np.int32)
    assert golden(CommandKind.REDUCE, [x], (), np.int32, function=ReduceFunction.SUM, axes=0b11).tolist() == 10
    assert golden(CommandKind.REDUCE, [x], (2, 2), np.int32, function=ReduceFunction.SUM).tolist() == x.tolist()
    with pytest.raises(SemanticError):
        golden(CommandKind.REDUCE, [x], (2, 2), np.int32, function=ReduceFunction.SUM, axes=0b100)


def test_argument() -> None:
    x = np.array([[1, 3, 3], [2, 0, 0]], F32)
    fields = {"function": ArgumentFunction.MAX, "axis": 1}
    assert golden(CommandKind.ARGUMENT, [x], (2,), np.int64, **fields).tolist() == [1, 0]
    assert golden(CommandKind.ARGUMENT, [x], (2, 1), np.int64, select_last=1, **fields).tolist() == [[2], [0]]
    least = {"function": ArgumentFunction.MIN, "axis": 1, "select_last": 1}
    assert golden(CommandKind.ARGUMENT, [x], (2,), np.int64, **least).tolist() == [0, 2]


def test_softmax() -> None:
    x = np.array([[1000, 1000 + math.log(3)], [0, 0]], F32)
    result = golden(CommandKind.SOFTMAX, [x], (2, 2), F32, axis=1)
    np.testing.assert_allclose(result, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-4)
    logarithm = golden(CommandKind.SOFTMAX, [x], (2, 2), F32, axis=1, logarithm=1)
    np.testing.assert_allclose(logarithm, np.log([[0.25, 0.75], [0.5, 0.5]]), rtol=1e-4)


def test_movement() -> None:
    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert golden(CommandKind.COPY, [x], (3, 2), np.int32).tolist() == [[0, 1], [2, 3], [4, 5]]
    turned = golden(CommandKind.TRANSPOSE, [x], (3, 2), np.int32, permutation=[1, 0, *[0] * 6])
    assert turned.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert golden(CommandKind.EXPAND, [x[:, :1].copy()], (2, 2), np.int32).tolist() == [[0, 0], [3, 3]]
    joined = golden(CommandKind.CONCAT, [x, x[:, :1].copy()], (2, 4), np.int32, axis=1)
    assert joined.tolist() == [[0, 1, 2, 0], [3, 4, 5, 3]]


def test_slice_forwards_and_backwards() -> None:
    x = np.arange(12, dtype=np.int32).reshape(3, 4)
    fields = {"starts": [2, 1, *[0] * 6], "steps": [-2, 2, *[0] * 6]}
    assert golden(CommandKind.SLICE, [x], (2, 2), np.int32, **fields).tolist() == [[9, 11], [1, 3]]
    with pytest.raises(SemanticError):
        golden(CommandKind.SLICE, [x], (2, 3), np.int32, **fields)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_gather(dtype: Any) -> None:
    x = np.array([[1, 2], [3, 4], [5, 6]], F32)
    indices = np.array([[2, -3]], dtype)
    assert golden(CommandKind.GATHER, [x, indices], (1, 2, 2), F32, axis=0).tolist() == [[[5, 6], [1, 2]]]


@pytest.mark.parametrize("index", [3, -4, (1 << 31) - 1, -(1 << 31)])
def test_a_gather_index_out_of_range_is_a_fault(index: int) -> None:
    with pytest.raises(KernelFault) as caught:
        golden(CommandKind.GATHER, [np.ones(3, F32), np.array([index], np.int32)], (1,), F32)
    assert caught.value.status is Status.INDEX_OUT_OF_RANGE


def test_pad() -> None:
    x = np.array([1, 2, 3], np.int8)
    fields = {"begins": [2, *[0] * 7], "ends": [1, *[0] * 7]}
    assert golden(CommandKind.PAD, [x], (6,), np.int8, **fields).tolist() == [0, 0, 1, 2, 3, 0]
    value = np.array(9, np.int8)
    assert golden(CommandKind.PAD, [x, value], (6,), np.int8, **fields).tolist() == [9, 9, 1, 2, 3, 9]
    reflected = golden(CommandKind.PAD, [x], (6,), np.int8, mode=PadMode.REFLECT, **fields)
    assert reflected.tolist() == [3, 2, 1, 2, 3, 2]
    edge = golden(CommandKind.PAD, [x], (6,), np.int8, mode=PadMode.EDGE, **fields)
    assert edge.tolist() == [1, 1, 1, 2, 3, 3]
    with pytest.raises(SemanticError):
        golden(CommandKind.PAD, [x], (9,), np.int8, mode=PadMode.REFLECT, begins=[3, *[0] * 7], ends=[3, *[0] * 7])
