"""Quantised operators, in operator form (QLinear…) and in QDQ form; `passes/fuse_quantised.py` fuses the latter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext, trimmed
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.elementwise import cast
from sdk.compiler.lowering.products import as_matrices, conv_fields

_PRECISION_SINCE = 23
"""Opset version of QuantizeLinear in which the type of the scale became the type of the quotient."""


def scale_of(node: NodeContext, position: int) -> Value:
    """An operand that scales, in float32. Constants must be positive and finite. Raises Refused."""
    value = node.value(position)
    constant = value.constant
    if constant is not None and not (np.isfinite(constant.astype(np.float32)) & (constant > 0)).all():
        raise Refused("its scales must be positive and finite")
    return cast(node.builder, value, WireType.FLOAT32)


def zero_of(node: NodeContext, position: int, scale: Value, dtype: WireType) -> Value:
    """A zero point; zeros in the shape of the scale where it is left out."""
    zero = node.optional(position)
    return node.builder.constant(np.zeros(scale.shape, dtype.dtype)) if zero is None else zero


def scaled(node: NodeContext, position: int, dtype: WireType) -> list[Value]:
    """A scale and the zero point after it, each one element or a vector."""
    scale = scale_of(node, position)
    return [_flat(node.builder, value) for value in (scale, zero_of(node, position + 1, scale, dtype))]


def _flat(builder: Builder, value: Value) -> Value:
    return value if len(value.shape) < 2 else builder.reshape(value, (value.type.elements,))


def convolved(node: NodeContext, x: Value) -> Value:
    """QLinearConv of x, which has its channels as dimension 1."""
    w, bias = node.value(3), node.optional(8)
    scales = [*scaled(node, 1, x.dtype), *scaled(node, 4, w.dtype), *scaled(node, 6, x.dtype)]
    operands = trimmed([x, w, *scales, bias])
    return node.builder.emit(CommandKind.QCONV, operands, **conv_fields(node, x, w))


def _qlinear_conv(node: NodeContext) -> Sequence[Value]:
    return [convolved(node, node.value(0))]


def _by_row(builder: Builder, value: Value, a: Value) -> Value:
    """A scale or zero point of a product's left operand, a column where there is one for each row."""
    if value.type.elements == 1 or not a.shape:
        return value
    if len(value.shape) == 1:
        value = builder.reshape(value, (*[1] * (len(a.shape) - 2), value.shape[0], 1))
    return builder.expand(value, (*a.shape[:-1], 1))


def _qlinear_matmul(node: NodeContext) -> Sequence[Value]:
    a, b, result = as_matrices(node.builder, node.value(0), node.value(3))
    a_scales = [_by_row(node.builder, value, a) for value in (scale_of(node, 1), node.value(2))]
    if any(node.value(position).type.elements != 1 for position in (6, 7)):
        raise Refused("its result can have one scale and zero point only")
    operands = [a, b, *a_scales, scale_of(node, 4), node.value(5), *scaled(node, 6, a.dtype)]
    return [result(node.builder.emit(CommandKind.QMATMUL, operands))]


def _matmul_integer(node: NodeContext) -> Sequence[Value]:
    a, b, result = as_matrices(node.builder, node.value(0), node.value(1))
    a_zero, b_zero = node.optional(2), node.optional(3)
    operands = [a, b, None if a_zero is None else _by_row(node.builder, a_zero, a), b_zero]
    return [result(node.builder.emit(CommandKind.MATMUL_INTEGER, trimmed(operands)))]


def _conv_integer(node: NodeContext) -> Sequence[Value]:
    x, w = node.value(0), node.value(1)
    operands = trimmed([x, w, node.optional(2), node.optional(3)])
    return [node.builder.emit(CommandKind.CONV_INTEGER, operands, **conv_fields(node, x, w))]


def _dynamic_quantize(node: NodeContext) -> Sequence[Value]:
    return node.builder.emit_all(CommandKind.DYNAMIC_QUANTIZE, [node.value(0)], 3)


class _Granularity(NamedTuple):
    """What shares a scale, as attributes of commands have it."""

    axis: int
    block: int


def _granularity(node: NodeContext, x: Value, scale: Value) -> _Granularity:
    size = node.attribute("block_size", 0)
    if size < 0:
        raise Refused(f"block_size is {size}")
    if size:
        axis = node.axis(node.attribute("axis", 1), len(x.shape))
        return _Granularity(axis, min(size, max(1, x.shape[axis])))
    if scale.type.elements == 1:
        return _Granularity(0, 0)
    return _Granularity(node.axis(node.attribute("axis", 1), len(x.shape)), 0)


def _named_type(node: NodeContext, attribute: str, default: WireType) -> WireType:
    """The element type that an attribute names."""
    number = node.attribute(attribute, 0)
    return node.wire_type(number) if number else default


def _dequantize(node: NodeContext) -> Sequence[Value]:
    x, wide, builder = node.value(0), scale_of(node, 1), node.builder
    own = node.value(1)
    dtype = _named_type(node, "output_dtype", own.dtype if own.dtype.is_float else WireType.FLOAT32)
    scale = own if own.dtype is dtype else wide
    axis, block = _granularity(node, x, scale)
    zero = zero_of(node, 2, scale, x.dtype)
    if not block:
        scale, zero = _flat(builder, scale), _flat(builder, zero)
    result = builder.emit(CommandKind.DEQUANTIZE, [x, scale, zero], axis=axis, block=block)
    return [cast(builder, result, dtype)]


def _quantize(node: NodeContext) -> Sequence[Value]:
    builder, own, wide = node.builder, node.value(1), scale_of(node, 1)
    # before opset 23, the quotient is float32 whatever the types are, as it is in onnxruntime
    has_precision = node.since >= _PRECISION_SINCE and own.dtype.is_float
    precision = _named_type(node, "precision", own.dtype if has_precision else WireType.FLOAT32)
    x, scale = cast(builder, node.value(0), precision), cast(builder, own if has_precision else wide, precision)
    zero = zero_of(node, 2, scale, _named_type(node, "output_dtype", WireType.UINT8))
    axis, block = _granularity(node, x, scale)
    if not block:
        scale, zero = _flat(builder, scale), _flat(builder, zero)
    return [builder.emit(CommandKind.QUANTIZE, [x, scale, zero], axis=axis, block=block)]


LOWERINGS: dict[str, Lowering] = {
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "MatMulInteger": _matmul_integer,
    "ConvInteger": _conv_integer,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
