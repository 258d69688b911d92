"""Reductions along axes: sums, extremes, norms, ArgMax, Softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import MAX_RANK, ArgumentFunction, CommandKind, ReduceFunction
from driver_shim.protocol.types import FLOATS, INTEGERS, WireType
from emulator.model.operators.arrays import Array, is_float, required, truncated, widen
from emulator.model.operators.operator import Operator, Types, checked_axis, function, given, one_type
from emulator.model.operators.shapes import need, reduced_shape

_Axes = tuple[int, ...]

_REDUCE: dict[ReduceFunction, Callable[[Array, _Axes], Any]] = {
    ReduceFunction.SUM: lambda x, axes: np.sum(x, axes, dtype=_sum_type(x)),
    ReduceFunction.PROD: lambda x, axes: np.prod(x, axes, dtype=_sum_type(x)),
    ReduceFunction.MEAN: lambda x, axes: _mean(x, axes),
    ReduceFunction.MAX: lambda x, axes: np.max(x, axes, initial=_least(x)),
    ReduceFunction.MIN: lambda x, axes: np.min(x, axes, initial=_most(x)),
    ReduceFunction.SUM_SQUARE: lambda x, axes: np.sum(np.square(_wide(x)), axes),
    ReduceFunction.L1: lambda x, axes: np.sum(np.abs(_wide(x)), axes),
    ReduceFunction.L2: lambda x, axes: np.sqrt(np.sum(np.square(_wide(x)), axes)),
    ReduceFunction.LOG_SUM_EXP: lambda x, axes: _log_sum_exp(x if is_float(x) else x.astype(np.float64), axes),
}

_EXTREMES = frozenset({ReduceFunction.MAX, ReduceFunction.MIN})
"""Reductions that take bool too: False is less than True."""


def axes_of(mask: int) -> _Axes:
    """The dimensions that a REDUCE mask names."""
    return tuple(i for i in range(MAX_RANK) if mask >> i & 1)


class Reduce(Operator):
    """REDUCE."""

    kind = CommandKind.REDUCE
    flags = ("keep",)

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        named = function(ReduceFunction, attributes.function)
        x = given(inputs, 0)
        one_type(inputs, frozenset(WireType) if named in _EXTREMES else FLOATS | INTEGERS)
        need(attributes.axes >> len(x.shape) == 0, f"axes mask {attributes.axes:#x} for rank {len(x.shape)}")
        return [TensorType(x.dtype, reduced_shape(x.shape, axes_of(attributes.axes), keep=bool(attributes.keep)))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceProd, ReduceSumSquare, ReduceL1, ReduceL2,
        ReduceLogSumExp (opset 18; of bool, 20).

        Reduced dimensions are 1 or gone, as the output's shape says. No axes: element-wise. Integers: sums and products
        wrap; means, roots and logarithms are rounded towards zero. Of no elements: the sum 0, the product 1, the
        logarithm -infinity, the maximum the least and the minimum the most that the type holds; the mean, which is
        undefined there, NaN, of integers 0.
        """
        x = widen(required(inputs, 0))
        result = np.asarray(_REDUCE[ReduceFunction(attributes.function)](x, axes_of(attributes.axes)))
        if not is_float(x) and is_float(result):
            result = truncated(result, x.dtype)
        outputs[0][...] = result.reshape(outputs[0].shape)


def _sum_type(x: Array) -> type[Any]:
    return np.float32 if is_float(x) else np.int64


def _wide(x: Array) -> Array:
    return x if is_float(x) else x.astype(np.int64)


def _least(x: Array) -> Any:
    if is_float(x):
        return x.dtype.type(-np.inf)
    return np.False_ if x.dtype.kind == "b" else np.iinfo(x.dtype).min


def _most(x: Array) -> Any:
    if is_float(x):
        return x.dtype.type(np.inf)
    return np.True_ if x.dtype.kind == "b" else np.iinfo(x.dtype).max


def _mean(x: Array, axes: _Axes) -> Any:
    total = np.sum(x, axes, dtype=_sum_type(x))
    count = math.prod(x.shape[axis] for axis in axes)
    if is_float(x):
        return np.true_divide(total, count, dtype=np.float32)
    return np.sign(total) * (np.abs(total) // max(count, 1))


def _log_sum_exp(x: Array, axes: _Axes) -> Any:
    # The shift keeps exp() in range; an infinite maximum must not become inf - inf.
    peak = np.max(x, axes, keepdims=True, initial=_least(x))
    shift = np.where(np.isfinite(peak), peak, x.dtype.type(0))
    return np.log(np.sum(np.exp(x - shift), axes)) + shift.reshape(np.sum(x, axes).shape)


class Argument(Operator):
    """ARGUMENT."""

    kind = CommandKind.ARGUMENT
    flags = ("select_last", "keep")

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        function(ArgumentFunction, attributes.function)
        x = given(inputs, 0)
        need(x.dtype is not WireType.BOOL, "bool operands are not possible here")
        axis = checked_axis(attributes.axis, len(x.shape))
        shape = reduced_shape(x.shape, [axis], keep=bool(attributes.keep))
        need(x.shape[axis] > 0 or 0 in shape, f"{x} has no element along dimension {axis}")
        return [TensorType(WireType.INT64, shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """ArgMax, ArgMin (opset 13): the first index of the extreme along `axis`, the last with `select_last`."""
        x, axis = widen(required(inputs, 0)), attributes.axis
        find = np.argmax if attributes.function == ArgumentFunction.MAX else np.argmin
        index = x.shape[axis] - 1 - find(np.flip(x, axis), axis) if attributes.select_last else find(x, axis)
        outputs[0][...] = np.reshape(index, outputs[0].shape)


class Softmax(Operator):
    """SOFTMAX."""

    kind = CommandKind.SOFTMAX
    flags = ("logarithm",)

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        checked_axis(attributes.axis, len(x.shape))
        return [TensorType(one_type(inputs, FLOATS), x.shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Softmax, LogSoftmax (opset 13): exp(x) / Σ exp(x) along `axis`, shifted by the maximum."""
        x, axis = widen(required(inputs, 0)), attributes.axis
        shifted = x - np.max(x, axis, keepdims=True)
        powers = np.exp(shifted)
        sums = np.sum(powers, axis, keepdims=True)
        outputs[0][...] = shifted - np.log(sums) if attributes.logarithm else powers / sums


OPERATORS: tuple[Operator, ...] = (Reduce(), Argument(), Softmax())
