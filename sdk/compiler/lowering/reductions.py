"""Reductions, ArgMax and Softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

from driver_shim.protocol.program_commands import ArgumentFunction, CommandKind, ReduceFunction, UnaryFunction
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Builder, Value
from sdk.compiler.lowering.elementwise import cast, unary

_AXES_ARE_INPUT_SINCE = {"ReduceSum": 13}
_OTHERS_SINCE = 18
_SOFTMAX_ALONG_AXIS_SINCE = 13

_REDUCE = {
    "ReduceSum": ReduceFunction.SUM,
    "ReduceMean": ReduceFunction.MEAN,
    "ReduceMax": ReduceFunction.MAX,
    "ReduceMin": ReduceFunction.MIN,
    "ReduceSumSquare": ReduceFunction.SUM_SQUARE,
    "ReduceL1": ReduceFunction.L1,
    "ReduceL2": ReduceFunction.L2,
    "ReduceLogSumExp": ReduceFunction.LOG_SUM_EXP,
    "ReduceProd": ReduceFunction.PROD,
}


def reduced(builder: Builder, function: ReduceFunction, x: Value, axes: Sequence[int], *, keep: bool = True) -> Value:
    """A reduction over axes that are counted from 0; `keep` keeps them, as ones."""
    mask = sum(1 << axis for axis in axes)
    return builder.emit(CommandKind.REDUCE, [x], function=function, axes=mask, keep=int(keep))


def _reduce_log_sum(node: NodeContext) -> Sequence[Value]:
    """ReduceLogSum: the logarithm of the sum; of integers by way of float32."""
    (total,) = _reduce(ReduceFunction.SUM)(node)
    real = cast(node.builder, total, WireType.FLOAT32) if not total.dtype.is_float else total
    return [cast(node.builder, unary(node.builder, UnaryFunction.LOG, real), total.dtype)]


def _reduce(function: ReduceFunction) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        x = node.value(0)
        rank = len(x.shape)
        if node.since >= _AXES_ARE_INPUT_SINCE.get(node.op, _OTHERS_SINCE):
            axes = node.constant_ints(1, "axes")
        else:
            axes = node.attribute("axes")
        if not axes:
            axes = [] if node.attribute("noop_with_empty_axes", 0) else list(range(rank))
        axes = node.axes(axes, rank)
        return [reduced(node.builder, function, x, axes, keep=bool(node.attribute("keepdims", 1)))]

    return lower


def _argument(function: ArgumentFunction) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        x = node.value(0)
        axis = node.axis(node.attribute("axis", 0), len(x.shape))
        flags = {
            "keep": int(bool(node.attribute("keepdims", 1))),
            "select_last": int(bool(node.attribute("select_last_index", 0))),
        }
        return [node.builder.emit(CommandKind.ARGUMENT, [x], function=function, axis=axis, **flags)]

    return lower


def _softmax(*, logarithm: bool) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        x = node.value(0)
        rank = len(x.shape)
        builder = node.builder
        along_axis = node.since >= _SOFTMAX_ALONG_AXIS_SINCE
        axis = node.axis(node.attribute("axis", -1 if along_axis else 1), rank)
        if along_axis or axis == rank - 1:
            return [builder.emit(CommandKind.SOFTMAX, [x], axis=axis, logarithm=int(logarithm))]
        # Softmax before opset 13 works on a matrix: all dimensions from `axis` on are one.
        matrix = builder.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
        result = builder.emit(CommandKind.SOFTMAX, [matrix], axis=1, logarithm=int(logarithm))
        return [builder.reshape(result, x.shape)]

    return lower


LOWERINGS: dict[str, Lowering] = {
    **{name: _reduce(function) for name, function in _REDUCE.items()},
    "ReduceLogSum": _reduce_log_sum,
    "ArgMax": _argument(ArgumentFunction.MAX),
    "ArgMin": _argument(ArgumentFunction.MIN),
    "Softmax": _softmax(logarithm=False),
    "LogSoftmax": _softmax(logarithm=True),
}
