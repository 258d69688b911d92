"""The operand types and shapes that each command accepts, and the output that it gives.

`check` is what the compiler asks before it emits a command and the device before it accepts one, so a checked
command's kernel never meets shapes it does not expect. Data-dependent trouble is the kernels' business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from driver_shim.protocol.program import MAX_DIMENSION, TensorType
from driver_shim.protocol.program_commands import (
    MAX_RANK,
    Activation,
    ArgumentFunction,
    BinaryFunction,
    CommandKind,
    PadMode,
    PoolFunction,
    ReduceFunction,
    UnaryFunction,
)
from driver_shim.protocol.types import FLOATS, INTEGERS, QUANTISED, WireType
from emulator.model.shapes import SemanticError, broadcast, matmul_shape, need, reduced_shape, window_shape

Types = Sequence[TensorType | None]

_BOOLEAN_BINARY = {BinaryFunction.AND, BinaryFunction.OR, BinaryFunction.XOR}
_COMPARISONS = {
    BinaryFunction.EQUAL,
    BinaryFunction.LESS,
    BinaryFunction.LESS_OR_EQUAL,
    BinaryFunction.GREATER,
    BinaryFunction.GREATER_OR_EQUAL,
}
_INTEGER_UNARY = {UnaryFunction.ABS, UnaryFunction.NEG, UnaryFunction.SIGN, UnaryFunction.RELU}
_INTEGER_REDUCE = {ReduceFunction.SUM, ReduceFunction.MAX, ReduceFunction.MIN}
_POOLED = FLOATS | QUANTISED


def check(kind: CommandKind, attributes: Any, inputs: Types, output: TensorType) -> None:
    """Raise SemanticError unless the command is defined for these operands and gives exactly `output`."""
    if any(value > 1 for value in _flags(attributes)):
        raise SemanticError("a flag is neither 0 nor 1")
    _RULES[kind](attributes, inputs, output)


def _flags(attributes: Any) -> list[int]:
    names = ("transpose_a", "transpose_b", "relu", "count_include_pad", "ceil_mode", "select_last", "logarithm")
    return [attributes[name] for name in names if name in attributes]


def _given(inputs: Types, position: int) -> TensorType:
    given = inputs[position]
    if given is None:
        raise SemanticError(f"operand {position} is missing")
    return given


def _optional(inputs: Types, position: int) -> TensorType | None:
    return inputs[position] if position < len(inputs) else None


def _function(kind: type[Any], value: int) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise SemanticError(f"{value} is no {kind.__name__}") from None


def _is(output: TensorType, dtype: WireType, shape: Sequence[int]) -> None:
    wanted = TensorType(dtype, tuple(shape))
    need(output == wanted, f"the output is {output}, must be {wanted}")


def _same_type(inputs: Types, output: TensorType, allowed: frozenset[WireType] | None = None) -> WireType:
    """All operands and the output of one type, out of `allowed`; returns it."""
    found = {t.dtype for t in inputs if t is not None} | {output.dtype}
    need(len(found) == 1, f"operands of different types: {', '.join(sorted(t.text for t in found))}")
    dtype = output.dtype
    need(allowed is None or dtype in allowed, f"{dtype.text} operands are not possible here")
    return dtype


def _axis(axis: int, rank: int) -> int:
    need(axis < rank, f"axis {axis} of rank {rank}")
    return axis


def _conv_output(attributes: Any, x: TensorType, w: TensorType) -> tuple[int, ...]:
    need(len(w.shape) == len(x.shape) >= 3, f"weights {w} for data {x}")
    group, outputs = attributes.group, w.shape[0]
    need(
        group > 0 and x.shape[1] == w.shape[1] * group and outputs % group == 0,
        f"weights {w} in {group} groups for data {x}",
    )
    return (x.shape[0], outputs, *window_shape(x, w.shape[2:], attributes))


def _activation(attributes: Any) -> None:
    _function(Activation, attributes.activation)


def _matmul(attributes: Any, inputs: Types, output: TensorType) -> None:
    dtype = _same_type(inputs, output, FLOATS)
    _activation(attributes)
    a, b, bias = list(_given(inputs, 0).shape), list(_given(inputs, 1).shape), _optional(inputs, 2)
    if attributes.transpose_a:
        a[-2:] = reversed(a[-2:])
    if attributes.transpose_b:
        b[-2:] = reversed(b[-2:])
    shape = matmul_shape(a, b)
    _is(output, dtype, shape)
    need(bias is None or broadcast(bias.shape, shape) == shape, f"bias {bias} does not broadcast to {output}")


def _bias(bias: TensorType | None, channels: int) -> None:
    need(bias is None or bias.shape == (channels,), f"bias {bias} for {channels} channels")


def _conv(attributes: Any, inputs: Types, output: TensorType) -> None:
    dtype = _same_type(inputs, output, FLOATS)
    _activation(attributes)
    shape = _conv_output(attributes, _given(inputs, 0), _given(inputs, 1))
    _is(output, dtype, shape)
    _bias(_optional(inputs, 2), shape[1])


def _pool(attributes: Any, inputs: Types, output: TensorType) -> None:
    x = _given(inputs, 0)
    function = _function(PoolFunction, attributes.function)
    _same_type(inputs, output, _POOLED if function is PoolFunction.MAX else FLOATS)
    rank = len(x.shape) - 2
    kernel = tuple(attributes.kernel[:rank]) if rank > 0 else ()
    shape = window_shape(x, kernel, attributes, ceil=bool(attributes.ceil_mode))
    need(all(k == 1 for k in attributes.kernel[rank:]), "unused spatial dimensions must have kernel 1")
    for i in range(rank):
        reach = (kernel[i] - 1) * attributes.dilations[i] + 1
        pads = max(attributes.pads_begin[i], attributes.pads_end[i])
        need(pads < reach, f"padding {pads} with a window of {reach}: a window would see only padding")
    _is(output, x.dtype, (*x.shape[:2], *shape))


def _scalar(tensor: TensorType, dtype: WireType, what: str) -> None:
    need(tensor.dtype is dtype and tensor.elements == 1, f"{what} is {tensor}, must be one {dtype.text}")


def _vector(tensor: TensorType, dtype: WireType, length: int, what: str) -> None:
    good = tensor.dtype is dtype and len(tensor.shape) <= 1 and tensor.elements in (1, length)
    need(good, f"{what} is {tensor}, must be one or {length} of {dtype.text}")


def _quantised_operands(inputs: Types, output: TensorType, channels: int) -> None:
    x, w, x_scale, x_zero, w_scale, w_zero, y_scale, y_zero = (_given(inputs, i) for i in range(8))
    need(x.dtype in QUANTISED and w.dtype in QUANTISED and output.dtype in QUANTISED, "operands must be int8 or uint8")
    _scalar(x_scale, WireType.FLOAT32, "x_scale")
    _scalar(y_scale, WireType.FLOAT32, "y_scale")
    _scalar(x_zero, x.dtype, "x_zero_point")
    _scalar(y_zero, output.dtype, "y_zero_point")
    _vector(w_scale, WireType.FLOAT32, channels, "w_scale")
    _vector(w_zero, w.dtype, channels, "w_zero_point")
    bias = _optional(inputs, 8)
    _bias(bias, channels)
    need(bias is None or bias.dtype is WireType.INT32, f"bias is {bias}, must be int32")


def _qmatmul(attributes: Any, inputs: Types, output: TensorType) -> None:
    shape = matmul_shape(_given(inputs, 0).shape, _given(inputs, 1).shape)
    _is(output, output.dtype, shape)
    _quantised_operands(inputs, output, shape[-1])


def _qconv(attributes: Any, inputs: Types, output: TensorType) -> None:
    shape = _conv_output(attributes, _given(inputs, 0), _given(inputs, 1))
    _is(output, output.dtype, shape)
    _quantised_operands(inputs, output, shape[1])


def _scales(attributes: Any, x: TensorType, scale: TensorType, zero: TensorType | None, kind: WireType) -> None:
    axis = _axis(attributes.axis, len(x.shape)) if x.shape else 0
    channels = x.shape[axis] if x.shape else 1
    _vector(scale, WireType.FLOAT32, channels, "scale")
    if zero is not None:
        _vector(zero, kind, channels, "zero_point")


def _quantize(attributes: Any, inputs: Types, output: TensorType) -> None:
    x = _given(inputs, 0)
    need(x.dtype is WireType.FLOAT32 and output.dtype in QUANTISED, f"{x} to {output}: float32 to int8 or uint8")
    _scales(attributes, x, _given(inputs, 1), _given(inputs, 2), output.dtype)
    _is(output, output.dtype, x.shape)


def _dequantize(attributes: Any, inputs: Types, output: TensorType) -> None:
    x = _given(inputs, 0)
    need(x.dtype in QUANTISED | {WireType.INT32}, f"{x}: only int8, uint8 and int32 can be dequantised")
    _scales(attributes, x, _given(inputs, 1), _optional(inputs, 2), x.dtype)
    _is(output, WireType.FLOAT32, x.shape)


def _unary(attributes: Any, inputs: Types, output: TensorType) -> None:
    function = _function(UnaryFunction, attributes.function)
    if function is UnaryFunction.NOT:
        allowed = frozenset({WireType.BOOL})
    else:
        allowed = FLOATS | INTEGERS if function in _INTEGER_UNARY else FLOATS
    _is(output, _same_type(inputs, output, allowed), _given(inputs, 0).shape)


def _binary(attributes: Any, inputs: Types, output: TensorType) -> None:
    function = _function(BinaryFunction, attributes.function)
    a, b = _given(inputs, 0), _given(inputs, 1)
    need(a.dtype is b.dtype, f"operands of different types: {a}, {b}")
    if function in _BOOLEAN_BINARY:
        good, result = a.dtype is WireType.BOOL, WireType.BOOL
    elif function in _COMPARISONS:
        good, result = a.dtype is not WireType.BOOL or function is BinaryFunction.EQUAL, WireType.BOOL
    elif function is BinaryFunction.POW:
        good, result = a.dtype.is_float, a.dtype
    else:
        good, result = a.dtype is not WireType.BOOL, a.dtype
    need(good, f"{function.name.lower()} of {a.dtype.text} is not possible")
    _is(output, result, broadcast(a.shape, b.shape))


def _where(attributes: Any, inputs: Types, output: TensorType) -> None:
    condition, x, y = (_given(inputs, i) for i in range(3))
    need(condition.dtype is WireType.BOOL, f"the condition is {condition}, must be bool")
    _is(output, _same_type((x, y), output), broadcast(condition.shape, x.shape, y.shape))


def _cast(attributes: Any, inputs: Types, output: TensorType) -> None:
    _is(output, output.dtype, _given(inputs, 0).shape)


def _kept_or_gone(x: TensorType, axes: Sequence[int], output: TensorType) -> None:
    possible = [reduced_shape(x.shape, axes, keep=keep) for keep in (True, False)]
    need(output.shape in possible, f"{x} reduced along {list(axes)} gives {possible[0]} or {possible[1]}, not {output}")


def _reduce(attributes: Any, inputs: Types, output: TensorType) -> None:
    function = _function(ReduceFunction, attributes.function)
    x = _given(inputs, 0)
    _same_type(inputs, output, FLOATS | INTEGERS if function in _INTEGER_REDUCE else FLOATS)
    need(attributes.axes >> len(x.shape) == 0, f"axes mask {attributes.axes:#x} for rank {len(x.shape)}")
    _kept_or_gone(x, [i for i in range(MAX_RANK) if attributes.axes >> i & 1], output)


def _argument(attributes: Any, inputs: Types, output: TensorType) -> None:
    _function(ArgumentFunction, attributes.function)
    x = _given(inputs, 0)
    need(x.dtype is not WireType.BOOL, "bool operands are not possible here")
    need(output.dtype is WireType.INT64, f"the output is {output}, must be int64")
    _kept_or_gone(x, [_axis(attributes.axis, len(x.shape))], output)


def _softmax(attributes: Any, inputs: Types, output: TensorType) -> None:
    x = _given(inputs, 0)
    _axis(attributes.axis, len(x.shape))
    _is(output, _same_type(inputs, output, FLOATS), x.shape)


def _copy(attributes: Any, inputs: Types, output: TensorType) -> None:
    x = _given(inputs, 0)
    need(x.dtype is output.dtype and x.elements == output.elements, f"{x} cannot be reshaped to {output}")


def _transpose(attributes: Any, inputs: Types, output: TensorType) -> None:
    x = _given(inputs, 0)
    permutation = list(attributes.permutation)
    rank = len(x.shape)
    need(
        sorted(permutation[:rank]) == list(range(rank)) and not any(permutation[rank:]),
        f"{permutation} is no permutation of rank {rank}",
    )
    _is(output, x.dtype, [x.shape[i] for i in permutation[:rank]])


def _slice(attributes: Any, inputs: Types, output: TensorType) -> None:
    x = _given(inputs, 0)
    rank = len(x.shape)
    need(len(output.shape) == rank and output.dtype is x.dtype, f"a slice of {x} cannot be {output}")
    for i in range(rank):
        start, step = attributes.starts[i], attributes.steps[i]
        last = start + (output.shape[i] - 1) * step
        need(
            step != 0 and 0 <= start < x.shape[i] and 0 <= last < x.shape[i],
            f"dimension {i} of {x}: {output.shape[i]} elements from {start} in steps of {step}",
        )
    need(not any((*attributes.starts[rank:], *attributes.steps[rank:])), "unused dimensions must be zero")


def _concat(attributes: Any, inputs: Types, output: TensorType) -> None:
    dtype = _same_type(inputs, output)
    first = _given(inputs, 0)
    axis = _axis(attributes.axis, len(first.shape))
    shape = list(first.shape)
    shape[axis] = 0
    for part in (_given(inputs, i) for i in range(len(inputs))):
        rest = [extent for i, extent in enumerate(part.shape) if i != axis]
        same = len(part.shape) == len(shape) and rest == [e for i, e in enumerate(shape) if i != axis]
        need(same, f"{part} cannot be concatenated with {first} along {axis}")
        shape[axis] += part.shape[axis]
    need(shape[axis] <= MAX_DIMENSION, f"dimension {axis} becomes {shape[axis]}")
    _is(output, dtype, shape)


def _gather(attributes: Any, inputs: Types, output: TensorType) -> None:
    data, indices = _given(inputs, 0), _given(inputs, 1)
    need(indices.dtype in (WireType.INT32, WireType.INT64), f"indices are {indices}, must be int32 or int64")
    axis = _axis(attributes.axis, len(data.shape))
    _is(output, data.dtype, (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))


def _pad(attributes: Any, inputs: Types, output: TensorType) -> None:
    x, value = _given(inputs, 0), _optional(inputs, 1)
    mode = _function(PadMode, attributes.mode)
    need(value is None or (value.dtype is x.dtype and value.elements == 1), f"the value is {value}, data {x}")
    need(len(output.shape) == len(x.shape) and output.dtype is x.dtype, f"{x} cannot be padded to {output}")
    for i, (extent, wanted) in enumerate(zip(x.shape, output.shape, strict=True)):
        begin = attributes.begins[i]
        end = wanted - extent - begin
        need(end >= 0, f"dimension {i}: {begin} and {extent} elements in {wanted}")
        need(mode is not PadMode.REFLECT or max(begin, end) < extent, f"dimension {i}: cannot reflect {begin}, {end}")
    need(not any(attributes.begins[len(x.shape) :]), "unused dimensions must be zero")


def _expand(attributes: Any, inputs: Types, output: TensorType) -> None:
    x = _given(inputs, 0)
    _is(output, x.dtype, broadcast(x.shape, output.shape))


_RULES: dict[CommandKind, Callable[[Any, Types, TensorType], None]] = {
    CommandKind.MATMUL: _matmul,
    CommandKind.CONV: _conv,
    CommandKind.POOL: _pool,
    CommandKind.QMATMUL: _qmatmul,
    CommandKind.QCONV: _qconv,
    CommandKind.QUANTIZE: _quantize,
    CommandKind.DEQUANTIZE: _dequantize,
    CommandKind.UNARY: _unary,
    CommandKind.BINARY: _binary,
    CommandKind.WHERE: _where,
    CommandKind.CAST: _cast,
    CommandKind.REDUCE: _reduce,
    CommandKind.ARGUMENT: _argument,
    CommandKind.SOFTMAX: _softmax,
    CommandKind.COPY: _copy,
    CommandKind.TRANSPOSE: _transpose,
    CommandKind.SLICE: _slice,
    CommandKind.CONCAT: _concat,
    CommandKind.GATHER: _gather,
    CommandKind.PAD: _pad,
    CommandKind.EXPAND: _expand,
}
