"""Element-wise operators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, UnaryFunction
from driver_shim.protocol.types import INT64_STORAGE_MAX, INT64_STORAGE_MIN, WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Array, Builder, Refused, Value

_COMPARISONS = {
    "Equal": BinaryFunction.EQUAL,
    "Less": BinaryFunction.LESS,
    "LessOrEqual": BinaryFunction.LESS_OR_EQUAL,
    "Greater": BinaryFunction.GREATER,
    "GreaterOrEqual": BinaryFunction.GREATER_OR_EQUAL,
}
_ARITHMETIC = {
    "Add": BinaryFunction.ADD,
    "Sub": BinaryFunction.SUB,
    "Mul": BinaryFunction.MUL,
    "Div": BinaryFunction.DIV,
    "And": BinaryFunction.AND,
    "Or": BinaryFunction.OR,
    "Xor": BinaryFunction.XOR,
    "BitwiseAnd": BinaryFunction.BITWISE_AND,
    "BitwiseOr": BinaryFunction.BITWISE_OR,
    "BitwiseXor": BinaryFunction.BITWISE_XOR,
}
_VARIADIC = {
    "Max": BinaryFunction.MAX,
    "Min": BinaryFunction.MIN,
    "Sum": BinaryFunction.ADD,
    "Mean": BinaryFunction.ADD,
}
_UNARY = {
    "Abs": UnaryFunction.ABS,
    "Neg": UnaryFunction.NEG,
    "Sign": UnaryFunction.SIGN,
    "Floor": UnaryFunction.FLOOR,
    "Ceil": UnaryFunction.CEIL,
    "Round": UnaryFunction.ROUND,
    "Exp": UnaryFunction.EXP,
    "Log": UnaryFunction.LOG,
    "Sqrt": UnaryFunction.SQRT,
    "Reciprocal": UnaryFunction.RECIPROCAL,
    "Tanh": UnaryFunction.TANH,
    "Sigmoid": UnaryFunction.SIGMOID,
    "Erf": UnaryFunction.ERF,
    "Relu": UnaryFunction.RELU,
    "LeakyRelu": UnaryFunction.LEAKY_RELU,
    "Elu": UnaryFunction.ELU,
    "HardSigmoid": UnaryFunction.HARD_SIGMOID,
    "Softplus": UnaryFunction.SOFTPLUS,
    "Not": UnaryFunction.NOT,
    "Sin": UnaryFunction.SIN,
    "Cos": UnaryFunction.COS,
    "Tan": UnaryFunction.TAN,
    "Asin": UnaryFunction.ASIN,
    "Acos": UnaryFunction.ACOS,
    "Atan": UnaryFunction.ATAN,
    "Sinh": UnaryFunction.SINH,
    "Cosh": UnaryFunction.COSH,
    "Asinh": UnaryFunction.ASINH,
    "Acosh": UnaryFunction.ACOSH,
    "Atanh": UnaryFunction.ATANH,
    "BitwiseNot": UnaryFunction.BITWISE_NOT,
    "IsNaN": UnaryFunction.IS_NAN,
}
_PARAMETERS = {"LeakyRelu": {"alpha": 0.01}, "Elu": {"alpha": 1.0}, "HardSigmoid": {"alpha": 0.2, "beta": 0.5}}
"""Attributes and their defaults in the ONNX specification."""
_CLIP_LIMITS_ARE_INPUTS_SINCE = 11
_SHIFTS = {"LEFT": BinaryFunction.SHIFT_LEFT, "RIGHT": BinaryFunction.SHIFT_RIGHT}
_LARGEST = {
    WireType.FLOAT32: (2 - 2.0**-23) * 2.0**127,
    WireType.FLOAT16: (2 - 2.0**-10) * 2.0**15,
    WireType.BFLOAT16: (2 - 2.0**-7) * 2.0**127,
}
"""numeric_limits::max() of each float, by which Clip's specification closes a limit that is not given."""
_MASK_IS_BOOL_SINCE = 10
_MOD_OF_FLOATS_SINCE = 28


def binary(builder: Builder, function: BinaryFunction, a: Value, b: Value) -> Value:
    """A BINARY command."""
    return builder.emit(CommandKind.BINARY, [a, b], function=function)


def unary(builder: Builder, function: UnaryFunction, x: Value, alpha: float = 0, beta: float = 0) -> Value:
    """A UNARY command."""
    return builder.emit(CommandKind.UNARY, [x], function=function, alpha=alpha, beta=beta)


def cast(builder: Builder, x: Value, dtype: WireType) -> Value:
    """x in another type; x itself where it has that already."""
    return x if x.dtype is dtype else builder.emit(CommandKind.CAST, [x], dtype=dtype)


def _simple_binary(function: BinaryFunction) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        return [binary(node.builder, function, node.value(0), node.value(1))]

    return lower


def _variadic(function: BinaryFunction) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        values = [node.value(i) for i in range(len(node.inputs))]
        result = functools.reduce(lambda a, b: binary(node.builder, function, a, b), values)
        if node.op == "Mean":
            count = node.builder.scalar(len(values), result.dtype)
            result = binary(node.builder, BinaryFunction.DIV, result, count)
        return [result]

    return lower


def _pow(node: NodeContext) -> Sequence[Value]:
    """Pow: the result has the base's type; squares are products, real powers of integers go by way of float32."""
    base, exponent, builder = node.value(0), node.value(1), node.builder
    power = exponent.constant
    if power is not None and power.size == 1 and power.ndim <= len(base.shape) and power.reshape(()) == 2:
        return [binary(builder, BinaryFunction.MUL, base, base)]
    if exponent.dtype.is_float and not base.dtype.is_float:
        real = cast(builder, base, WireType.FLOAT32), cast(builder, exponent, WireType.FLOAT32)
        return [cast(builder, binary(builder, BinaryFunction.POW, *real), base.dtype)]
    return [binary(builder, BinaryFunction.POW, base, cast(builder, exponent, base.dtype))]


def _mod(node: NodeContext) -> Sequence[Value]:
    """Mod: with fmod the sign of the dividend, else that of the divisor, before opset 28 of integers alone."""
    a, b = node.value(0), node.value(1)
    if node.attribute("fmod", 0):
        return [binary(node.builder, BinaryFunction.FMOD, a, b)]
    if a.dtype.is_float and node.since < _MOD_OF_FLOATS_SINCE:
        raise Refused(f"of floats it needs fmod=1 before opset {_MOD_OF_FLOATS_SINCE}")
    return [binary(node.builder, BinaryFunction.MOD, a, b)]


def _bit_shift(node: NodeContext) -> Sequence[Value]:
    direction = node.attribute("direction")
    if direction not in _SHIFTS:
        raise Refused(f"direction is {direction!r}")
    return [binary(node.builder, _SHIFTS[direction], node.value(0), node.value(1))]


def _is_inf(node: NodeContext) -> Sequence[Value]:
    wanted = (float(bool(node.attribute(name, 1))) for name in ("detect_negative", "detect_positive"))
    return [unary(node.builder, UnaryFunction.IS_INF, node.value(0), *wanted)]


def _simple_unary(op: str) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        parameters = {name: node.attribute(name, default) for name, default in _PARAMETERS.get(op, {}).items()}
        return [unary(node.builder, _UNARY[op], node.value(0), **parameters)]

    return lower


def _clip(node: NodeContext) -> Sequence[Value]:
    """Clip: with constant limits on floats one command, else Max and Min; before opset 11 limits are attributes."""
    x, low, high = node.value(0), node.optional(1), node.optional(2)
    builder = node.builder
    if node.since < _CLIP_LIMITS_ARE_INPUTS_SINCE:
        most = _LARGEST[WireType.FLOAT32]
        return [unary(builder, UnaryFunction.CLIP, x, node.attribute("min", -most), node.attribute("max", most))]
    if x.dtype.is_float:
        # What is left open is the type's largest number, not infinity.
        low = builder.scalar(-_LARGEST[x.dtype], x.dtype) if low is None else low
        high = builder.scalar(_LARGEST[x.dtype], x.dtype) if high is None else high
        if low.constant is not None and high.constant is not None:
            return [unary(builder, UnaryFunction.CLIP, x, _number(low.constant), _number(high.constant))]
    if low is not None:
        x = binary(builder, BinaryFunction.MAX, x, _storable(builder, low))
    if high is not None:
        x = binary(builder, BinaryFunction.MIN, x, _storable(builder, high))
    return [x]


def _storable(builder: Builder, limit: Value) -> Value:
    """A constant limit within what int64 elements may hold: what they limit is within that, too."""
    if limit.constant is None or limit.dtype is not WireType.INT64:
        return limit
    return builder.constant(np.clip(limit.constant, INT64_STORAGE_MIN, INT64_STORAGE_MAX))


def _number(limit: Array) -> float:
    if limit.size != 1:
        raise Refused(f"a limit has {limit.size} elements, not one")
    return float(limit.reshape(())[()])


def _cast(node: NodeContext) -> Sequence[Value]:
    return [cast(node.builder, node.value(0), node.wire_type(node.attribute("to")))]


def _cast_like(node: NodeContext) -> Sequence[Value]:
    """CastLike: to the type of its second operand, whose values do not matter."""
    return [cast(node.builder, node.value(0), node.value(1).dtype)]


def _where(node: NodeContext) -> Sequence[Value]:
    return [node.builder.emit(CommandKind.WHERE, [node.value(i) for i in range(3)])]


def _identity(node: NodeContext) -> Sequence[Value]:
    return [node.value(0)]


def _is_zero(value: Value | None) -> bool:
    """Whether a value is known to be 0 or False, or absent."""
    return value is None or (value.constant is not None and not value.constant.any())


def _dropout(node: NodeContext) -> Sequence[Value]:
    """Dropout at inference, or of nothing: the data unchanged, and a mask that keeps everything."""
    ratio, training = node.optional(1), node.optional(2)
    if not _is_zero(training) and (ratio is None or not _is_zero(ratio)):
        for position, value in ((2, training), (1, ratio)):
            if value is not None and value.constant is None:
                raise node.not_constant(position, "mode and ratio must be constant")
        raise Refused("it is in training mode")
    x = node.value(0)
    if node.output_count == 1:
        return [x]
    kept = node.builder.scalar(True, WireType.BOOL if node.since >= _MASK_IS_BOOL_SINCE else x.dtype)
    return [x, node.builder.expand(kept, x.shape)]


def _table(names: dict[str, BinaryFunction], make: Callable[[BinaryFunction], Lowering]) -> dict[str, Lowering]:
    return {name: make(function) for name, function in names.items()}


LOWERINGS: dict[str, Lowering] = {
    **_table({**_COMPARISONS, **_ARITHMETIC}, _simple_binary),
    **_table(_VARIADIC, _variadic),
    **{name: _simple_unary(name) for name in _UNARY},
    "Pow": _pow,
    "Mod": _mod,
    "BitShift": _bit_shift,
    "IsInf": _is_inf,
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Where": _where,
    "Identity": _identity,
    "Dropout": _dropout,
}
