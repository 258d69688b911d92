"""Float products between dequantised operands become quantised commands: the QDQ form means the same net.

DequantizeLinear → Conv, MatMul or Gemm (→ Relu) → QuantizeLinear becomes one command when every operand was dequantised
with scales the command can express. Any other QuantizeLinear or DequantizeLinear stays a command.
"""

from __future__ import annotations

import numpy as np

from driver_shim.protocol.program_commands import Activation, CommandKind
from driver_shim.protocol.types import QUANTISED, WireType
from sdk.compiler.ir import Operation, Value, constant
from sdk.compiler.passes.quantisation import before
from sdk.compiler.passes.rewriting import Rewriting

_BIAS_SCALE_TOLERANCE = 1e-5
"""Relative; a bias quantised with another scale than x_scale · w_scale is no int32 bias."""
_WINDOW_FIELDS = ("group", "strides", "dilations", "pads_begin", "pads_end")
_PRODUCTS = (CommandKind.CONV, CommandKind.MATMUL)
_PLAIN = (Activation.NONE, Activation.RELU)


def fuse_quantised(program: Rewriting) -> None:
    """Compute in integers what is dequantised, multiplied and quantised again."""
    for position, operation in enumerate(program.operations):
        if operation.kind is not CommandKind.QUANTIZE or operation.attributes.block:
            continue
        product = program.sole(operation.inputs[0])
        if product is None or product.kind not in _PRODUCTS or product.attributes.activation not in _PLAIN:
            continue
        operands = _operands(product, operation)
        if operands is None:
            continue
        convolution = product.kind is CommandKind.CONV
        fields = {name: product.attributes[name] for name in _WINDOW_FIELDS} if convolution else {}
        fields["relu"] = int(product.attributes.activation == Activation.RELU)
        kind = CommandKind.QCONV if convolution else CommandKind.QMATMUL
        program.replace(position, kind, operands, fields, [product])


def _operands(product: Operation, quantisation: Operation) -> list[Value] | None:
    """The operands of the quantised command; None where there is none that means the same."""
    y_scale, y_zero = quantisation.inputs[1:3]
    if y_scale is None or y_zero is None:
        return None
    data, weights = (before(value) for value in product.inputs[:2])
    if len(product.inputs) > 3:  # an addend, which quantised commands have not
        return None
    single = y_scale.type.elements == 1 and y_scale.dtype is WireType.FLOAT32 and y_zero.dtype in QUANTISED
    if not single or data is None or weights is None or data.scale.type.elements != 1:
        return None
    if not {data.integer.dtype, weights.integer.dtype} <= QUANTISED:
        return None
    if weights.scale.type.elements != 1 and weights.axis != _channel_axis(product, weights.integer):
        return None
    integer = weights.integer if product.kind is CommandKind.CONV else _as_right_operand(product, weights.integer)
    if integer is None:
        return None
    operands = [data.integer, integer, data.scale, data.zero_point, weights.scale, weights.zero_point, y_scale, y_zero]
    bias = product.inputs[2] if len(product.inputs) > 2 else None
    if bias is None:
        return operands
    channels = product.outputs[0].shape[1 if product.kind is CommandKind.CONV else -1]
    whole = _whole_bias(bias, data.scale, weights.scale, channels)
    return None if whole is None else [*operands, whole]


def _as_right_operand(product: Operation, integer: Value) -> Value | None:
    """A MATMUL's weights as QMATMUL takes them; None where the product does more than multiply."""
    fields = product.attributes
    if fields.alpha != 1 or (len(product.inputs) > 2 and fields.beta != 1) or fields.transpose_a:
        return None
    if not fields.transpose_b:
        return integer
    return None if integer.constant is None else constant(np.ascontiguousarray(integer.constant.swapaxes(-1, -2)))


def _channel_axis(product: Operation, weights: Value) -> int:
    if product.kind is CommandKind.CONV:
        return 0
    return len(weights.shape) - (2 if product.attributes.transpose_b else 1)


def _whole_bias(bias: Value, x_scale: Value, w_scale: Value, channels: int) -> Value | None:
    """The int32 bias behind a dequantised one, if its scale is x_scale · w_scale and its zero point 0."""
    was = before(bias)
    if was is None or was.integer.dtype is not WireType.INT32 or was.integer.shape != (channels,):
        return None
    x, w, b, zero = x_scale.constant, w_scale.constant, was.scale.constant, was.zero_point.constant
    if x is None or w is None or b is None or zero is None:
        return None
    same = np.allclose(b, x * w, rtol=_BIAS_SCALE_TOLERANCE, atol=0)
    return was.integer if same and not zero.any() else None
