"""Operators of onnxruntime's own that its quantiser and optimiser write for 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from driver_shim.protocol.program_commands import (
    BinaryFunction,
    CommandKind,
    QBinaryFunction,
    ReduceFunction,
    UnaryFunction,
)
from driver_shim.protocol.types import QUANTISED, WireType
from emulator.model.operators.quantised_elementwise import VALUES
from sdk.compiler.context import Lowering, NodeContext, trimmed
from sdk.compiler.contrib import qualified
from sdk.compiler.ir import Builder, Refused, Value, is_repeated
from sdk.compiler.lowering import quantised
from sdk.compiler.lowering.elementwise import binary, cast, unary
from sdk.compiler.lowering.movement import transposed
from sdk.compiler.lowering.products import as_matrices, spatial, window
from sdk.compiler.lowering.quantised import convolved, scale_of, scaled
from sdk.compiler.lowering.reductions import SOFTMAX_ALONG_AXIS_SINCE, by_axis_or_matrix, reduced

_LEAKY_RELU_ALPHA = 0.01


# --- scales -----------------------------------------------------------------------------------------------------------


def _dequantize(builder: Builder, x: Value, scales: Sequence[Value], axis: int = 0) -> Value:
    return builder.emit(CommandKind.DEQUANTIZE, [x, *scales], axis=axis)


def _quantize(builder: Builder, x: Value, scales: Sequence[Value]) -> Value:
    return builder.emit(CommandKind.QUANTIZE, [x, *scales])


def _need_bytes(x: Value) -> None:
    if x.dtype not in QUANTISED:
        raise Refused(f"its data are {x.type}, must be int8 or uint8")


def _same(a: Sequence[Value], b: Sequence[Value]) -> bool:
    """Whether two scales and zero points are known to be equal."""
    return all(
        x is y or (x.constant is not None and y.constant is not None and np.array_equal(x.constant, y.constant))
        for x, y in zip(a, b, strict=True)
    )


def _through_floats(
    builder: Builder, x: Value, before: Sequence[Value], after: Sequence[Value], what: Callable[[Value], Value]
) -> Value:
    """A function of one operand between two quantisations: a table of its 256 values where the scales are known."""
    _need_bytes(x)
    if any(value.constant is None for value in (*before, *after)):
        return _quantize(builder, what(_dequantize(builder, x, before)), after)
    every = builder.constant(np.arange(VALUES, dtype=np.uint8).view(x.dtype.dtype))
    table = _quantize(builder, what(_dequantize(builder, every, before)), after)
    return builder.emit(CommandKind.LOOKUP, [x, table])


def _rescaled(node: NodeContext, position: int, after: Sequence[Value]) -> Value:
    """An operand, before its scale and zero point, brought to others."""
    x = node.value(position)
    before = scaled(node, position + 1, x.dtype)
    return x if _same(before, after) else _through_floats(node.builder, x, before, after, lambda real: real)


# --- element by element ---------------------------------------------------------------------------------------------


def _qlinear_binary(function: QBinaryFunction) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        a, b = node.value(0), node.value(3)
        left, right = scaled(node, 1, a.dtype), scaled(node, 4, b.dtype)
        after = scaled(node, 6, a.dtype)
        if is_repeated(a, b):  # onnxruntime takes the operand that is repeated for the second
            a, b, left, right = b, a, right, left
        operands = [a, b, *left, *right, *after]
        return [node.builder.emit(CommandKind.QBINARY, operands, function=function)]

    return lower


def _function(node: NodeContext, what: Callable[[Value], Value]) -> Sequence[Value]:
    x = node.value(0)
    return [_through_floats(node.builder, x, scaled(node, 1, x.dtype), scaled(node, 3, x.dtype), what)]


def _qlinear_sigmoid(node: NodeContext) -> Sequence[Value]:
    return _function(node, lambda x: unary(node.builder, UnaryFunction.SIGMOID, x))


def _qlinear_leaky_relu(node: NodeContext) -> Sequence[Value]:
    alpha = node.attribute("alpha", _LEAKY_RELU_ALPHA)
    return _function(node, lambda x: unary(node.builder, UnaryFunction.LEAKY_RELU, x, alpha))


def _qlinear_softmax(node: NodeContext) -> Sequence[Value]:
    """QLinearSoftmax through floats: within one step of onnxruntime, which adds up rounded exponentials."""
    x, builder = node.value(0), node.builder
    _need_bytes(x)
    real = _dequantize(builder, x, scaled(node, 1, x.dtype))
    along_axis = node.attribute("opset") >= SOFTMAX_ALONG_AXIS_SINCE
    result = by_axis_or_matrix(
        node, real, lambda data, axis: builder.emit(CommandKind.SOFTMAX, [data], axis=axis), along_axis=along_axis
    )
    return [_quantize(builder, result, scaled(node, 3, x.dtype))]


def _qlinear_concat(node: NodeContext) -> Sequence[Value]:
    builder, after = node.builder, [scale_of(node, 0), node.value(1)]
    if len(node.inputs) % 3 != 2:
        raise Refused(f"{len(node.inputs)} inputs; a scale and a zero point, then three for each operand")
    parts = [_rescaled(node, position, after) for position in range(2, len(node.inputs), 3)]
    return [builder.emit(CommandKind.CONCAT, parts, axis=node.axis(node.attribute("axis"), len(parts[0].shape)))]


def _qlinear_where(node: NodeContext) -> Sequence[Value]:
    after = [scale_of(node, 7), node.value(8)]
    branches = [_rescaled(node, position, after) for position in (1, 4)]
    return [node.builder.emit(CommandKind.WHERE, [node.value(0), *branches])]


# --- pooling --------------------------------------------------------------------------------------------------------


def _channels_first(node: NodeContext, what: Callable[[Value], Value], x: Value) -> Value:
    """A function of data with channels as dimension 1, for a node whose data may have them last."""
    rank, builder = len(x.shape), node.builder
    if not node.attribute("channels_last", 0):
        return what(x)
    forth, back = (0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)
    return transposed(builder, what(transposed(builder, x, forth)), back)


def _qlinear_global_average_pool(node: NodeContext) -> Sequence[Value]:
    def pooled(x: Value) -> Value:
        if len(x.shape) < 3:
            raise Refused(f"{x.type} has no spatial dimensions")
        return _qlinear_mean(node, x, list(range(2, len(x.shape))), keep=True)

    return [_channels_first(node, pooled, node.value(0))]


def _qlinear_mean(node: NodeContext, x: Value, axes: Sequence[int], *, keep: bool) -> Value:
    """Integers are added up, and the sum is scaled once: round((Σx − n · zero) · x_scale / (y_scale · n)) + y_zero."""
    _need_bytes(x)
    builder = node.builder
    scales, after = scaled(node, 1, x.dtype), scaled(node, 3, x.dtype)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    sums = reduced(builder, ReduceFunction.SUM, cast(builder, x, WireType.INT32), axes, keep=keep)
    zero = cast(builder, scales[1], WireType.INT32)
    zero = _multiplied(builder, zero, builder.scalar(count, WireType.INT32))
    divisor = _multiplied(builder, after[0], builder.scalar(count, WireType.FLOAT32))
    scale = _divided(builder, scales[0], divisor)
    real = _dequantize(builder, sums, [scale, zero])
    return _quantize(builder, real, [builder.constant(np.ones((), np.float32)), after[1]])


def _qlinear_reduce_mean(node: NodeContext) -> Sequence[Value]:
    x = node.value(0)
    axes = node.axes(node.attribute("axes"), len(x.shape))
    return [_qlinear_mean(node, x, axes, keep=bool(node.attribute("keepdims")))]


def _qlinear_average_pool(node: NodeContext) -> Sequence[Value]:
    kernel = list(node.attribute("kernel_shape"))

    def pooled(x: Value) -> Value:
        return node.builder.emit(
            CommandKind.QPOOL,
            [x, *scaled(node, 1, x.dtype), *scaled(node, 3, x.dtype)],
            count_include_pad=int(bool(node.attribute("count_include_pad", 0))),
            ceil_mode=int(bool(node.attribute("ceil_mode", 0))),
            kernel=spatial(kernel, 1),
            **window(node, x.type, kernel),
        )

    return [_channels_first(node, pooled, node.value(0))]


# --- products -------------------------------------------------------------------------------------------------------


def _multiplied(builder: Builder, a: Value, b: Value) -> Value:
    return binary(builder, BinaryFunction.MUL, a, b)


def _divided(builder: Builder, a: Value, b: Value) -> Value:
    return binary(builder, BinaryFunction.DIV, a, b)


def _qlinear_conv(node: NodeContext) -> Sequence[Value]:
    return [_channels_first(node, partial(convolved, node), node.value(0))]


def _qgemm(node: NodeContext) -> Sequence[Value]:
    """QGemm: alpha · A' · B' + C, C in the scale of the product; in floats where no scale of the result is given."""
    builder = node.builder
    a, b, bias = _swapped(node, 0, "transA"), _swapped(node, 3, "transB"), node.optional(6)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise Refused(f"operands {a.type} and {b.type}; both must have rank 2")
    a_scale, a_zero = scaled(node, 1, a.dtype)
    b_scale, b_zero = scaled(node, 4, b.dtype)
    alpha = node.attribute("alpha", 1.0)
    if alpha != 1:
        a_scale = _multiplied(builder, builder.scalar(alpha, WireType.FLOAT32), a_scale)
    columns = b.shape[1]
    if node.optional(7) is not None and (bias is None or bias.type.elements in (1, columns)):
        operands = [a, b, a_scale, a_zero, b_scale, b_zero, *scaled(node, 7, a.dtype)]
        if bias is not None:
            row = builder.reshape(bias, (bias.type.elements,))
            operands.append(builder.expand(row, (columns,)))
        return [builder.emit(CommandKind.QMATMUL, operands)]
    sums = builder.emit(CommandKind.MATMUL_INTEGER, [a, b, a_zero, b_zero])
    if bias is not None:
        sums = binary(builder, BinaryFunction.ADD, sums, bias)
    scale = _multiplied(builder, a_scale, b_scale)
    if node.optional(7) is None:
        return [_scaled_sums(builder, sums, scale)]
    y_scale, y_zero = scaled(node, 7, a.dtype)
    real = _scaled_sums(builder, sums, _divided(builder, scale, y_scale))  # one product, as QMATMUL has it
    return [_quantize(builder, real, [builder.constant(np.ones((), np.float32)), y_zero])]


def _swapped(node: NodeContext, position: int, flag: str) -> Value:
    value = node.value(position)
    return transposed(node.builder, value, (1, 0)) if node.attribute(flag, 0) and len(value.shape) == 2 else value


def _scaled_sums(builder: Builder, sums: Value, scale: Value) -> Value:
    """int32 sums times one scale, or one a column."""
    if len(scale.shape) <= 1:
        return builder.emit(CommandKind.DEQUANTIZE, [sums, scale], axis=len(sums.shape) - 1)
    return _multiplied(builder, cast(builder, sums, WireType.FLOAT32), scale)


def _product_in_floats(
    node: NodeContext, a: Value, a_scales: tuple[Value, Value | None], b_scales: tuple[Value, Value | None]
) -> Value:
    """The product of integers as floats: (a − a_zero) · (b − b_zero) · (a_scale · b_scale) + bias."""
    builder = node.builder
    left, right, result = as_matrices(builder, a, node.value(1))
    operands = trimmed([left, right, a_scales[1], b_scales[1]])
    sums = builder.emit(CommandKind.MATMUL_INTEGER, operands)
    return result(_scaled_sums(builder, sums, _multiplied(builder, a_scales[0], b_scales[0])))


def _biased(node: NodeContext, product: Value, position: int) -> Sequence[Value]:
    bias = node.optional(position)
    return [product if bias is None else binary(node.builder, BinaryFunction.ADD, product, bias)]


def _dynamic_quantize_matmul(node: NodeContext) -> Sequence[Value]:
    a, a_scale, a_zero = node.builder.emit_all(CommandKind.DYNAMIC_QUANTIZE, [node.value(0)], 3)
    product = _product_in_floats(node, a, (a_scale, a_zero), (scale_of(node, 2), node.optional(3)))
    return _biased(node, product, 4)


def _matmul_integer_to_float(node: NodeContext) -> Sequence[Value]:
    a_scale = node.value(2)
    if a_scale.type.elements != 1:
        raise Refused("a scale for each row of its first operand is not supported")
    a_scales, b_scales = (scale_of(node, 2), node.optional(4)), (scale_of(node, 3), node.optional(5))
    product = cast(node.builder, _product_in_floats(node, node.value(0), a_scales, b_scales), a_scale.dtype)
    return _biased(node, product, 6)


def _refused(reason: str) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        raise Refused(reason)

    return lower


LOWERINGS: dict[str, Lowering] = {
    qualified("DequantizeLinear"): quantised.LOWERINGS["DequantizeLinear"],
    qualified("DynamicQuantizeLSTM"): _refused("its quantised recurrence is not supported: keep the LSTM in float32"),
    qualified("DynamicQuantizeMatMul"): _dynamic_quantize_matmul,
    qualified("MatMulIntegerToFloat"): _matmul_integer_to_float,
    qualified("QAttention"): _refused("it is not supported: quantise the model without fusing attention"),
    qualified("QGemm"): _qgemm,
    qualified("QLinearAdd"): _qlinear_binary(QBinaryFunction.ADD),
    qualified("QLinearAveragePool"): _qlinear_average_pool,
    qualified("QLinearConcat"): _qlinear_concat,
    qualified("QLinearConv"): _qlinear_conv,
    qualified("QLinearGlobalAveragePool"): _qlinear_global_average_pool,
    qualified("QLinearLeakyRelu"): _qlinear_leaky_relu,
    qualified("QLinearMul"): _qlinear_binary(QBinaryFunction.MUL),
    qualified("QLinearReduceMean"): _qlinear_reduce_mean,
    qualified("QLinearSigmoid"): _qlinear_sigmoid,
    qualified("QLinearSoftmax"): _qlinear_softmax,
    qualified("QLinearWhere"): _qlinear_where,
    qualified("QuantizeLinear"): quantised.LOWERINGS["QuantizeLinear"],
}
