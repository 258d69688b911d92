"""Quantised operators, in operator form (QLinear…) and in QDQ form, which a pass makes the same commands of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Refused, Value
from sdk.compiler.lowering.products import conv_fields


def _scalars(node: NodeContext, positions: Sequence[int]) -> list[Value]:
    """Scales and zero points: constants, scales positive and finite."""
    values = []
    for position in positions:
        value = node.value(position)
        if value.constant is None:
            raise Refused("its scales and zero points must be constants")
        if value.dtype.is_float and not (np.isfinite(value.constant) & (value.constant > 0)).all():
            raise Refused("its scales must be positive and finite")
        values.append(node.builder.reshape(value, value.shape if len(value.shape) < 2 else (value.type.elements,)))
    return values


def _qlinear_conv(node: NodeContext) -> Sequence[Value]:
    x, w = node.value(0), node.value(3)
    x_scale, x_zero, w_scale, w_zero, y_scale, y_zero = _scalars(node, (1, 2, 4, 5, 6, 7))
    operands = [x, w, x_scale, x_zero, w_scale, w_zero, y_scale, y_zero]
    bias = node.optional(8)
    operands += [] if bias is None else [bias]
    return [node.builder.emit(CommandKind.QCONV, operands, **conv_fields(node, x, w))]


def _qlinear_matmul(node: NodeContext) -> Sequence[Value]:
    a, b = node.value(0), node.value(3)
    a_scale, a_zero, b_scale, b_zero, y_scale, y_zero = _scalars(node, (1, 2, 4, 5, 6, 7))
    operands = [a, b, a_scale, a_zero, b_scale, b_zero, y_scale, y_zero]
    return [node.builder.emit(CommandKind.QMATMUL, operands)]


def _axis(node: NodeContext, x: Value, scale: Value) -> int:
    """The axis that a vector of scales belongs to; 0 when there is one scale."""
    if scale.type.elements == 1:
        return 0
    return node.axis(node.attribute("axis", 1), len(x.shape))


def _zero_point(node: NodeContext, scale: Value, dtype: WireType) -> Value:
    zero = node.optional(2)
    if zero is None:
        return node.builder.constant(np.zeros(scale.shape, dtype.dtype))
    return _scalars(node, (2,))[0]


def _output_type(node: NodeContext, default: WireType) -> WireType:
    """The element type a node asks for. Raises Refused for forms of quantisation that the device does not have."""
    if node.attribute("block_size", 0):
        raise Refused("blocked quantisation is not supported")
    number = node.attribute("output_dtype", 0)
    return node.wire_type(number) if number else default


def _dequantize(node: NodeContext) -> Sequence[Value]:
    if _output_type(node, WireType.FLOAT32) is not WireType.FLOAT32:
        raise Refused("only float32 results are supported")
    x = node.value(0)
    (scale,) = _scalars(node, (1,))
    zero = _zero_point(node, scale, x.dtype)
    axis = _axis(node, x, scale)
    return [node.builder.emit(CommandKind.DEQUANTIZE, [x, scale, zero], axis=axis)]


def _quantize(node: NodeContext) -> Sequence[Value]:
    x = node.value(0)
    (scale,) = _scalars(node, (1,))
    zero = _zero_point(node, scale, _output_type(node, WireType.UINT8))
    operands = [x, scale, zero]
    return [node.builder.emit(CommandKind.QUANTIZE, operands, axis=_axis(node, x, scale))]


LOWERINGS: dict[str, Lowering] = {
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
