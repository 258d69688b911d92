"""Activations; those that have a function of their own are one command."""

from __future__ import annotations

from collections.abc import Sequence

from driver_shim.protocol.program_commands import BinaryFunction, UnaryFunction
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Refused, Value
from sdk.compiler.lowering.elementwise import binary, unary

_GELU = {"none": UnaryFunction.GELU, "tanh": UnaryFunction.GELU_TANH}
_SIMPLE = {
    "HardSwish": UnaryFunction.HARD_SWISH,
    "Mish": UnaryFunction.MISH,
    "Swish": UnaryFunction.SWISH,
    "ThresholdedRelu": UnaryFunction.THRESHOLDED_RELU,
    "Softsign": UnaryFunction.SOFTSIGN,
}
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
"""Defaults in the ONNX specification of Selu."""


def _gelu(node: NodeContext) -> Sequence[Value]:
    """Gelu: exact, or its approximation by tanh."""
    kind = node.attribute("approximate", "none")
    if kind not in _GELU:
        raise Refused(f"approximate {kind!r}")
    return [unary(node.builder, _GELU[kind], node.value(0))]


def _celu(node: NodeContext) -> Sequence[Value]:
    """Celu: x above 0, alpha * (exp(x / alpha) - 1) below."""
    alpha = node.attribute("alpha", 1.0)
    if alpha == 0:
        raise Refused("alpha is 0")
    return [unary(node.builder, UnaryFunction.CELU, node.value(0), alpha)]


def _selu(node: NodeContext) -> Sequence[Value]:
    """Selu: gamma * (x above 0, alpha * (exp(x) - 1) below)."""
    alpha, gamma = node.attribute("alpha", _SELU_ALPHA), node.attribute("gamma", _SELU_GAMMA)
    return [unary(node.builder, UnaryFunction.SELU, node.value(0), alpha, gamma)]


def _simple(function: UnaryFunction) -> Lowering:
    """An activation whose one attribute, if any, is alpha = 1."""

    def lower(node: NodeContext) -> Sequence[Value]:
        return [unary(node.builder, function, node.value(0), node.attribute("alpha", 1.0))]

    return lower


def _prelu(node: NodeContext) -> Sequence[Value]:
    """PRelu: x where it is not below 0, else slope * x; the slope broadcasts to x."""
    x, slope = node.value(0), node.value(1)
    result = binary(node.builder, BinaryFunction.PRELU, x, slope)
    if result.shape != x.shape:
        raise Refused(f"the slope {slope.type} does not broadcast to {x.type}")
    return [result]


LOWERINGS: dict[str, Lowering] = {
    **{name: _simple(function) for name, function in _SIMPLE.items()},
    "Gelu": _gelu,
    "Selu": _selu,
    "Celu": _celu,
    "PRelu": _prelu,
}
