"""Operators of onnxruntime's own that its optimiser makes of float ones: products with what follows them."""

from __future__ import annotations

from collections.abc import Sequence

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, UnaryFunction
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.contrib import qualified
from sdk.compiler.ir import Refused, Value
from sdk.compiler.lowering import products
from sdk.compiler.lowering.elementwise import binary, unary

_ACTIVATIONS: dict[str, tuple[UnaryFunction, tuple[float, ...]]] = {
    "Relu": (UnaryFunction.RELU, ()),
    "Sigmoid": (UnaryFunction.SIGMOID, ()),
    "Tanh": (UnaryFunction.TANH, ()),
    "LeakyRelu": (UnaryFunction.LEAKY_RELU, (0.01,)),
    "Clip": (UnaryFunction.CLIP, (float("-inf"), float("inf"))),
    "HardSigmoid": (UnaryFunction.HARD_SIGMOID, (0.2, 0.5)),
}
"""By the name in the attribute: the function, and the defaults of its parameters."""


def _activated(node: NodeContext, x: Value, given: Sequence[float]) -> Value:
    """The activation that a node names, with the parameters it gives."""
    name = node.attribute("activation", "")
    if not name:
        return x
    if name not in _ACTIVATIONS:
        raise Refused(f"activation {name!r}; {', '.join(_ACTIVATIONS)} are possible")
    function, defaults = _ACTIVATIONS[name]
    parameters = [*given[: len(defaults)], *defaults[len(given) :]]
    return unary(node.builder, function, x, *parameters)


def _fused_conv(node: NodeContext) -> Sequence[Value]:
    """FusedConv: Conv, an addend, an activation."""
    x, w, bias, addend = node.value(0), node.value(1), node.optional(2), node.optional(3)
    operands = [x, w] if bias is None else [x, w, bias]
    result = node.builder.emit(CommandKind.CONV, operands, **products.conv_fields(node, x, w))
    if addend is not None:
        if addend.shape != result.shape:
            raise Refused(f"the addend {addend.type} for a result of shape {list(result.shape)}")
        result = binary(node.builder, BinaryFunction.ADD, result, addend)
    return [_activated(node, result, node.attribute("activation_params", []))]


def _fused_gemm(node: NodeContext) -> Sequence[Value]:
    """FusedGemm: Gemm and an activation."""
    (result,) = products.LOWERINGS["Gemm"](node)
    names = ("activation_alpha", "activation_beta")
    parameters = [value for value in map(node.attribute, names) if value is not None]
    return [_activated(node, result, parameters)]


def _fused_matmul(node: NodeContext) -> Sequence[Value]:
    """FusedMatMul: alpha · a · b, the last two dimensions of either swapped before."""
    a, b = node.value(0), node.value(1)
    if node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0):
        raise Refused("transBatchA and transBatchB are not supported")
    if min(len(a.shape), len(b.shape)) < 2:
        raise Refused(f"operands {a.type} and {b.type}; rank 2 at least")
    flags = {
        "transpose_a": int(bool(node.attribute("transA", 0))),
        "transpose_b": int(bool(node.attribute("transB", 0))),
    }
    return [node.builder.emit(CommandKind.MATMUL, [a, b], alpha=node.attribute("alpha", 1.0), beta=0.0, **flags)]


LOWERINGS: dict[str, Lowering] = {
    qualified("FusedConv"): _fused_conv,
    qualified("FusedGemm"): _fused_gemm,
    qualified("FusedMatMul"): _fused_matmul,
}
