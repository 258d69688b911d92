"""Activations that have no command of their own, made of element-wise ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, UnaryFunction
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.elementwise import binary, unary

_GELU_CUBIC = 0.044715
"""Of the approximation of Gelu by tanh (Hendrycks and Gimpel, 2016)."""
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
"""Defaults in the ONNX specification of Selu."""


def _scalar(builder: Builder, value: float, like: Value) -> Value:
    return builder.scalar(value, like.dtype)


def _times(builder: Builder, x: Value, factor: float) -> Value:
    return x if factor == 1 else binary(builder, BinaryFunction.MUL, x, _scalar(builder, factor, x))


def _where(builder: Builder, condition: Value, x: Value, y: Value) -> Value:
    return builder.emit(CommandKind.WHERE, [condition, x, y])


def _hard_swish(node: NodeContext) -> Sequence[Value]:
    """HardSwish: x * max(0, min(1, x / 6 + 0.5))."""
    x = node.value(0)
    gate = unary(node.builder, UnaryFunction.HARD_SIGMOID, x, 1 / 6, 0.5)
    return [binary(node.builder, BinaryFunction.MUL, x, gate)]


def _gelu(node: NodeContext) -> Sequence[Value]:
    """Gelu: x / 2 * (1 + erf(x / sqrt(2))), or its approximation by tanh."""
    x, builder = node.value(0), node.builder
    kind = node.attribute("approximate", "none")
    if kind == "none":
        inner = unary(builder, UnaryFunction.ERF, _times(builder, x, math.sqrt(0.5)))
    elif kind == "tanh":
        cube = binary(builder, BinaryFunction.MUL, binary(builder, BinaryFunction.MUL, x, x), x)
        bent = binary(builder, BinaryFunction.ADD, x, _times(builder, cube, _GELU_CUBIC))
        inner = unary(builder, UnaryFunction.TANH, _times(builder, bent, math.sqrt(2 / math.pi)))
    else:
        raise Refused(f"approximate {kind!r}")
    gate = binary(builder, BinaryFunction.ADD, inner, _scalar(builder, 1.0, x))
    return [binary(builder, BinaryFunction.MUL, _times(builder, x, 0.5), gate)]


def _mish(node: NodeContext) -> Sequence[Value]:
    """Mish: x * tanh(ln(1 + exp(x)))."""
    x, builder = node.value(0), node.builder
    gate = unary(builder, UnaryFunction.TANH, unary(builder, UnaryFunction.SOFTPLUS, x))
    return [binary(builder, BinaryFunction.MUL, x, gate)]


def _swish(node: NodeContext) -> Sequence[Value]:
    """Swish: x * sigmoid(alpha * x)."""
    x, builder = node.value(0), node.builder
    gate = unary(builder, UnaryFunction.SIGMOID, _times(builder, x, node.attribute("alpha", 1.0)))
    return [binary(builder, BinaryFunction.MUL, x, gate)]


def _selu(node: NodeContext) -> Sequence[Value]:
    """Selu: gamma * (x above 0, alpha * (exp(x) - 1) below)."""
    x, builder = node.value(0), node.builder
    bent = unary(builder, UnaryFunction.ELU, x, node.attribute("alpha", _SELU_ALPHA))
    return [_times(builder, bent, node.attribute("gamma", _SELU_GAMMA))]


def _celu(node: NodeContext) -> Sequence[Value]:
    """Celu: x above 0, alpha * (exp(x / alpha) - 1) below."""
    x, builder = node.value(0), node.builder
    alpha = node.attribute("alpha", 1.0)
    if alpha == 0:
        raise Refused("alpha is 0")
    # Elu of x / alpha, times alpha: above 0 the two cancel.
    return [_times(builder, unary(builder, UnaryFunction.ELU, _times(builder, x, 1 / alpha), 1.0), alpha)]


def _prelu(node: NodeContext) -> Sequence[Value]:
    """PRelu: x where it is not below 0, else slope * x; the slope broadcasts to x."""
    x, slope, builder = node.value(0), node.value(1), node.builder
    scaled = binary(builder, BinaryFunction.MUL, x, slope)
    if scaled.shape != x.shape:
        raise Refused(f"the slope {slope.type} does not broadcast to {x.type}")
    below = binary(builder, BinaryFunction.LESS, x, _scalar(builder, 0, x))
    return [_where(builder, below, scaled, x)]


def _thresholded_relu(node: NodeContext) -> Sequence[Value]:
    """ThresholdedRelu: x above alpha, else 0."""
    x, builder = node.value(0), node.builder
    above = binary(builder, BinaryFunction.GREATER, x, _scalar(builder, node.attribute("alpha", 1.0), x))
    return [_where(builder, above, x, _scalar(builder, 0, x))]


def _softsign(node: NodeContext) -> Sequence[Value]:
    """Softsign: x / (1 + |x|)."""
    x, builder = node.value(0), node.builder
    size = binary(builder, BinaryFunction.ADD, unary(builder, UnaryFunction.ABS, x), _scalar(builder, 1.0, x))
    return [binary(builder, BinaryFunction.DIV, x, size)]


LOWERINGS: dict[str, Lowering] = {
    "HardSwish": _hard_swish,
    "Gelu": _gelu,
    "Mish": _mish,
    "Swish": _swish,
    "Selu": _selu,
    "Celu": _celu,
    "PRelu": _prelu,
    "ThresholdedRelu": _thresholded_relu,
    "Softsign": _softsign,
}
