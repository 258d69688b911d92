"""Element-wise operators."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, UnaryFunction
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Builder, Refused, Value

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
}
_PARAMETERS = {"LeakyRelu": {"alpha": 0.01}, "Elu": {"alpha": 1.0}, "HardSigmoid": {"alpha": 0.2, "beta": 0.5}}
"""Attributes and their defaults in the ONNX specification."""
_CLIP_LIMITS_ARE_INPUTS_SINCE = 11


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
    """Pow: the exponent may have another type than the base."""
    base, exponent = node.value(0), node.value(1)
    return [binary(node.builder, BinaryFunction.POW, base, cast(node.builder, exponent, base.dtype))]


def _simple_unary(op: str) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        parameters = {name: node.attribute(name, default) for name, default in _PARAMETERS.get(op, {}).items()}
        return [unary(node.builder, _UNARY[op], node.value(0), **parameters)]

    return lower


def _clip(node: NodeContext) -> Sequence[Value]:
    """Clip: with constant limits on floats one command, else Max and Min; before opset 11 limits are attributes."""
    x, low, high = node.value(0), node.optional(1), node.optional(2)
    if node.since < _CLIP_LIMITS_ARE_INPUTS_SINCE:
        limits = (node.attribute("min", -math.inf), node.attribute("max", math.inf))
        return [unary(node.builder, UnaryFunction.CLIP, x, *limits)]
    if x.dtype.is_float and all(limit is None or limit.constant is not None for limit in (low, high)):
        least = node.constant_float(1, "lower limit")
        most = node.constant_float(2, "upper limit")
        return [
            unary(
                node.builder,
                UnaryFunction.CLIP,
                x,
                -math.inf if least is None else least,
                math.inf if most is None else most,
            )
        ]
    if low is not None:
        x = binary(node.builder, BinaryFunction.MAX, x, low)
    if high is not None:
        x = binary(node.builder, BinaryFunction.MIN, x, high)
    return [x]


def _cast(node: NodeContext) -> Sequence[Value]:
    return [cast(node.builder, node.value(0), node.wire_type(node.attribute("to")))]


def _cast_like(node: NodeContext) -> Sequence[Value]:
    """CastLike: to the type of its second operand, whose values do not matter."""
    return [cast(node.builder, node.value(0), node.value(1).dtype)]


def _where(node: NodeContext) -> Sequence[Value]:
    return [node.builder.emit(CommandKind.WHERE, [node.value(i) for i in range(3)])]


def _identity(node: NodeContext) -> Sequence[Value]:
    return [node.value(0)]


def _dropout(node: NodeContext) -> Sequence[Value]:
    """Dropout at inference: the data unchanged, and a mask that keeps everything."""
    training = node.optional(2)
    if training is not None and (training.constant is None or training.constant.any()):
        raise Refused("it is in training mode")
    x = node.value(0)
    if node.output_count == 1:
        return [x]
    kept = node.builder.scalar(True, WireType.BOOL)
    return [x, node.builder.expand(kept, x.shape)]


def _table(names: dict[str, BinaryFunction], make: Callable[[BinaryFunction], Lowering]) -> dict[str, Lowering]:
    return {name: make(function) for name, function in names.items()}


LOWERINGS: dict[str, Lowering] = {
    **_table({**_COMPARISONS, **_ARITHMETIC}, _simple_binary),
    **_table(_VARIADIC, _variadic),
    **{name: _simple_unary(name) for name in _UNARY},
    "Pow": _pow,
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Where": _where,
    "Identity": _identity,
    "Dropout": _dropout,
}
