"""An activation after a product becomes part of it."""

from __future__ import annotations

from driver_shim.protocol.program_commands import Activation, CommandKind, UnaryFunction
from sdk.compiler.ir import fields_of
from sdk.compiler.passes.products import is_plain
from sdk.compiler.passes.rewriting import Rewriting

_FUSED = {
    UnaryFunction.RELU: Activation.RELU,
    UnaryFunction.CLIP: Activation.CLIP,
    UnaryFunction.SIGMOID: Activation.SIGMOID,
    UnaryFunction.TANH: Activation.TANH,
}


def fuse_activation(program: Rewriting) -> None:
    """Give products without activation the one that is applied to them."""
    for position, operation in enumerate(program.operations):
        if operation.kind is not CommandKind.UNARY or operation.attributes.function not in _FUSED:
            continue
        product = program.sole(operation.inputs[0])
        if product is None or not is_plain(product):
            continue
        given = operation.attributes
        fields = {
            **fields_of(product),
            "activation": _FUSED[UnaryFunction(given.function)],
            "low": given.alpha,
            "high": given.beta,
        }
        program.replace(position, product.kind, product.inputs, fields, [product])
