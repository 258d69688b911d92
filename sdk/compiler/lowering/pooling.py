"""Pooling and its inverse."""

from __future__ import annotations

from collections.abc import Sequence

from driver_shim.protocol.program_commands import (
    BinaryFunction,
    CommandKind,
    PadMode,
    PoolFunction,
    ReduceFunction,
    UnaryFunction,
)
from sdk.compiler.context import Lowering, NodeContext, checked_shape
from sdk.compiler.ir import Refused, Value, shape_fields
from sdk.compiler.lowering.elementwise import binary, unary
from sdk.compiler.lowering.movement import filled
from sdk.compiler.lowering.products import spatial, window
from sdk.compiler.lowering.reductions import NORMS, reduced


def _pool(function: PoolFunction) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        x = node.value(0)
        kernel = list(node.attribute("kernel_shape"))
        return node.builder.emit_all(
            CommandKind.POOL,
            [x],
            node.output_count,
            function=function,
            count_include_pad=int(bool(node.attribute("count_include_pad", 0))),
            ceil_mode=int(bool(node.attribute("ceil_mode", 0))),
            column_major=int(bool(node.attribute("storage_order", 0))),
            p=_power(node) if function is PoolFunction.LP else 0,
            kernel=spatial(kernel, 1),
            **window(node, x.type, kernel),
        )

    return lower


def _power(node: NodeContext) -> int:
    p: int = node.attribute("p", 2)
    if p < 1:
        raise Refused(f"p is {p}, must be at least 1")
    return p


def _global_pool(function: ReduceFunction) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        x = node.value(0)
        return [reduced(node.builder, function, x, _spatial_axes(x))]

    return lower


def _spatial_axes(x: Value) -> range:
    if len(x.shape) < 3:
        raise Refused(f"{x.type} has no spatial dimensions")
    return range(2, len(x.shape))


def _global_lp_pool(node: NodeContext) -> Sequence[Value]:
    """GlobalLpPool: a norm over the spatial dimensions."""
    x, builder, p = node.value(0), node.builder, _power(node)
    axes = _spatial_axes(x)
    if p in NORMS:
        return [reduced(builder, NORMS[p], x, axes)]
    sizes = unary(builder, UnaryFunction.ABS, x)
    powers = binary(builder, BinaryFunction.POW, sizes, builder.scalar(p, x.dtype))
    sums = reduced(builder, ReduceFunction.SUM, powers, axes)
    return [binary(builder, BinaryFunction.POW, sums, builder.scalar(1 / p, x.dtype))]


def _max_unpool(node: NodeContext) -> Sequence[Value]:
    """MaxUnpool: indices count through the shape that the window gives; `output_shape` adds zeros at the ends."""
    x, builder = node.value(0), node.builder
    kernel = list(node.attribute("kernel_shape"))
    fields = window(node, x.type, kernel)
    shape = list(x.shape)
    for i, size in enumerate(kernel):
        covered = (x.shape[2 + i] - 1) * fields["strides"][i] + size
        shape[2 + i] = covered - fields["pads_begin"][i] - fields["pads_end"][i]
    unpooled = builder.emit(CommandKind.UNPOOL, [x, node.value(1)], **shape_fields(checked_shape(shape)))
    wanted = node.constant_ints(2, "output_shape")
    if wanted is None or wanted == shape:
        return [unpooled]
    if len(wanted) != len(shape) or any(end < extent for end, extent in zip(wanted, shape, strict=True)):
        raise Refused(f"output_shape {wanted} for what is unpooled to {shape}")
    ends = [end - extent for end, extent in zip(wanted, shape, strict=True)]
    return [builder.emit(CommandKind.PAD, [unpooled], mode=PadMode.CONSTANT, begins=filled([]), ends=filled(ends))]


LOWERINGS: dict[str, Lowering] = {
    "MaxPool": _pool(PoolFunction.MAX),
    "AveragePool": _pool(PoolFunction.AVERAGE),
    "LpPool": _pool(PoolFunction.LP),
    "GlobalMaxPool": _global_pool(ReduceFunction.MAX),
    "GlobalAveragePool": _global_pool(ReduceFunction.MEAN),
    "GlobalLpPool": _global_lp_pool,
    "MaxUnpool": _max_unpool,
}
