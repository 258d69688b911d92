"""Normalisations, made of reductions and element-wise commands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from driver_shim.protocol.program_commands import (
    BinaryFunction,
    CommandKind,
    PoolFunction,
    ReduceFunction,
    UnaryFunction,
)
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.elementwise import binary, cast, unary
from sdk.compiler.lowering.products import spatial
from sdk.compiler.lowering.reductions import reduced

_EPSILON = 1e-5
"""The default of every normalisation that has one."""
_SCALE_BY_CHANNEL_SINCE = 21
"""GroupNormalization before scales by group."""
_SPATIAL_UNTIL = 9
"""BatchNormalization before had the attribute `spatial`, and 0 meant statistics for every element."""


class _Moments(NamedTuple):
    """A tensor normalised, and what by."""

    normalised: Value
    mean: Value
    inverse_deviation: Value


def _inverse_root(builder: Builder, variance: Value, epsilon: float) -> Value:
    """1 / sqrt(variance + epsilon)."""
    raised = binary(builder, BinaryFunction.ADD, variance, builder.scalar(epsilon, variance.dtype))
    return unary(builder, UnaryFunction.RECIPROCAL, unary(builder, UnaryFunction.SQRT, raised))


def _normalise(builder: Builder, x: Value, axes: Sequence[int], epsilon: float) -> _Moments:
    """(x - mean) / sqrt(variance + epsilon) over the axes, in float32, with the variance of a population."""
    wide = cast(builder, x, WireType.FLOAT32)
    mean = reduced(builder, ReduceFunction.MEAN, wide, axes)
    centred = binary(builder, BinaryFunction.SUB, wide, mean)
    square = binary(builder, BinaryFunction.MUL, centred, centred)
    inverse = _inverse_root(builder, reduced(builder, ReduceFunction.MEAN, square, axes), epsilon)
    return _Moments(binary(builder, BinaryFunction.MUL, centred, inverse), mean, inverse)


def _scaled(builder: Builder, x: Value, scale: Value, bias: Value | None, dtype: WireType) -> Value:
    """x * scale + bias, where x is float32 and the result of the model's own type."""
    result = binary(builder, BinaryFunction.MUL, cast(builder, x, dtype), cast(builder, scale, dtype))
    return result if bias is None else binary(builder, BinaryFunction.ADD, result, cast(builder, bias, dtype))


def _by_channel(builder: Builder, vector: Value, rank: int) -> Value:
    """A vector [channels] as [channels, 1, ...], to go with tensors [batch, channels, ...]."""
    if len(vector.shape) != 1:
        raise Refused(f"{vector.type} where a value for every channel belongs")
    return builder.reshape(vector, (vector.shape[0], *[1] * (rank - 2)))


def _batch_normalization(node: NodeContext) -> Sequence[Value]:
    """BatchNormalization at inference: x * a + b with a = scale / sqrt(variance + epsilon), b = bias - mean * a."""
    if node.attribute("training_mode", 0) or node.output_count > 1:
        raise Refused("it is in training mode")
    if node.since < _SPATIAL_UNTIL and not node.attribute("spatial", 1):
        raise Refused("spatial 0, statistics for every element, is not supported")
    x, builder = node.value(0), node.builder
    if len(x.shape) < 2:
        raise Refused(f"{x.type} has no channels")
    scale, bias, mean, variance = (cast(builder, node.value(i), WireType.FLOAT32) for i in range(1, 5))
    inverse = _inverse_root(builder, variance, node.attribute("epsilon", _EPSILON))
    factor = binary(builder, BinaryFunction.MUL, scale, inverse)
    offset = binary(builder, BinaryFunction.SUB, bias, binary(builder, BinaryFunction.MUL, mean, factor))
    rank = len(x.shape)
    factors, offsets = (_by_channel(builder, vector, rank) for vector in (factor, offset))
    return [_scaled(builder, x, factors, offsets, x.dtype)]


def _instance_normalization(node: NodeContext) -> Sequence[Value]:
    """InstanceNormalization: over the spatial dimensions of each channel of each sample."""
    x, builder = node.value(0), node.builder
    rank = len(x.shape)
    if rank < 3:
        raise Refused(f"{x.type} has no spatial dimensions")
    moments = _normalise(builder, x, range(2, rank), node.attribute("epsilon", _EPSILON))
    scale, bias = (_by_channel(builder, node.value(i), rank) for i in (1, 2))
    return [_scaled(builder, moments.normalised, scale, bias, x.dtype)]


def _layer_normalization(node: NodeContext) -> Sequence[Value]:
    """LayerNormalization: over the dimensions from `axis` on; mean and inverse deviation where they are asked for."""
    x = node.value(0)
    axes = range(node.axis(node.attribute("axis", -1), len(x.shape)), len(x.shape))
    moments = _normalise(node.builder, x, axes, node.attribute("epsilon", _EPSILON))
    result = _scaled(node.builder, moments.normalised, node.value(1), node.optional(2), x.dtype)
    return [result, moments.mean, moments.inverse_deviation][: node.output_count]


def _group_normalization(node: NodeContext) -> Sequence[Value]:
    """GroupNormalization: over groups of channels; scaled by group, from opset 21 on by channel."""
    x, builder = node.value(0), node.builder
    rank, groups = len(x.shape), node.attribute("num_groups")
    if rank < 3 or groups < 1 or x.shape[1] % groups:
        raise Refused(f"{groups} groups of {x.type}")
    grouped = builder.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    normalised = _normalise(builder, grouped, [2], node.attribute("epsilon", _EPSILON)).normalised
    scale, bias = node.value(1), node.value(2)
    if node.since < _SCALE_BY_CHANNEL_SINCE:
        by_group = [builder.reshape(value, (groups, 1)) for value in (scale, bias)]
        return [builder.reshape(_scaled(builder, normalised, by_group[0], by_group[1], x.dtype), x.shape)]
    whole = builder.reshape(normalised, x.shape)
    scale, bias = _by_channel(builder, scale, rank), _by_channel(builder, bias, rank)
    return [_scaled(builder, whole, scale, bias, x.dtype)]


def _rms_normalization(node: NodeContext) -> Sequence[Value]:
    """RMSNormalization: divided by the root of the mean square over the dimensions from `axis` on."""
    x, builder = node.value(0), node.builder
    axes = range(node.axis(node.attribute("axis", -1), len(x.shape)), len(x.shape))
    wide = cast(builder, x, WireType.FLOAT32)
    square = reduced(builder, ReduceFunction.MEAN, binary(builder, BinaryFunction.MUL, wide, wide), axes)
    inverse = _inverse_root(builder, square, node.attribute("epsilon", _EPSILON))
    normalised = binary(builder, BinaryFunction.MUL, wide, inverse)
    return [_scaled(builder, normalised, node.value(1), None, x.dtype)]


def _local_response_normalization(node: NodeContext) -> Sequence[Value]:
    """LRN: x / (bias + alpha * m) ** beta, m the mean square of `size` channels around, zeros beyond the ends."""
    x, builder = node.value(0), node.builder
    size = node.attribute("size")
    if len(x.shape) < 3 or size < 1:
        raise Refused(f"size {size} for {x.type}")
    batch, channels = x.shape[:2]
    square = builder.reshape(binary(builder, BinaryFunction.MUL, x, x), (batch, 1, channels, math.prod(x.shape[2:])))
    before = (size - 1) // 2
    mean = builder.emit(
        CommandKind.POOL,
        [square],
        function=PoolFunction.AVERAGE,
        count_include_pad=1,
        ceil_mode=0,
        kernel=spatial([size, 1], 1),
        strides=spatial([1, 1], 1),
        dilations=spatial([1, 1], 1),
        pads_begin=spatial([before, 0], 0),
        pads_end=spatial([size - 1 - before, 0], 0),
    )
    mean = builder.reshape(mean, x.shape)
    weighted = binary(builder, BinaryFunction.MUL, mean, builder.scalar(node.attribute("alpha", 1e-4), x.dtype))
    base = binary(builder, BinaryFunction.ADD, weighted, builder.scalar(node.attribute("bias", 1.0), x.dtype))
    divisor = binary(builder, BinaryFunction.POW, base, builder.scalar(node.attribute("beta", 0.75), x.dtype))
    return [binary(builder, BinaryFunction.DIV, x, divisor)]


LOWERINGS: dict[str, Lowering] = {
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "GroupNormalization": _group_normalization,
    "RMSNormalization": _rms_normalization,
    "LRN": _local_response_normalization,
}
