"""Operators that find elements by index, by value or by order: gathers, scatters, TopK, running sums, OneHot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from driver_shim.protocol.program_commands import (
    ArgumentFunction,
    BinaryFunction,
    CommandKind,
    CumulateFunction,
    ScatterMode,
    ScatterReduction,
    UnaryFunction,
)
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext, checked_shape
from sdk.compiler.ir import Builder, DataDependent, Refused, Value
from sdk.compiler.lowering.elementwise import binary, cast, unary
from sdk.compiler.lowering.movement import cut, transposed
from sdk.compiler.lowering.reductions import SOFTMAX_ALONG_AXIS_SINCE, by_axis_or_matrix

_K_IS_INPUT_SINCE = 10


def _gather_elements(node: NodeContext) -> Sequence[Value]:
    data, indices = node.value(0), node.value(1)
    axis = node.axis(node.attribute("axis", 0), len(data.shape))
    return [node.builder.emit(CommandKind.GATHER_ELEMENTS, [data, indices], axis=axis)]


def _gather_nd(node: NodeContext) -> Sequence[Value]:
    batch = node.attribute("batch_dims", 0)
    if batch < 0:
        raise Refused(f"batch_dims is {batch}")
    return [node.builder.emit(CommandKind.GATHER_ND, [node.value(0), node.value(1)], batch_dims=batch)]


def _reduction(node: NodeContext) -> ScatterReduction:
    name = node.attribute("reduction", "none").upper()
    if name not in ScatterReduction.__members__:
        raise Refused(f"reduction {name.lower()!r} is not supported")
    return ScatterReduction[name]


def _scatter_elements(node: NodeContext) -> Sequence[Value]:
    """ScatterElements, and Scatter, as it was called up to opset 10."""
    operands = [node.value(i) for i in range(3)]
    axis = node.axis(node.attribute("axis", 0), len(operands[0].shape))
    return [node.builder.emit(CommandKind.SCATTER_ELEMENTS, operands, axis=axis, reduction=_reduction(node))]


def _scatter_nd(node: NodeContext) -> Sequence[Value]:
    operands = [node.value(i) for i in range(3)]
    return [node.builder.emit(CommandKind.SCATTER_ND, operands, reduction=_reduction(node))]


def _tensor_scatter(node: NodeContext) -> Sequence[Value]:
    past, update = node.value(0), node.value(1)
    mode = node.attribute("mode", "linear").upper()
    if mode not in ScatterMode.__members__:
        raise Refused(f"mode {mode.lower()!r} is not supported")
    axis = node.axis(node.attribute("axis", -2), len(past.shape))
    operands = [past, update, node.optional(2)]
    return [node.builder.emit(CommandKind.TENSOR_SCATTER, operands, axis=axis, mode=ScatterMode[mode])]


def _top_k(node: NodeContext) -> Sequence[Value]:
    """TopK; before opset 10 k is an attribute. Unsorted results may come in any order, so they come sorted."""
    x = node.value(0)
    axis = node.axis(node.attribute("axis", -1), len(x.shape))
    k = [node.attribute("k")] if node.since < _K_IS_INPUT_SINCE else node.constant_ints(1, "k")
    if k is None or len(k) != 1 or k[0] < 0:
        raise Refused(f"k is {k}")
    largest = int(bool(node.attribute("largest", 1)))
    return node.builder.emit_all(CommandKind.TOP_K, [x], 2, axis=axis, k=k[0], largest=largest)


def _cumulate(function: CumulateFunction) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        x, axes = node.value(0), node.constant_ints(1, "axis")
        if axes is None or len(axes) != 1:
            raise Refused(f"axis is {axes}")
        flags = {name: int(bool(node.attribute(name, 0))) for name in ("exclusive", "reverse")}
        axis = node.axis(axes[0], len(x.shape))
        return [node.builder.emit(CommandKind.CUMULATE, [x], function=function, axis=axis, **flags)]

    return lower


def _counted(builder: Builder, extent: int, axis: int, rank: int, dtype: WireType) -> Value:
    """0, 1, 2, … along one axis of `rank`."""
    shape = [extent if i == axis else 1 for i in range(rank)]
    return builder.constant(np.arange(extent).astype(dtype.dtype).reshape(shape))


def _one_hot(node: NodeContext) -> Sequence[Value]:
    """OneHot: where the class is the index, values[1], else values[0]; an index beyond the classes has none."""
    indices, values, builder = node.value(0), node.value(2), node.builder
    rank = len(indices.shape) + 1
    axis = node.axis(node.attribute("axis", -1), rank)
    depth = int(node.constant_float(1, "depth") or 0)
    if values.shape != (2,):
        raise Refused(f"its values are {values.type}, must be two")
    index = cast(builder, indices, WireType.INT32 if indices.dtype.is_float else WireType.INT64)
    index = builder.reshape(index, (*index.shape[:axis], 1, *index.shape[axis:]))
    classes = _counted(builder, checked_shape([depth])[0], axis, rank, index.dtype)
    below = binary(builder, BinaryFunction.LESS, index, builder.scalar(0, index.dtype))
    wrapped = binary(builder, BinaryFunction.ADD, index, builder.scalar(depth, index.dtype))
    index = builder.emit(CommandKind.WHERE, [below, wrapped, index])
    hot = binary(builder, BinaryFunction.EQUAL, index, classes)
    off, on = (builder.reshape(cut(builder, values, [i], [1], [1]), ()) for i in range(2))
    return [builder.emit(CommandKind.WHERE, [hot, on, off])]


def _eye_like(node: NodeContext) -> Sequence[Value]:
    x = node.value(0)
    if len(x.shape) != 2:
        raise Refused(f"{x.type} is no matrix")
    number = node.attribute("dtype")
    dtype = x.dtype if number is None else node.wire_type(number)
    return [node.builder.constant(np.eye(*x.shape, k=node.attribute("k", 0)).astype(dtype.dtype))]


def _swapped(builder: Builder, x: Value) -> Value:
    return transposed(builder, x, [1, 0, *range(2, len(x.shape))])


def _reverse_sequence(node: NodeContext) -> Sequence[Value]:
    """ReverseSequence: of each batch the first `length` steps backwards, gathered by their places."""
    x, lengths, builder = node.value(0), node.value(1), node.builder
    batch_axis, time_axis = node.attribute("batch_axis", 1), node.attribute("time_axis", 0)
    if len(x.shape) < 2 or {batch_axis, time_axis} != {0, 1}:
        raise Refused(f"batch axis {batch_axis} and time axis {time_axis} of {x.type}; they are 0 and 1")
    data = x if batch_axis == 0 else _swapped(builder, x)
    batch, steps = data.shape[:2]
    if lengths.shape != (batch,):
        raise Refused(f"its lengths are {lengths.type} for a batch of {batch}")
    length = builder.reshape(lengths, (batch, 1))
    step = _counted(builder, steps, 1, 2, length.dtype)
    last = binary(builder, BinaryFunction.SUB, length, builder.scalar(1, length.dtype))
    backwards = binary(builder, BinaryFunction.SUB, last, step)
    within = binary(builder, BinaryFunction.LESS, step, length)
    places = builder.reshape(builder.emit(CommandKind.WHERE, [within, backwards, step]), (batch, steps, 1))
    turned = builder.emit(CommandKind.GATHER_ND, [data, places], batch_dims=1)
    return [turned if batch_axis == 0 else _swapped(builder, turned)]


def _non_zero(node: NodeContext) -> Sequence[Value]:
    """NonZero of a constant: how many there are is not known before."""
    x = node.value(0)
    if x.constant is None:
        raise DataDependent(x)
    return [node.builder.constant(np.array(np.nonzero(np.atleast_1d(x.constant)), np.int64))]


def _compress(node: NodeContext) -> Sequence[Value]:
    """Compress by a constant condition: a Gather of what it keeps."""
    x, condition, builder = node.value(0), node.value(1), node.builder
    if condition.constant is None:
        raise DataDependent(condition)
    axis = node.attribute("axis")
    if axis is None:
        x, axis = builder.reshape(x, (math.prod(x.shape),)), 0
    axis = node.axis(axis, len(x.shape))
    kept = np.flatnonzero(condition.constant)
    if kept.size and kept[-1] >= x.shape[axis]:
        raise Refused(f"its condition keeps element {kept[-1]} of {x.shape[axis]}")
    return [builder.emit(CommandKind.GATHER, [x, builder.constant(kept.astype(np.int64))], axis=axis)]


def _unique(node: NodeContext) -> Sequence[Value]:
    """Unique of a constant: values, where each is first, which of them each element is, how often."""
    x = node.value(0)
    if x.constant is None:
        raise DataDependent(x)
    axis = node.attribute("axis")
    data = x.constant if axis is not None else x.constant.reshape(-1)
    axis = node.axis(axis or 0, data.ndim)
    _, first, inverse, counts = np.unique(data, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    order = np.arange(first.size) if node.attribute("sorted", 1) else np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    values = data.take(first[order], axis)
    others = [array.astype(np.int64) for array in (first[order], place[inverse.reshape(-1)], counts[order])]
    return [node.builder.constant(array) for array in (values, *others)]


def _hardmax(node: NodeContext) -> Sequence[Value]:
    """Hardmax: 1 at the first maximum along the axis, else 0; before opset 13 of a matrix, as Softmax."""
    x = node.value(0)
    if not x.type.elements:
        return [x]
    along_axis = node.since >= SOFTMAX_ALONG_AXIS_SINCE
    return [by_axis_or_matrix(node, x, partial(_first_maximum, node.builder), along_axis=along_axis)]


def _first_maximum(builder: Builder, x: Value, axis: int) -> Value:
    at = builder.emit(CommandKind.ARGUMENT, [x], function=ArgumentFunction.MAX, axis=axis, keep=1)
    places = _counted(builder, x.shape[axis], axis, len(x.shape), at.dtype)
    return cast(builder, binary(builder, BinaryFunction.EQUAL, at, places), x.dtype)


def _shrink(node: NodeContext) -> Sequence[Value]:
    """Shrink: towards 0 by `bias` beyond `lambd`, 0 within; of integers by way of float32."""
    x, builder = node.value(0), node.builder
    limits = (node.attribute("lambd", 0.5), node.attribute("bias", 0.0))
    real = x if x.dtype.is_float else cast(builder, x, WireType.FLOAT32)
    return [cast(builder, unary(builder, UnaryFunction.SHRINK, real, *limits), x.dtype)]


def _det(node: NodeContext) -> Sequence[Value]:
    return [node.builder.emit(CommandKind.DETERMINANT, [node.value(0)])]


def _bit_cast(node: NodeContext) -> Sequence[Value]:
    return [node.builder.emit(CommandKind.BITCAST, [node.value(0)], dtype=node.wire_type(node.attribute("to")))]


LOWERINGS: dict[str, Lowering] = {
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TensorScatter": _tensor_scatter,
    "TopK": _top_k,
    "CumSum": _cumulate(CumulateFunction.SUM),
    "CumProd": _cumulate(CumulateFunction.PROD),
    "OneHot": _one_hot,
    "EyeLike": _eye_like,
    "ReverseSequence": _reverse_sequence,
    "NonZero": _non_zero,
    "Compress": _compress,
    "Unique": _unique,
    "Hardmax": _hardmax,
    "Shrink": _shrink,
    "Det": _det,
    "BitCast": _bit_cast,
}
