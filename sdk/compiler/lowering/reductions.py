"""Reductions, ArgMax and Softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from driver_shim.protocol.program_commands import ArgumentFunction, CommandKind, ReduceFunction, UnaryFunction
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Builder, Value
from sdk.compiler.lowering.elementwise import cast, unary

_AXES_ARE_INPUT_SINCE = {"ReduceSum": 13}
_OTHERS_SINCE = 18
SOFTMAX_ALONG_AXIS_SINCE = 13
"""Of Softmax and its relatives, which before worked on matrices."""

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
NORMS = {1: ReduceFunction.L1, 2: ReduceFunction.L2}
"""By p: those that are one command."""


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
        def softmax(data: Value, axis: int) -> Value:
            return node.builder.emit(CommandKind.SOFTMAX, [data], axis=axis, logarithm=int(logarithm))

        along_axis = node.since >= SOFTMAX_ALONG_AXIS_SINCE
        return [by_axis_or_matrix(node, node.value(0), softmax, along_axis=along_axis)]

    return lower


def by_axis_or_matrix(
    node: NodeContext, x: Value, function: Callable[[Value, int], Value], *, along_axis: bool
) -> Value:
    """A function of data and an axis along the node's one, or, as before opset 13, with all from there on as one."""
    rank, builder = len(x.shape), node.builder
    axis = node.axis(node.attribute("axis", -1 if along_axis else 1), rank)
    if along_axis or axis == rank - 1:
        return function(x, axis)
    matrix = builder.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
    return builder.reshape(function(matrix, 1), x.shape)


LOWERINGS: dict[str, Lowering] = {
    **{name: _reduce(function) for name, function in _REDUCE.items()},
    "ReduceLogSum": _reduce_log_sum,
    "ArgMax": _argument(ArgumentFunction.MAX),
    "ArgMin": _argument(ArgumentFunction.MIN),
    "Softmax": _softmax(logarithm=False),
    "LogSoftmax": _softmax(logarithm=True),
}
