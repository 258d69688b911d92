"""A sum of a product and one constant for each channel becomes the product's bias."""

from __future__ import annotations

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from sdk.compiler.ir import Operation, Value, fields_of
from sdk.compiler.passes.products import by_channel, is_plain
from sdk.compiler.passes.rewriting import Rewriting
from sdk.compiler.passes.scanning import absorb_each


def fuse_bias(program: Rewriting) -> None:
    """Give products without bias the one that is added to them."""
    absorb_each(program, {BinaryFunction.ADD}, _fuse)


def _fuse(program: Rewriting, position: int, result: Value | None, bias: Value | None) -> bool:
    product = program.sole(result)
    if product is None or bias is None or not is_plain(product) or len(product.inputs) > 2:
        return False
    vector = _vector(bias, product)
    if vector is None:
        return False
    fields = fields_of(product)
    if product.kind is CommandKind.MATMUL:
        fields["beta"] = 1.0
    program.replace(position, product.kind, [*product.inputs, vector], fields, [product])
    return True


def _vector(bias: Value, product: Operation) -> Value | None:
    """The bias as a vector; dequantised constants, which are folded later, are vectors already."""
    made = bias.producer
    if made is not None and made.kind is CommandKind.DEQUANTIZE and made.inputs[0] is not None:
        channels = product.outputs[0].shape[-1]
        is_last = product.kind is CommandKind.MATMUL and bias.shape == (channels,)
        return bias if is_last and made.inputs[0].constant is not None else None
    return by_channel(bias, product)
