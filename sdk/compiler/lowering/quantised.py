"""Quantised operators, in operator form (QLinear…) and in QDQ form, which means the same net.

DequantizeLinear → Conv, MatMul or Gemm (→ Relu) → QuantizeLinear becomes one quantised command when every operand
was dequantised with scales the command can express. Any other QuantizeLinear or DequantizeLinear is a command.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driver_shim.protocol.program_commands import Activation, CommandKind, UnaryFunction
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Array, Builder, Operation, Quantised, Refused, Value
from sdk.compiler.lowering.products import conv_fields

_BIAS_SCALE_TOLERANCE = 1e-5
"""Relative; a bias quantised with another scale than x_scale · w_scale is no int32 bias."""
_WINDOW_FIELDS = ("group", "strides", "dilations", "pads_begin", "pads_end")


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
    result = node.builder.emit(CommandKind.DEQUANTIZE, [x, scale, zero], axis=axis)
    result.quantised = Quantised(x, scale, zero, axis)
    return [result]


def _quantize(node: NodeContext) -> Sequence[Value]:
    x = node.value(0)
    (scale,) = _scalars(node, (1,))
    zero = _zero_point(node, scale, _output_type(node, WireType.UINT8))
    fused = _fuse(node.builder, x, scale, zero)
    if fused is not None:
        return [fused]
    operands = [x, scale, zero]
    return [node.builder.emit(CommandKind.QUANTIZE, operands, axis=_axis(node, x, scale))]


def _fuse(builder: Builder, x: Value, y_scale: Value, y_zero: Value) -> Value | None:
    """The quantised command that a float product between dequantised operands and this quantisation stands for."""
    product, relu = _product(x)
    if product is None or y_scale.type.elements != 1 or y_zero.dtype not in (WireType.INT8, WireType.UINT8):
        return None
    data, weights = (value.quantised if value is not None else None for value in product.inputs[:2])
    if data is None or weights is None or data.scale.type.elements != 1:
        return None
    conv = product.kind is CommandKind.CONV
    integer = weights.integer
    if not conv:
        fields = product.attributes
        scaled = fields.alpha != 1 or (len(product.inputs) > 2 and fields.beta != 1) or fields.transpose_a
        if scaled or (fields.transpose_b and integer.constant is None):
            return None
        if fields.transpose_b and integer.constant is not None:
            integer = builder.constant(np.ascontiguousarray(integer.constant.swapaxes(-1, -2)))
    if weights.scale.type.elements != 1 and weights.axis != _channel_axis(product, weights.integer):
        return None
    bias = product.inputs[2] if len(product.inputs) > 2 else None
    operands = [data.integer, integer, data.scale, data.zero_point, weights.scale, weights.zero_point, y_scale, y_zero]
    if bias is not None:
        whole = _whole_bias(bias, data.scale, weights.scale, x.shape[1 if conv else -1])
        if whole is None:
            return None
        operands.append(whole)
    if data.integer.dtype is WireType.INT32 or weights.integer.dtype is WireType.INT32:
        return None
    fields = {name: product.attributes[name] for name in _WINDOW_FIELDS} if conv else {}
    kind = CommandKind.QCONV if conv else CommandKind.QMATMUL
    return builder.emit(kind, operands, relu=int(relu), **fields)


def _product(x: Value) -> tuple[Operation | None, bool]:
    """The product that alone gives `x`, and whether a ReLU follows it."""
    made = x.producer
    relu = False
    if made is not None and made.kind is CommandKind.UNARY and made.attributes.function == UnaryFunction.RELU:
        source = made.inputs[0]
        if x.uses > 1 or source is None:
            return None, False
        x, made, relu = source, source.producer, True
    if made is None or made.kind not in (CommandKind.CONV, CommandKind.MATMUL) or x.uses > 1:
        return None, False
    if made.attributes.activation == Activation.RELU:
        return made, True
    return (made, relu) if made.attributes.activation == Activation.NONE else (None, False)


def _channel_axis(product: Operation, weights: Value) -> int:
    if product.kind is CommandKind.CONV:
        return 0
    return len(weights.shape) - (2 if product.attributes.transpose_b else 1)


def _whole_bias(bias: Value, x_scale: Value, w_scale: Value, channels: int) -> Value | None:
    """The int32 bias behind a dequantised one, if its scale is x_scale · w_scale and its zero point 0."""
    was = bias.quantised
    if was is None or was.integer.dtype is not WireType.INT32 or was.integer.shape != (channels,):
        return None
    expected = _array(x_scale) * _array(w_scale)
    same = np.allclose(_array(was.scale), expected, rtol=_BIAS_SCALE_TOLERANCE, atol=0)
    return was.integer if same and not _array(was.zero_point).any() else None


def _array(value: Value) -> Array:
    """A scale's or zero point's values; `_scalars` made sure they are constant."""
    if value.constant is None:
        raise Refused("its scales and zero points must be constants")
    return value.constant


LOWERINGS: dict[str, Lowering] = {
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
