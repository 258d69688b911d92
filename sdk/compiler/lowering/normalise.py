"""Normalisations: most are one LAYER_NORM command; one of batches is a factor and an offset for each channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

from driver_shim.protocol.program_commands import (
    BinaryFunction,
    CommandKind,
    PoolFunction,
    UnaryFunction,
)
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.elementwise import binary, cast, unary
from sdk.compiler.lowering.products import spatial
from sdk.compiler.lowering.reductions import NORMS, reduced

EPSILON = 1e-5
"""The default of every normalisation that has one."""
_DEVIATION_EPSILON = 1e-9
"""What MeanVarianceNormalization adds to a deviation; squared, as LAYER_NORM adds it to the variance, it changes
nothing else."""
_SCALE_BY_CHANNEL_SINCE = 21
"""GroupNormalization before scales by group."""
_SPATIAL_UNTIL = 9
"""BatchNormalization before had the attribute `spatial`, and 0 meant statistics for every element."""


def _inverse_root(builder: Builder, variance: Value, epsilon: float) -> Value:
    """1 / sqrt(variance + epsilon)."""
    raised = binary(builder, BinaryFunction.ADD, variance, builder.scalar(epsilon, variance.dtype))
    return unary(builder, UnaryFunction.RECIPROCAL, unary(builder, UnaryFunction.SQRT, raised))


def layer_norm(
    builder: Builder,
    x: Value,
    axes: Sequence[int],
    epsilon: float,
    scale: Value | None = None,
    bias: Value | None = None,
    *,
    root_mean_square: bool = False,
    outputs: int = 1,
) -> tuple[Value, ...]:
    """A LAYER_NORM command: x normalised over the axes, mean, and inverse deviation, as many of them as are asked for.

    Scale and bias broadcast to x.
    """
    operands = [x, *(None if value is None else cast(builder, value, x.dtype) for value in (scale, bias))]
    return builder.emit_all(
        CommandKind.LAYER_NORM,
        operands,
        outputs,
        axes=sum(1 << axis for axis in axes),
        epsilon=epsilon,
        root_mean_square=int(root_mean_square),
    )


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
    inverse = _inverse_root(builder, variance, node.attribute("epsilon", EPSILON))
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
    scale, bias = (_by_channel(builder, node.value(i), rank) for i in (1, 2))
    return layer_norm(builder, x, range(2, rank), node.attribute("epsilon", EPSILON), scale, bias)


def _layer_normalization(node: NodeContext) -> Sequence[Value]:
    """LayerNormalization: over the dimensions from `axis` on; mean and inverse deviation where they are asked for."""
    return _from_axis(node, node.optional(2), root_mean_square=False)


def _rms_normalization(node: NodeContext) -> Sequence[Value]:
    """RMSNormalization: divided by the root of the mean square over the dimensions from `axis` on."""
    return _from_axis(node, None, root_mean_square=True)


def _from_axis(node: NodeContext, bias: Value | None, *, root_mean_square: bool) -> Sequence[Value]:
    x = node.value(0)
    axes = range(node.axis(node.attribute("axis", -1), len(x.shape)), len(x.shape))
    return layer_norm(
        node.builder,
        x,
        axes,
        node.attribute("epsilon", EPSILON),
        node.value(1),
        bias,
        root_mean_square=root_mean_square,
        outputs=node.output_count,
    )


def _group_normalization(node: NodeContext) -> Sequence[Value]:
    """GroupNormalization: over groups of channels; scaled by group, from opset 21 on by channel."""
    x, builder = node.value(0), node.builder
    rank, groups = len(x.shape), node.attribute("num_groups")
    if rank < 3 or groups < 1 or x.shape[1] % groups:
        raise Refused(f"{groups} groups of {x.type}")
    members = x.shape[1] // groups
    grouped = builder.reshape(x, (x.shape[0], groups, members, math.prod(x.shape[2:])))
    by_group = node.since < _SCALE_BY_CHANNEL_SINCE
    scale, bias = (builder.reshape(node.value(i), (groups, 1 if by_group else members, 1)) for i in (1, 2))
    (result,) = layer_norm(builder, grouped, (2, 3), node.attribute("epsilon", EPSILON), scale, bias)
    return [builder.reshape(result, x.shape)]


def _mean_variance_normalization(node: NodeContext) -> Sequence[Value]:
    """MeanVarianceNormalization: (x - mean) / (deviation + 1e-9) over the axes."""
    x = node.value(0)
    axes = node.axes(node.attribute("axes", [0, 2, 3]), len(x.shape))
    return layer_norm(node.builder, x, axes, _DEVIATION_EPSILON**2)


def _lp_normalization(node: NodeContext) -> Sequence[Value]:
    """LpNormalization: divided by its L1 or L2 norm along `axis`; 0 where that is 0."""
    x, builder = node.value(0), node.builder
    axis, power = node.axis(node.attribute("axis", -1), len(x.shape)), node.attribute("p", 2)
    if power not in NORMS:
        raise Refused(f"p is {power}; it must be 1 or 2")
    norm = reduced(builder, NORMS[power], x, [axis])
    one, nothing = builder.scalar(1, x.dtype), builder.scalar(0, x.dtype)
    empty = binary(builder, BinaryFunction.EQUAL, norm, nothing)
    return [binary(builder, BinaryFunction.DIV, x, builder.emit(CommandKind.WHERE, [empty, one, norm]))]


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
    "MeanVarianceNormalization": _mean_variance_normalization,
    "LpNormalization": _lp_normalization,
    "LRN": _local_response_normalization,
}
