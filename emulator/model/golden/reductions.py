"""Reductions along axes: sums, extremes, norms, ArgMax, Softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program_commands import MAX_RANK, ArgumentFunction, ReduceFunction
from emulator.model.golden.common import Array, is_float, required, widen

_Axes = tuple[int, ...]

_REDUCE: dict[ReduceFunction, Callable[[Array, _Axes], Any]] = {
    ReduceFunction.SUM: lambda x, axes: np.sum(x, axes, dtype=_sum_type(x)),
    ReduceFunction.MEAN: lambda x, axes: np.mean(x, axes, dtype=np.float32),
    ReduceFunction.MAX: lambda x, axes: np.max(x, axes),
    ReduceFunction.MIN: lambda x, axes: np.min(x, axes),
    ReduceFunction.SUM_SQUARE: lambda x, axes: np.sum(np.square(x), axes),
    ReduceFunction.L1: lambda x, axes: np.sum(np.abs(x), axes),
    ReduceFunction.L2: lambda x, axes: np.sqrt(np.sum(np.square(x), axes)),
    ReduceFunction.LOG_SUM_EXP: lambda x, axes: _log_sum_exp(x, axes),
}


def axes_of(mask: int) -> _Axes:
    """The dimensions that a REDUCE mask names."""
    return tuple(i for i in range(MAX_RANK) if mask >> i & 1)


def reduce(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceSumSquare, ReduceL1, ReduceL2, ReduceLogSumExp (opset 18).

    Reduced dimensions are 1 or gone, as the output's shape says. No axes: element-wise. Integer sums wrap.
    """
    x = widen(required(inputs, 0))
    result = _REDUCE[ReduceFunction(attributes.function)](x, axes_of(attributes.axes))
    outputs[0][...] = result.reshape(outputs[0].shape)


def _sum_type(x: Array) -> type[Any]:
    return np.float32 if is_float(x) else np.int64


def _log_sum_exp(x: Array, axes: _Axes) -> Any:
    # The shift keeps exp() in range; an infinite maximum must not become inf - inf.
    peak = np.max(x, axes, keepdims=True)
    shift = np.where(np.isfinite(peak), peak, np.float32(0))
    return np.log(np.sum(np.exp(x - shift), axes)) + shift.reshape(np.sum(x, axes).shape)


def argument(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """ArgMax, ArgMin (opset 13): the first index of the extreme along `axis`, the last with `select_last`."""
    x, axis = widen(required(inputs, 0)), attributes.axis
    find = np.argmax if attributes.function == ArgumentFunction.MAX else np.argmin
    index = x.shape[axis] - 1 - find(np.flip(x, axis), axis) if attributes.select_last else find(x, axis)
    outputs[0][...] = np.reshape(index, outputs[0].shape)


def softmax(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """Softmax, LogSoftmax (opset 13): exp(x) / Σ exp(x) along `axis`, shifted by the maximum."""
    x, axis = widen(required(inputs, 0)), attributes.axis
    shifted = x - np.max(x, axis, keepdims=True)
    powers = np.exp(shifted)
    sums = np.sum(powers, axis, keepdims=True)
    outputs[0][...] = shifted - np.log(sums) if attributes.logarithm else powers / sums
